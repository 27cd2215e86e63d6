"""Probing with real packets: two instances and the router of their subnet, each in a network namespace."""
from __future__ import annotations

from typing import Any

import pytest

from tests.unit import namespace

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
import ctypes, os, select, socket, struct, threading, time
import nat_monitor as m
TARGET, PEER, PEER_MAC = "203.0.113.20", "10.0.0.11", bytes.fromhex("02000000000b")
OWN_MAC, ROUTER_MAC = bytes.fromhex("02000000000c"), bytes.fromhex("020000000001")
sent, Plain = [], socket.socket
class Counted(Plain):
    def sendto(self, packet, to):
        super().sendto(packet, to)
        sent.extend([packet[24:28]] * (self.family == socket.AF_PACKET))
socket.socket = Counted
def once(through=PEER, target=TARGET, timeout=0.4):
    started = time.monotonic()
    try:
        came = m.send_ping(timeout, target, through=through)
    except (m.OwnFault, m.NoAnswer) as fault:
        return {"fault": str(fault), "kind": type(fault).__name__}
    return {"came": came, "taken": time.monotonic() - started}
def run(command):
    assert os.system(command) == 0
def wire(node, device):
    """Open a socket that reads and writes the frames on a device of a node, as they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = "/proc/self/ns/net" if node == "secondary" else f"/run/netns/{node}"
    with open("/proc/self/ns/net") as here, open(there) as there:
        assert libc.setns(there.fileno(), 0) == 0
        try:
            opened = Plain(socket.AF_PACKET, socket.SOCK_RAW, 0)
            opened.bind((device, 0x800))
        finally:
            assert libc.setns(here.fileno(), 0) == 0
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
def answered_by(forge, *nodes):
    """Probe, while the frame that `forge` makes of the request's numbers is sent by the nodes in turn."""
    sent.clear()
    wires = {node: wire(node, "secondary" if node == "router" else "eth0") for node in nodes}
    def answer():
        while not sent:
            time.sleep(0.005)
        for node in nodes:
            with wires[node] as out:
                out.send(forge(sent[0]))
    thread = threading.Thread(target=answer)
    thread.start()
    result = once()
    thread.join()
    return result["came"]
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
    hear = 'm.send_ping(2.0, PEER)\n'  # the monitor's pings keep the peer's MAC address known
    return namespace.inside(NET + setup, f'{SCRIPT}{hear}{script}', '--mount')


def test_a_packet_through_a_peer_that_forwards_and_translates_comes_back() -> None:
    result, requests = inside('out = [once(timeout=40.0), len(sent)]')

    assert result['came'] is True and result['taken'] < 40.0 and requests == 1


def test_an_untranslated_packet_which_is_answered_beside_the_peer_is_a_miss() -> None:
    result = inside('out = once()', 'on primary nft flush ruleset\n')

    assert result['came'] is False and result['taken'] >= 0.4


def test_a_peer_in_another_subnet_or_one_that_does_not_answer_arp_cannot_be_probed() -> None:
    heard, elsewhere, table, silent = inside('''
heard = m.send_ping(0.4, "10.0.5.11"), m.send_ping(0.4, "10.0.0.99")
out = [heard, once("10.0.5.11"), open("/proc/net/arp").read(), once("10.0.0.99")]''',
                                             'ip -n router address add 10.0.5.11/32 dev lo\n')

    assert heard == [True, False] and '10.0.0.99' in table
    assert elsewhere == {'fault': 'the MAC address of 10.0.5.11 is not known here', 'kind': 'NoAnswer'}
    assert silent['kind'] == 'NoAnswer'


def test_what_the_peer_gets_is_an_ordinary_small_packet_from_the_interface_that_leads_to_it() -> None:
    frames = inside('''
run("ip link add eth1 type veth peer name eth2; ip link set eth1 up")
run("ip address add 10.0.7.12/24 dev eth1; ip route add 10.0.0.11 dev eth1")
with wire("primary", "eth0") as seen:
    for _ in range(3):
        once()
    out = []
    while len(out) < 3:
        frame = seen.recv(2048)
        if frame[6:12] == OWN_MAC and frame[23] == 1:
            out.append([*frame])''', NO_REDIRECTS)

    for frame in frames:
        packet = frame[14:]
        assert bytes(frame[:6]).hex() == '02000000000b'
        assert packet[:4] == [0x45, 0, 0, len(packet)] and len(packet) == 28
        assert packet[6:10] == [0, 0, 64, 1]  # may be fragmented, is no fragment; 64 hops; ICMP
        assert packet[12:20] == [10, 0, 0, 12, 203, 0, 113, 20]
        assert sum(packet[i] * 256 + packet[i + 1] for i in range(0, 20, 2)) % 0xFFFF == 0
    assert len({(frame[18], frame[19]) for frame in frames}) == 3


