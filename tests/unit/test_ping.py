"""Pinging with real packets, each case in a network namespace of its own."""
from __future__ import annotations

from typing import Any

import pytest

from tests.unit import namespace

SCRIPT = '''
import os, socket, struct, threading, time
import nat_monitor as m
sent, at, Plain = [], [], socket.socket
class Counted(Plain):
    def sendto(self, request, to):
        sent.append(struct.unpack("!HH", request[4:8]))
        at.append(time.monotonic())
        super().sendto(request, to)
socket.socket = Counted
def once(address="10.9.9.9", timeout=0.4):
    started = time.monotonic()
    try:
        result = m.send_ping(timeout, address)
    except m.OwnFault as fault:
        result = f"fault: {fault}"
    return [result, time.monotonic() - started]
def forge(kind, identifier, sequence, source="10.9.9.9"):
    with Plain(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        s.bind((source, 0))
        head = struct.pack("!BBHHH", kind, 0, 0, identifier, sequence)
        s.sendto(struct.pack("!BBHHH", kind, 0, m.checksum(head), identifier, sequence), ("10.9.9.9", 0))
'''
UP = 'ip link set lo up; ip address add 10.9.9.9/32 dev lo; ip address add 10.9.9.8/32 dev lo; '
MUTE = UP + 'sysctl -q -w net.ipv4.icmp_echo_ignore_all=1; '


def inside(setup: str, script: str) -> Any:
    """Run the script behind SCRIPT in a new network namespace after the setup, and return what it left in `out`."""
    return namespace.inside(setup, SCRIPT + script)


def test_a_well_peer_costs_one_packet_and_no_wait() -> None:
    result, taken, requests = inside(UP, 'out = [*once(timeout=40.0), len(sent)]')

    assert result is True and requests == 1 and taken < 40.0


def test_silence_is_a_miss_after_six_requests_that_lasts_the_timeout() -> None:
    result, taken, requests, last = inside(MUTE, 'out = [*once(), len(sent), at[-1] - at[0]]')

    assert result is False and requests == 6 and taken >= 0.4 and last >= 0.3


def test_an_answer_to_a_later_request_ends_the_ping() -> None:
    result, requests = inside(MUTE, '''
def answer():
    while len(sent) < 3:
        time.sleep(0.005)
    forge(0, *sent[0])
threading.Thread(target=answer).start()
result, _ = once(timeout=4.0)
out = [result, len(sent)]
''')

    assert result is True and requests == 3


@pytest.mark.parametrize('reply', [
    'forge(0, identifier ^ 1, sequence)',             # another program's ping
    'forge(0, identifier, sequence ^ 1)',             # another request
    'forge(8, identifier, sequence)',                 # a request
    'forge(0, identifier, sequence, "10.9.9.8")',     # from elsewhere
])
def test_only_replies_to_these_requests_count(reply: str) -> None:
    result, _ = inside(MUTE, f'''
def answer():
    while not sent:
        time.sleep(0.005)
    identifier, sequence = sent[0]
    {reply}
threading.Thread(target=answer).start()
out = once()
''')

    assert result is False


def test_a_late_answer_does_not_count_for_the_next_ping() -> None:
    first, second = inside(MUTE, '''
first = once()[0]
late = sent[0]
def answer():
    while len(sent) < 8:
        time.sleep(0.005)
    forge(0, *late)
threading.Thread(target=answer).start()
out = [first, once()[0]]
''')

    assert first is False and second is False


@pytest.mark.parametrize('error', ['host-prohibited', 'net-prohibited', 'port-unreachable'])
def test_an_error_from_the_network_is_a_miss_that_lasts_the_timeout(error: str) -> None:
    rule = ("nft 'add table ip t; add chain ip t i { type filter hook input priority 0; }; "
            f"add rule ip t i icmp type echo-request reject with icmp {error}'; ")
    first, second, suspended = inside(UP + rule, '''
out = [once(), once()]
m.is_answered = lambda *_: time.sleep(0.05)  # the error waits for the next request
out.append(once())
''')

    assert all(result is False and taken >= 0.4 for result, taken in (first, second)) and suspended[0] is False


def test_an_unreachable_route_is_a_fault_of_our_own() -> None:
    result, _ = inside('ip link set lo up; ip route add unreachable 10.9.9.9; ', 'out = once()')

    assert result == 'fault: No route to host'


def test_no_route_is_a_fault_of_our_own() -> None:
    result, _ = inside('', 'out = once()')

    assert result == 'fault: Network is unreachable'


def test_a_request_that_the_own_firewall_drops_is_a_fault_of_our_own() -> None:
    rule = "nft 'add table ip t; add chain ip t o { type filter hook output priority 0; }; add rule ip t o drop'; "
    result, _ = inside(UP + rule, 'out = once()')

    assert result == 'fault: Operation not permitted'


def test_pinging_recovers_from_a_fault_of_our_own() -> None:
    first, second = inside('', f'''
first = once()[0]
assert os.system("{UP}true") == 0
out = [first, once()[0]]
''')

    assert first == 'fault: Network is unreachable' and second is True


def test_a_suspended_process_finds_the_answer_that_came_meanwhile() -> None:
    result, taken = inside(UP, '''
class Suspended(Plain):
    def sendto(self, request, to):
        super().sendto(request, to)
        time.sleep(1.5)
socket.socket = Suspended
out = once()
''')

    assert result is True and taken >= 1.5


BRIDGE = UP + ('ip link add wg0 type veth peer name wg1; ip address add 10.0.0.200/24 dev wg0; '
               'ip link set wg0 up; ip link set wg1 up; ')


def test_a_ping_that_would_leave_with_another_address_than_its_own_ones_is_a_fault_of_our_own() -> None:
    """A VPN or a container bridge has a network of the VPC, and the kernel would send the pings there."""
    elsewhere, here, well = inside(BRIDGE, '''
def sent_with(address, *own):
    try:
        return m.send_ping(0.4, address, own), len(sent)
    except m.OwnFault as fault:
        return str(fault), len(sent)
out = [sent_with("10.0.0.9", "10.0.0.11", "10.0.0.12"), sent_with("10.0.0.9", "10.0.0.11", "10.0.0.200"),
       sent_with("10.9.9.9", "10.9.9.9")]
''')

    assert elsewhere == ['the way to 10.0.0.9 is by another interface (10.0.0.200), not that with 10.0.0.11', 0]
    assert here == [False, 6] and well == [True, 7]


def test_the_pings_of_the_peers_monitor_are_heard_and_nothing_else() -> None:
    """The first time, and for a new address, there is nothing to tell yet: it counts as heard."""
    assert inside(UP, '''
requests = m.Requests()
def after(*packets, address="10.9.9.9"):
    for packet in packets:
        forge(*packet)
    time.sleep(0.05)
    return requests(address)
out = [after(), after(), after((8, 1, 1)), after((8, 1, 2), (8, 1, 3), (8, 1, 4)), after(),
       after((0, 1, 5), (13, 1, 6)), after((8, 1, 7, "10.9.9.8")), after((8, 1, 8)),
       after(address="10.9.9.8"), after((8, 1, 9), address="10.9.9.8")]
''') == [True, False, True, True, False, False, False, True, True, False]


def test_pings_that_nobody_asks_about_fill_no_more_than_a_small_buffer() -> None:
    queued, first, then = inside(UP, '''
requests = m.Requests()
requests("10.9.9.9")
for number in range(5000):
    forge(8, 1, number)
queued = requests.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
out = [queued, requests("10.9.9.9"), requests("10.9.9.9")]
''')

    assert queued < 10000 and first is True and then is False
