"""Probing with real packets: two instances and the router of their subnet, each in a network namespace."""
from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# The primary and the router are namespaces in /run/netns of a mount namespace that ends with the test; the secondary,
# in which the script runs, is around them. The target is an address of the router's, which answers whoever asks.
NET = '''
mount -t tmpfs tmpfs /run
on() { nsenter --net=/run/netns/$1 "${@:2}"; }
ip link set lo up
for node in primary router; do ip netns add $node; ip -n $node link set lo up; done
ip -n router link add segment address 02:00:00:00:00:01 type bridge
ip -n router link set segment up
ip -n router address add 10.0.0.1/24 dev segment
ip -n router address add 203.0.113.20/32 dev lo
ip -n router address add 203.0.113.21/32 dev lo
ip link add eth0 address 02:00:00:00:00:0b netns primary type veth peer name primary netns router
ip link add eth0 address 02:00:00:00:00:0c type veth peer name secondary netns router
for port in primary secondary; do ip -n router link set $port master segment up; done
ip -n primary address add 10.0.0.11/24 dev eth0
ip -n primary link set eth0 up
ip -n primary route add default via 10.0.0.1
ip address add 10.0.0.12/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.0.1
for node in primary router; do on $node tee /proc/sys/net/ipv4/ip_forward <<<1 >/dev/null; done
on primary nft -f - <<END
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname eth0 ip saddr 10.0.0.0/24 fib saddr type != local masquerade
    }
}
table ip filter {
    chain forward {
        type filter hook forward priority 0
    }
}
END
'''
SCRIPT = '''
import ctypes, os, resource, select, socket, struct, sys, threading, time
import nat_monitor as m
TARGET, PEER, PEER_MAC = "203.0.113.20", "10.0.0.11", bytes.fromhex("02000000000b")
OWN_MAC, ROUTER_MAC = bytes.fromhex("02000000000c"), bytes.fromhex("020000000001")
probe, sent = m.Probe(0.4), []
send = m.Ping.send
def counted(self, connection):
    tag = send(self, connection)
    if isinstance(self, m.Detour):
        sent.append(tag)
    return tag
m.Ping.send = counted
def once(through=PEER, target=TARGET):
    started = time.monotonic()
    try:
        seconds, beside = came = probe(target, through)
    except m.OwnFault as fault:
        return {"fault": str(fault), "kind": type(fault).__name__}
    return {"seconds": seconds, "beside": beside, "words": str(came), "taken": time.monotonic() - started}
def run(command):
    assert os.system(command) == 0
def within(node, *kind):
    """Open a socket in the network of another node."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as here, open(f"/run/netns/{node}") as there:
        assert libc.setns(there.fileno(), 0) == 0
        try:
            return socket.socket(*kind)
        finally:
            assert libc.setns(here.fileno(), 0) == 0
def wire(node, device):
    """Open a socket that reads and writes the frames on a device of a node, as they are."""
    opened = within(node, socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.bind((device, 0x800))
    opened.settimeout(5)
    return opened
def frame(tag, kind=0, source=TARGET, mac=PEER_MAC, to=OWN_MAC, options=b"", protocol=1):
    head = struct.pack("!BBH", kind, 0, 0) + tag
    message = struct.pack("!BBH", kind, 0, m.checksum(head)) + tag
    ip = [0x45 + len(options) // 4, 0, 20 + len(options) + len(message), 7, 0, 64, protocol, 0,
          socket.inet_aton(source), socket.inet_aton("10.0.0.12")]
    shape = "!BBHHHBBH4s4s"
    ip[7] = m.checksum(struct.pack(shape, *ip) + options)
    return to + mac + bytes([8, 0]) + struct.pack(shape, *ip) + options + message
def changed(tag, bit):
    return struct.pack("!I", struct.unpack("!I", tag)[0] ^ 1 << bit)
def answered_by(forge, node="primary", device="eth0"):
    """Probe, while the frame that `forge` makes of the first request's numbers is sent by the node."""
    with wire(node, device) if node else socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        if not node:
            out.bind(("eth0", 0x800))
        def answer():
            while not sent:
                time.sleep(0.005)
            out.send(forge(sent[0]))
        thread = threading.Thread(target=answer)
        thread.start()
        result = once()
        thread.join()
    return result
'''
NO_REDIRECTS = 'on primary tee /proc/sys/net/ipv4/conf/{all,eth0}/send_redirects <<<0 >/dev/null\n'
NO_FORWARDING = 'on primary tee /proc/sys/net/ipv4/ip_forward <<<0 >/dev/null\n'
DARK = {
    'forwarding off': NO_FORWARDING,
    'forwarding dropped': 'on primary nft add rule ip filter forward drop\n',
    # Redirects, which are limited together with errors, would leave no room for the latter.
    'forwarding rejected': f'{NO_REDIRECTS}on primary nft add rule ip filter forward reject with icmp net-prohibited\n',
    'no route': 'ip -n primary route delete default\n',
    'egress dead': 'on primary nft insert rule ip nat postrouting drop\n',
}
MUTE_TO_THE_SECONDARY = '''
on router nft 'add table ip t; add chain ip t i { type filter hook input priority 0; }'
on router nft add rule ip t i ip saddr 10.0.0.12 ip daddr 203.0.113.20 drop
'''