FORGED = {
    "another program's ping": ('frame(changed(tag, 16))', 'primary'),
    'another request': ('frame(changed(tag, 4))', 'primary'),
    'a request': ('frame(tag, kind=8)', 'primary'),
    'an error': ('frame(tag, kind=3)', 'primary'),
    'of another host': ('frame(tag, source="203.0.113.21")', 'primary'),
    'UDP': ('frame(tag, protocol=17)', 'primary'),
    'cut off within the numbers': ('frame(tag)[:38]', 'primary'),
    'cut off within the IP header': ('frame(tag)[:30]', 'primary'),
    'with IP options': ('frame(tag, options=bytes([1] * 8))', 'primary'),
    'by another MAC': ('frame(tag, mac=bytes.fromhex("0200000000aa"))', 'router'),
    'by this host itself': ('frame(tag, to=ROUTER_MAC)', 'secondary'),
    'by this host itself, with its MAC': ('frame(tag, mac=OWN_MAC, to=ROUTER_MAC)', 'secondary'),
}


def test_only_replies_to_these_requests_count_and_only_those_that_the_peer_brings() -> None:
    results = inside('out = [' + ', '.join(f'answered_by(lambda tag: {forge}, "{node}")'
                                           for forge, node in FORGED.values()) + ']', NO_FORWARDING)

    assert dict(zip(FORGED, results)) == {name: name == 'with IP options' for name in FORGED}


def test_the_answer_through_the_peer_counts_though_one_came_beside_it_before() -> None:
    result = inside('''
macs = [ROUTER_MAC, PEER_MAC]
out = answered_by(lambda tag: frame(tag, mac=macs.pop(0)), "router", "primary")''', NO_FORWARDING)

    assert result is True


def test_a_flood_of_other_traffic_is_dropped_in_the_kernel_from_the_first_packet_on() -> None:
    woken, heard = inside('''
others = [dict(kind=8), dict(kind=3), dict(kind=5), dict(source="10.0.0.11"), dict(protocol=17)]
class Late(Plain):
    def setsockopt(self, *filter):
        time.sleep(0.3)
        super().setsockopt(*filter)
with wire("primary", "eth0") as out_of_primary:
    def flood():
        while not ends.is_set():
            for other in others:
                out_of_primary.send(frame(b"abcd", **other))
    ends, thread = threading.Event(), threading.Thread(target=flood)
    thread.start()
    socket.socket = Late
    connection, *_ = m.detour(TARGET, PEER)
    socket.socket = Plain
    woken = select.select([connection], [], [], 0.3)[0] != []
    ends.set()
    thread.join()
    out_of_primary.send(frame(b"abcd"))
    out = [woken, select.select([connection], [], [], 5)[0] != []]''')

    assert not woken and heard


def test_an_interface_that_goes_down_is_a_fault_of_our_own() -> None:
    result = inside('''
class Cut(Plain):
    def sendto(self, packet, to):
        run("ip link set eth0 down")
        super().sendto(packet, to)
socket.socket = Cut
out = once()''')

    assert result == {'fault': 'Network is down', 'kind': 'OwnFault'}


def test_without_a_peer_the_probe_takes_the_own_route() -> None:
    own, none, requests = inside('''
own = once(None)
run("ip route delete default")
out = [own, once(None), len(sent)]''', NO_FORWARDING)

    assert own['came'] is True and requests == 0
    assert none == {'fault': 'Network is unreachable', 'kind': 'OwnFault'}


@pytest.mark.parametrize('setup', DARK.values(), ids=DARK)
def test_a_peer_that_forwards_nothing_is_a_miss_though_its_pings_and_the_own_route_are_answered_meanwhile(
        setup: str) -> None:
    through, own, peer, requests = inside('''
kept = {}
def keep(name, call, *values):
    kept[name] = [call(*values) for _ in range(3)]
threads = [threading.Thread(target=keep, args=one) for one in
           (("through", once), ("own", once, None), ("own", once, None), ("peer", m.send_ping, 0.4, PEER))]
for thread in threads: thread.start()
for thread in threads: thread.join()
out = [kept["through"], kept["own"], kept["peer"], len(sent)]''', setup)

    for one in through:
        assert one.pop('taken') >= 0.4 and one == {'came': False}
    assert all(one.get('came') for one in own) and peer == [True] * 3 and requests == 18


def test_at_the_same_time_the_peer_answers_and_the_own_route_does_not() -> None:
    through, own = inside('''
kept = []
thread = threading.Thread(target=lambda: kept.append(once(None)))
thread.start()
through = []
while thread.is_alive():
    through.append(once())
out = [through, kept[0]]''', MUTE_TO_THE_SECONDARY)

    assert own['came'] is False
    assert len(through) > 1 and all(one['came'] for one in through)


def test_an_error_that_the_peer_sends_is_none_of_the_own_route() -> None:
    own = inside('''
kept = []
thread = threading.Thread(target=lambda: kept.append(once(None)))
thread.start()
time.sleep(0.05)
once()
thread.join()
out = kept[0]''', DARK['forwarding rejected'] + MUTE_TO_THE_SECONDARY)

    assert own.get('came') is False and own['taken'] >= 0.4