def inside(script: str, setup: str = '') -> Any:
    """Run the script behind SCRIPT in the secondary, in such a net, and return what it left in `out`."""
    user = [] if os.geteuid() == 0 else ['--user', '--map-root-user']
    unshare = ['unshare', *user, '--net', '--mount']
    environment = {**os.environ, 'PATH': os.environ['PATH'] + ':/usr/sbin:/sbin'}
    trial = subprocess.run([*unshare, 'ip', 'link', 'add', 'type', 'bridge'], stderr=subprocess.PIPE, text=True,
                           env=environment)
    if trial.returncode:
        lacking = pytest.fail if os.environ.get('CI') else pytest.skip
        lacking(f'no network namespaces with bridges here: {trial.stderr.strip()}')
    command = f'set -e\n{NET}{setup}exec "$0" -c "$1"'
    hear = 'm.Ping(2.0)(PEER)\n'  # the monitor's pings keep the peer's MAC address known
    done = subprocess.run([*unshare, 'bash', '-c', command, sys.executable,
                           f'import json\n{SCRIPT}{hear}{script}\nprint(json.dumps(out))'],
                          cwd=ROOT, text=True, timeout=60, stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 0
    return json.loads(done.stdout)


def test_a_packet_through_a_peer_that_forwards_and_translates_comes_back() -> None:
    result, requests = inside('probe.timeout = 40.0; out = [once(), len(sent)]')

    assert 0.0 < result['seconds'] < 40.0 and result['beside'] == '' and requests == 1
    assert result['words'] == f'came back in {result["seconds"] * 1000:.1f} ms'


@pytest.mark.parametrize('setup', DARK.values(), ids=DARK)
def test_a_peer_that_forwards_nothing_is_a_miss_that_lasts_the_timeout(setup: str) -> None:
    result, requests = inside('out = [once(), len(sent)]', setup)

    assert result['seconds'] is None and result['beside'] == '' and result['words'] == 'did not come back'
    assert requests == 6 and result['taken'] >= 0.4


def test_an_untranslated_packet_is_answered_beside_the_peer() -> None:
    result = inside('out = once()', 'on primary nft flush ruleset\n')

    assert result['seconds'] is None and result['beside'] == '02:00:00:00:00:01' and result['taken'] >= 0.4
    assert result['words'] == 'came back beside it, from 02:00:00:00:00:01'


def test_the_probe_recovers_with_the_peer() -> None:
    first, second = inside('''
first = once()
run("nsenter --net=/run/netns/primary sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'")
out = [first, once()]''', NO_FORWARDING)

    assert first['seconds'] is None and second['seconds'] is not None


def test_a_peer_in_another_subnet_cannot_be_probed() -> None:
    elsewhere = 'ip -n router address add 10.0.5.11/32 dev lo\n'
    [heard, result] = inside('heard = m.Ping(0.4)("10.0.5.11"); out = [heard, once("10.0.5.11")]', elsewhere)

    assert heard and result == {'fault': 'the MAC address of 10.0.5.11 is not known here', 'kind': 'NoNeighbour'}


def test_a_peer_that_does_not_answer_arp_cannot_be_probed() -> None:
    table, result = inside('''
heard = m.Ping(0.4)("10.0.0.99")
out = [open("/proc/net/arp").read(), once("10.0.0.99")]''')

    assert '10.0.0.99' in table and result['kind'] == 'NoNeighbour'


def test_what_the_peer_gets_is_an_ordinary_small_packet() -> None:
    mac, packets = inside('''
with wire("primary", "eth0") as seen:
    frames = []
    for _ in range(3):
        once()
        frames.append(seen.recv(2048))
        seen.recv(2048)  # the answer
out = [frames[0][:12].hex(), [[*one[14:]] for one in frames]]''', NO_REDIRECTS)

    assert mac == '02000000000b02000000000c'
    for packet in packets:
        assert packet[:4] == [0x45, 0, 0, len(packet)] and len(packet) == 28
        assert packet[6:10] == [0, 0, 64, 1]  # may be fragmented, is no fragment; 64 hops; ICMP
        assert packet[12:20] == [10, 0, 0, 12, 203, 0, 113, 20]
        words = [packet[i] * 256 + packet[i + 1] for i in range(0, 20, 2)]
        assert sum(words) % 0xFFFF == 0
    assert len({(packet[4], packet[5]) for packet in packets}) == 3


def test_the_source_is_the_address_on_the_interface_that_leads_to_the_peer() -> None:
    source = inside('''
run("ip link add eth1 type veth peer name eth2; ip link set eth1 up")
run("ip address add 10.0.7.12/24 dev eth1; ip route add 10.0.0.11 dev eth1")
with wire("primary", "eth0") as seen:
    once()
    out = [*seen.recv(2048)[26:30]]''')

    assert source == [10, 0, 0, 12]


@pytest.mark.parametrize('forge', [
    'frame(changed(tag, 16))',                      # another program's ping
    'frame(changed(tag, 4))',                       # another request
    'frame(tag, kind=8)',                           # a request
    'frame(tag, kind=3)',                           # an error
    'frame(tag, source="203.0.113.21")',            # of another host
    'frame(tag, protocol=17)',                      # UDP
    'frame(tag)[:38]',                              # cut off within the numbers
    'frame(tag)[:30]',                              # within the IP header
    'frame(tag, to=bytes.fromhex("020000000099"))'  # meant for another host
])
def test_only_replies_to_these_requests_count(forge: str) -> None:
    result = inside(f'out = answered_by(lambda tag: {forge})', NO_FORWARDING)

    assert result['seconds'] is None and result['beside'] == ''


def test_an_answer_to_an_earlier_request_of_the_probe_counts() -> None:
    result = inside('''
def forge(tag):
    while len(sent) < 3:
        time.sleep(0.005)
    return frame(tag)
probe.timeout = 2.0
out = answered_by(forge)''', NO_FORWARDING)

    assert result['seconds'] >= 2.0 * 2 / 6


def test_an_answer_with_ip_options_counts() -> None:
    result = inside('out = answered_by(lambda tag: frame(tag, options=bytes([1] * 8)))', NO_FORWARDING)

    assert result['seconds'] is not None


def test_an_answer_from_another_mac_is_noted_and_does_not_count() -> None:
    result = inside('''
out = answered_by(lambda tag: frame(tag, mac=bytes.fromhex("0200000000aa")), "router", "secondary")''', NO_FORWARDING)

    assert result['seconds'] is None and result['beside'] == '02:00:00:00:00:aa'


def test_an_answer_to_something_else_from_another_mac_is_not_noted() -> None:
    result = inside('''
out = answered_by(lambda tag: frame(changed(tag, 16), mac=ROUTER_MAC), "router", "secondary")''', NO_FORWARDING)

    assert result['seconds'] is None and result['beside'] == ''


def test_the_answer_through_the_peer_counts_though_one_came_beside_it_before() -> None:
    result = inside('''
with wire("router", "secondary") as out_of_router:
    def forge(tag):
        out_of_router.send(frame(tag, mac=ROUTER_MAC))
        return frame(tag)
    out = answered_by(forge)''', NO_FORWARDING)

    assert result['seconds'] is not None


@pytest.mark.parametrize('mac', ['PEER_MAC', 'OWN_MAC'])
def test_what_this_host_sends_itself_does_not_count(mac: str) -> None:
    result = inside(f'out = answered_by(lambda tag: frame(tag, mac={mac}, to=ROUTER_MAC), None)', NO_FORWARDING)

    assert result['seconds'] is None and result['beside'] == ''


def test_a_flood_of_other_traffic_is_dropped_in_the_kernel() -> None:
    woken, heard = inside('''
detour = m.Detour(0.4, PEER)
with socket.socket(*m.Detour.socket_kind) as connection, wire("primary", "eth0") as out_of_primary:
    detour.aim(connection, TARGET)
    for _ in range(2000):
        for other in (dict(kind=8), dict(kind=3), dict(kind=5), dict(source="10.0.0.11"), dict(protocol=17)):
            out_of_primary.send(frame(b"abcd", **other))
    woken = select.select([connection], [], [], 0.3)[0] != []
    out_of_primary.send(frame(b"abcd"))
    out = [woken, select.select([connection], [], [], 5)[0] != []]''')

    assert not woken and heard


def test_nothing_is_heard_before_the_filter_is_in_place() -> None:
    woken = inside('''
class Late(m.Detour):
    def aim(self, connection, address):
        time.sleep(0.3)
        super().aim(connection, address)
with socket.socket(*m.Detour.socket_kind) as connection, wire("primary", "eth0") as out_of_primary:
    threading.Timer(0.1, lambda: [out_of_primary.send(frame(b"abcd", kind=8)) for _ in range(50)]).start()
    Late(0.4, PEER).aim(connection, TARGET)
    out = select.select([connection], [], [], 0.3)[0] != []''')

    assert not woken


def test_an_interface_that_goes_down_is_a_fault_of_our_own() -> None:
    result = inside('''
transmit = m.Detour.transmit
def cut(self, connection, request):
    run("ip link set eth0 down")
    transmit(self, connection, request)
m.Detour.transmit = cut
out = once()''')

    assert result == {'fault': 'Network is down', 'kind': 'OwnFault'}


def test_without_a_peer_the_probe_takes_the_own_route() -> None:
    own, none, requests = inside('''
own = once(None)
run("ip route delete default")
out = [own, once(None), len(sent)]''', NO_FORWARDING)

    assert own['seconds'] is not None and requests == 0
    assert none == {'fault': 'Network is unreachable', 'kind': 'OwnFault'}


@pytest.mark.parametrize('setup', DARK.values(), ids=DARK)
def test_at_the_same_time_the_own_route_answers_and_the_peer_does_not(setup: str) -> None:
    through, own, peer = inside('''
kept = {}
def keep(name, call, *values):
    kept[name] = [call(*values) for _ in range(3)]
threads = [threading.Thread(target=keep, args=one) for one in
           (("through", once), ("own", once, None), ("own", once, None), ("peer", m.Ping(0.4), PEER))]
for thread in threads: thread.start()
for thread in threads: thread.join()
out = [kept["through"], kept["own"], kept["peer"]]''', setup)

    assert [one['seconds'] for one in through] == [None] * 3 and not any(one['beside'] for one in through)
    assert all(one.get('seconds') is not None for one in own) and peer == [True] * 3


def test_at_the_same_time_the_peer_answers_and_the_own_route_does_not() -> None:
    through, own = inside('''
kept = []
thread = threading.Thread(target=lambda: kept.append(once(None)))
thread.start()
through = []
while thread.is_alive():
    through.append(once())
out = [through, kept[0]]''', MUTE_TO_THE_SECONDARY)

    assert own['seconds'] is None
    assert len(through) > 1 and all(one['seconds'] is not None for one in through)


def test_an_error_that_the_peer_sends_is_none_of_the_own_route() -> None:
    own = inside('''
kept = []
thread = threading.Thread(target=lambda: kept.append(once(None)))
thread.start()
time.sleep(0.05)
once()
thread.join()
out = kept[0]''', DARK['forwarding rejected'] + MUTE_TO_THE_SECONDARY)

    assert 'fault' not in own and own['seconds'] is None and own['taken'] >= 0.4


def test_a_suspended_process_finds_the_answer_that_came_meanwhile() -> None:
    result = inside('''
transmit = m.Detour.transmit
def suspended(self, connection, request):
    transmit(self, connection, request)
    time.sleep(1.5)
m.Detour.transmit = suspended
out = once()''')

    assert result['seconds'] >= 1.5
