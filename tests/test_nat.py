"""Whether a host can NAT: what is said of its rules, routes and switches, and what a real packet does there."""
from __future__ import annotations

import ipaddress
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import pytest

import nat_monitor
from tests.cloud_pair import MASQUERADE, ROUTES
from tests.lab.network import ENVIRONMENT, Node, NodeFailed

OWN, NETWORK, SERVER = '10.0.0.11', '10.0.1.0/24', '8.8.8.8'
LOST, ARRIVES = 0.25, 10.0  # s, after which a connection that must not, or must, be made is given up
HANGS = 100.0  # s, after which a verdict is
FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
JUDGE = '''
import ipaddress, json, sys
import nat_monitor
for line in sys.stdin:
    networks = [ipaddress.IPv4Network(one) for one in line.split()]
    host = nat_monitor.Host('/', networks)
    about = networks[0] if networks else None
    print(json.dumps([*host.forwarding(about), *host.masquerading(about),
                      nat_monitor.nat_fault(line.split())]), flush=True)
'''
CONNECT = f'''
import socket, sys
print(socket.create_connection(('{SERVER}', 80), float(sys.argv[1])).recv(99).decode())
'''
# The router of a VPC: what comes from the private host goes to the NAT host, and comes back by the same interface.
ROUTER = '''
echo 1 >/proc/sys/net/ipv4/ip_forward
for kind in all default; do echo 0 >/proc/sys/net/ipv4/conf/$kind/rp_filter; done
'''
CABLING = f'''
ip address add 10.0.0.1/24 dev nat; ip address add 10.0.1.1/24 dev private; ip address add 100.64.0.1/30 dev internet
for name in nat private internet; do ip link set $name up; done
ip route add {SERVER} via 100.64.0.2
ip route add default via {OWN} table 11; ip rule add iif private lookup 11
'''
AS_AT_BOOT = f'''
nft flush ruleset
ip rule flush; ip rule add pref 32766 lookup main
ip route flush table 77 2>/dev/null || true; ip link del tun0 2>/dev/null || true
ip link set ens5 down; ip address flush dev ens5; ip address add {OWN}/24 dev ens5; ip link set ens5 up
ip route replace default via 10.0.0.1
cd /proc/sys/net/ipv4
for kind in all ens5; do echo 0 >conf/$kind/rp_filter; echo 0 >conf/$kind/send_redirects; done
echo 0 >ip_forward; echo 1 >ip_forward
'''
TUNNEL = 'ip link add tun0 type veth peer name far; ip link set tun0 up; ip link set far up\n'


class World:
    """A private host, a NAT host with one interface, and a server on the internet; the router is between them."""

    def __init__(self) -> None:
        self.router = Node('router', prepare=ROUTER)
        addresses = {'nat': '10.0.0.11/24', 'private': '10.0.1.10/24', 'internet': '100.64.0.2/30'}
        self.nodes = {name: Node(name, self.router) for name in addresses}
        for name, node in self.nodes.items():
            subprocess.run([*self.router.enter('net'), 'ip', 'link', 'add', name, 'type', 'veth', 'peer', 'name',
                            'ens5', 'netns', str(node.pid)], check=True, env=ENVIRONMENT)
        self.router.run('sh', '-ec', CABLING)
        for name, node in self.nodes.items():
            gateway = {'nat': '10.0.0.1', 'private': '10.0.1.1', 'internet': '100.64.0.1'}[name]
            node.run('sh', '-ec', f'ip address add {addresses[name]} dev ens5; ip link set ens5 up\n'
                                  f'ip route add default via {gateway}')
        self.nodes['internet'].run('ip', 'address', 'add', f'{SERVER}/32', 'dev', 'lo')
        self.server = self.nodes['internet'].socket(socket.SOCK_STREAM, SERVER, 80)
        threading.Thread(target=self.serve, daemon=True).start()
        self.judge = subprocess.Popen([*self.nodes['nat'].enter(), sys.executable, '-c', JUDGE], text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      env={**ENVIRONMENT, 'PYTHONPATH': FOLDER})

    def serve(self) -> None:
        """Tell each client the address that it has on the internet."""
        while True:
            try:
                connection, address = self.server.accept()
            except OSError:  # closed
                return
            with connection:
                connection.sendall(address[0].encode())

    def set_up(self, host: str) -> None:
        """Boot the NAT host, then let it run a script, or load rules of nft or of iptables."""
        tool = ['nft', '-f', '-'] if host.startswith('table ') else (
            ['iptables-restore'] if host.startswith('*') else ['sh', '-e'])
        self.nodes['nat'].run('sh', '-ec', AS_AT_BOOT)
        self.nodes['nat'].run(*tool, input=host)

    def judged(self, *networks: str) -> List[Any]:
        """Return whether it forwards and why, whether it masquerades and why, and nat_fault()."""
        assert self.judge.stdin and self.judge.stdout
        print(*networks, file=self.judge.stdin, flush=True)
        assert select.select([self.judge.stdout], [], [], HANGS)[0], 'no verdict'
        told: List[Any] = json.loads(self.judge.stdout.readline())
        return told

    def comes_through(self, patience: float) -> bool:
        """Tell whether the private host reaches the server, which sees it under the NAT host's address."""
        try:
            return self.nodes['private'].run(sys.executable, '-SEc', CONNECT, str(patience)).stdout.strip() == OWN
        except NodeFailed:
            return False

    def close(self) -> None:
        self.judge.kill()
        self.judge.wait()
        for node in (*self.nodes.values(), self.router):
            node.end()
        self.server.close()


@pytest.fixture(scope='module')
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


# Rule sets as they are found on NAT hosts; of each whether it forwards and whether it masquerades.

def nat(*rules: str, more: str = '') -> str:
    return 'table ip nat {\n%s\nchain postrouting {\ntype nat hook postrouting priority srcnat\n%s\n}\n}' % (
        more, '\n'.join(rules))


def forward(*rules: str, policy: str = 'drop', more: str = '') -> str:
    return '%s\ntable inet filter {\n%s\nchain forward {\ntype filter hook forward priority 0; policy %s\n%s\n}\n}' % (
        README, more, policy, '\n'.join(rules))


def iptables(rules: str, forward: str = ':FORWARD ACCEPT [0:0]') -> str:
    """Return what iptables-save shows of rules for nat, and for filter."""
    return f'*nat\n:POSTROUTING ACCEPT [0:0]\n{rules}\nCOMMIT\n*filter\n{forward}\nCOMMIT\n'


README = 'table ip nat { chain postrouting { type nat hook postrouting priority srcnat;\n' \
         'ip saddr 10.0.0.0/16 ip daddr != 10.0.0.0/16 masquerade\n}\n}'
OURS = '-A POSTROUTING -s 10.0.0.0/16 ! -d 10.0.0.0/16 -o ens5 -j MASQUERADE'
DOCKER = '''
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -o docker0 -j DOCKER
-A DOCKER-FORWARD -i docker0 -j ACCEPT
'''.strip()
DOCKER_NAT = ''':DOCKER - [0:0]
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
'''
UFW = '''
:FORWARD DROP [0:0]
:ufw-before-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-after-logging-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-logging-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
'''.strip()
RHEL = ''':FORWARD ACCEPT [0:0]
-A FORWARD -j REJECT --reject-with icmp-host-prohibited'''
FIREWALLD = '''table inet firewalld {
    chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; jump mangle_PREROUTING_ZONES; }
    chain mangle_PREROUTING_ZONES { iifname "ens5" goto mangle_PRE_public
        goto mangle_PRE_public
    }
    chain mangle_PRE_public { return
    }
    chain filter_PREROUTING { type filter hook prerouting priority filter + 10
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain filter_FORWARD { type filter hook forward priority filter + 10
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        ip6 daddr { ::/96, 2002::/24 } reject with icmpv6 type addr-unreachable
        jump filter_FORWARD_ZONES
        reject with icmpx type admin-prohibited
    }
    chain filter_FORWARD_ZONES { iifname "ens5" goto filter_FWD_public
        goto filter_FWD_public
    }
    chain filter_FWD_public { jump filter_FWD_public_allow
        meta l4proto { icmp, ipv6-icmp } accept
    }
    chain filter_FWD_public_allow { %s
    }
    chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; jump nat_POSTROUTING_ZONES; }
    chain nat_POSTROUTING_ZONES { oifname "ens5" goto nat_POST_public
        goto nat_POST_public
    }
    chain nat_POST_public { meta nfproto ipv4 oifname != "lo" masquerade
    }
}'''
MANY = [f'10.{100 + n // 50000}.{n // 250 % 200}.{n % 250},' for n in range(100000)]

CASES = {
    # masquerading
    'as in the README': (README, True, True),
    'no rule': ('true', True, False),
    'the private network alone': (nat('ip saddr 10.0.1.0/24 oifname "ens5" counter masquerade'), True, True),
    'another network': (nat('ip saddr 172.17.0.0/16 masquerade'), True, False),
    'half of the network': (nat('ip saddr 10.0.1.0/25 masquerade'), True, None),
    'a wrong interface': (nat('oifname "eth0" masquerade'), True, False),
    'any other interface': (nat('oifname != "lo" masquerade random,persistent comment "no jump x"'), True, True),
    'neighbours merged to a range': (nat('ip saddr { 10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24 } masquerade'), True, True),
    'sets of networks': (nat('ip saddr { 10.0.1.0/24, 192.168.0.0/16 } ip daddr != { 10.0.0.0/8, 172.16.0.0/12 } '
                             'masquerade'), True, True),
    'a set by name': (nat('ip saddr @not-drop masquerade', more='set not-drop { type ipv4_addr; flags interval\n'
                          'elements = { 10.0.1.0/24 }\n}'), True, None),
    'another protocol': (nat('udp dport 53 masquerade', 'meta l4proto icmp masquerade'), True, False),
    'by mark': (nat('meta mark 1 masquerade'), True, None),
    'by mark elsewhere': (nat('meta mark 1 oifname "lo" masquerade'), True, False),
    'excepted before': (nat('ip saddr 10.0.1.0/24 accept', 'masquerade'), True, False),
    'a chain that returns': (nat('jump ours', 'masquerade', more='chain ours { ip saddr 10.0.1.0/24 return\naccept\n}'),
                             True, True),
    'a chain that is gone to': (nat('goto ours', 'masquerade', more='chain ours { oifname "lo" masquerade\n}'),
                                True, False),
    'a chain by name alone': (nat('jump MASQUERADE', more='chain MASQUERADE { counter\n}'), True, False),
    'by a map': (nat('ip saddr vmap { 10.0.1.0/24 : jump ours, 10.0.2.0/24 : accept }',
                     more='chain ours { masquerade\n}'), True, True),
    'by a map to elsewhere': (nat('ip saddr vmap { 10.0.1.0/24 : accept, 10.0.2.0/24 : return }', 'masquerade'),
                              True, False),
    'SNAT': (nat(f'oifname "ens5" snat to {OWN}'), True, True),
    'SNAT, ports': (nat(f'meta l4proto tcp snat to {OWN}:1024-65535'), True, True),
    'SNAT, inet': (nat(f'snat ip to {OWN} persistent').replace('table ip', 'table inet'), True, True),
    'SNAT, foreign address': (nat('oifname "ens5" snat to 10.0.0.12'), True, False),
    'SNAT, several': (nat('snat to 10.0.0.11-10.0.0.14'), True, None),
    'SNAT, two that disagree': (README + '\n' + nat('snat to 10.0.0.12').replace('ip nat', 'ip other'), True, None),
    'dormant': ('table ip x { flags dormant\nchain f { type filter hook forward priority 0; policy drop; }\n}\n'
                + README, True, True),
    'iptables': (iptables(OURS), True, True),
    'iptables, a comment': (iptables('-A POSTROUTING -m comment --comment "no \\"-j MASQUERADE\\"" -j ACCEPT'),
                            True, False),
    'iptables, SNAT': (iptables(f'-A POSTROUTING -o ens+ -j SNAT --to-source {OWN}'), True, True),
    'iptables, local alone': (iptables('-A POSTROUTING -m addrtype --src-type LOCAL -j MASQUERADE'), True, False),
    'a mark by a map': (nat('meta mark set ip saddr map { 10.0.1.1 : 1 }', 'masquerade'), True, True),
    'but for its own packets': (nat('oifname "ens5" fib saddr type != local masquerade'), True, True),
    'iptables and nft': ("iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\n"
                         'nft add rule ip nat POSTROUTING ip saddr 10.0.1.0/24 masquerade', True, True),
    # forwarding, by rules
    'Docker': (iptables(DOCKER_NAT + OURS, DOCKER), False, True),
    'Docker, DOCKER-USER': (iptables(DOCKER_NAT + OURS, f'{DOCKER}\n-A DOCKER-USER -i ens5 -o ens5 -j ACCEPT'),
                            True, True),
    'ufw': (iptables(OURS, UFW), False, True),
    'ufw, route allow': (iptables(OURS, f'{UFW}\n-A ufw-user-forward -i ens5 -o ens5 -j ACCEPT'), True, True),
    'RHEL': (iptables(OURS, RHEL), False, True),
    'firewalld': (FIREWALLD % '', False, True),
    'firewalld, allowed': (FIREWALLD % 'oifname "ens5" ct state { new, untracked } accept', True, True),
    'policy drop': (forward(), False, True),
    'not the answers': (forward('ip saddr 10.0.1.0/24 accept'), False, True),
    'not the first packet': (forward('ct state established,related accept'), False, True),
    'both': (forward('ct state vmap { established : accept, related : accept, invalid : drop }',
                     'ip saddr 10.0.0.0/16 iifname "ens*" accept'), True, True),
    'neither state nor wrong interface': (forward('ct state != { established, new } drop', 'iifname "eth1" drop',
                                                  policy='accept'), True, True),
    'states of several kinds': (forward('ct state != established,related drop', policy='accept'), None, True),
    'ports': (forward('tcp dport 80 accept', 'ct state established accept'), None, True),
    'a map by name': (forward('ip saddr vmap @where counter', 'ct state established accept',
                              more='map where { type ipv4_addr : verdict\n}'), None, True),
    'a chain without a name': (forward('ip saddr 192.168.0.0/16 jump {\ndrop\n}', policy='accept'), True, True),
    'the original source': (forward('ct original ip saddr 10.0.1.0/24 accept'), None, True),
    'by link layer': (forward('ether type ip drop', policy='accept'), None, True),
    'a large set': (forward('ip saddr @not-accept drop', policy='accept', more='set not-accept { type ipv4_addr\n'
                            f'elements = {{ {" ".join(MANY)} }}\n}}'), None, True),
    'a large set in a rule': (forward(f'ip saddr {{ {" ".join(MANY[::10])} }} drop', policy='accept'), True, True),
    'what decides nothing': (forward('counter comment "we drop all"', 'log prefix "we drop it"', 'meta mark set 1',
                                     'tcp option maxseg size set rt mtu', 'log prefix "no drop" counter accept'),
                             True, True),
    # forwarding, by routes and switches
    'ip_forward 0': (f"echo 0 >/proc/sys/net/ipv4/ip_forward; nft '{README}'", False, True),
    'interface 0': (f"echo 0 >/proc/sys/net/ipv4/conf/ens5/forwarding; nft '{README}'", False, True),
    'interface alone 1': ('echo 0 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/ens5/forwarding\n'
                          f"nft '{README}'", True, True),
    'both halves': (f"{TUNNEL}nft '{README}'; ip route add 0.0.0.0/1 dev tun0; ip route add 128.0.0.0/1 dev tun0",
                    False, True),
    'one half': (f"{TUNNEL}nft '{README}'; ip route add 128.0.0.0/1 dev tun0", None, True),
    'a policy': (f"{TUNNEL}nft '{README}'; ip route add default dev tun0 table 77\n"
                 'ip rule add from 10.0.1.0/24 lookup 77', False, True),
    'a policy for some': (f"{TUNNEL}nft '{README}'; ip route add default dev tun0 table 77\n"
                          'ip rule add from 10.0.1.128/25 lookup 77', None, True),
    'a policy by mark': (f"{TUNNEL}nft '{README}'; ip route add default dev tun0 table 77\n"
                         'ip rule add not fwmark 7 lookup 77\n'
                         "nft 'table ip m { chain c { type filter hook prerouting priority mangle; mark set 7; }; }'",
                         None, True),
    'answers elsewhere': (f"{TUNNEL}nft '{README}'; ip route add 10.0.0.0/21 dev tun0", False, True),
    'strict rp_filter': (f"{TUNNEL}nft '{README}'; ip route add 10.0.0.0/21 dev tun0\n"
                         'echo 1 >/proc/sys/net/ipv4/conf/ens5/rp_filter', False, True),
    'rejected': (f"nft '{README}'; ip rule add iif ens5 unreachable", False, True),
}


@pytest.mark.parametrize('name', CASES)
def test_what_is_said_is_what_a_packet_does(world: World, name: str) -> None:
    host, forwarding, masquerading = CASES[name]

    world.set_up(host)

    forwards, _, masquerades, _, fault = said = world.judged(NETWORK)
    assert (forwards, masquerades) == (forwarding, masquerading), said
    can = False if False in (forwards, masquerades) else None if None in (forwards, masquerades) else True
    assert bool(fault) is (can is False), said
    if can is not None:
        assert world.comes_through(ARRIVES if can else LOST) is can


# What the monitor is told before it knows the private networks

def test_rules_need_not_be_for_the_peer(world: World) -> None:
    world.set_up(nat('ip saddr 10.0.1.0/24 masquerade'))

    _, _, masquerades, words, fault = world.judged('10.0.0.12/32')

    assert (masquerades, words, fault) == (False, 'no rule masquerades 10.0.0.12/32', '')


def test_of_the_peer_the_routes_count(world: World) -> None:
    world.set_up(CASES['both halves'][0])

    assert world.judged('10.0.0.12/32')[4] == 'what comes from 10.0.0.12 to 1.1.1.1 goes by tun0'


@pytest.mark.parametrize('name, fault', [
    ('interface 0', 'net.ipv4.conf.ens5.forwarding is 0'), ('ip_forward 0', 'net.ipv4.ip_forward is 0'),
    ('no rule', 'no rule masquerades the private networks'), ('both halves', ''),
    ('policy drop', 'forwarding is dropped (inet filter forward: policy drop)'),
    ('the private network alone', ''), ('another network', '')])
def test_where_no_network_is_known_only_what_is_so_for_all_is_a_fault(world: World, name: str, fault: str) -> None:
    world.set_up(CASES[name][0])

    assert world.judged()[4] == fault


# Where the tools do not help; these are scripts

@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that forwards and masquerades."""
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    for name, text in (('net/route', ROUTES), ('sys/net/ipv4/ip_forward', '1\n')):
        (tmp_path / 'proc' / name).parent.mkdir(parents=True)
        (tmp_path / 'proc' / name).write_text(text)
    tool(tmp_path, 'nft', f"cat <<'END'\n{MASQUERADE}\nEND\n")
    tool(tmp_path, 'ip', """echo '[{"dev": "ens5"}]'""")
    return tmp_path


def tool(root: Path, name: str, script: str) -> None:
    (root / name).write_text(f'#!/bin/sh\n{script}\n')
    (root / name).chmod(0o755)


def told(root: Path) -> Tuple[Optional[bool], Optional[bool], str]:
    network = ipaddress.IPv4Network(NETWORK)
    host = nat_monitor.Host(str(root), [network])
    return host.forwarding(network)[0], host.masquerading(network)[0], nat_monitor.nat_fault([NETWORK], str(root))


def test_a_host_that_can_nat_has_no_fault(root: Path) -> None:
    assert told(root) == (True, True, '')


@pytest.mark.parametrize('name, script, said', [
    ('ip', 'exit 127', (None, True, '')), ('ip', 'echo "usage: ip"', (None, True, '')),
    ('ip', 'exec sleep 60', (None, True, '')),
    ('nft', 'exit 1', (None, None, ''))])
def test_a_tool_that_fails_or_hangs_leaves_it_unknown(
        root: Path, name: str, script: str, said: Tuple[Optional[bool], Optional[bool], str]) -> None:
    tool(root, name, script)

    assert told(root) == said


def test_without_tools_only_switches_are_known(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('subprocess.run', not_found)

    assert told(root) == (None, None, '')
    (root / 'proc/sys/net/ipv4/ip_forward').write_text('0\n')
    assert told(root) == (False, None, 'net.ipv4.ip_forward is 0')


def not_found(*_: Any, **__: Any) -> None:
    raise FileNotFoundError(2, 'No such file or directory')


def test_rules_of_the_old_iptables_may_be_there_too(root: Path) -> None:
    tool(root, 'nft', 'true')
    (root / 'proc/net/ip_tables_names').write_text('nat\n')

    assert told(root) == (None, None, '')


def test_nothing_odd_keeps_a_monitor_from_its_work_nor_hides_what_interface_leads_out(root: Path) -> None:
    with open(root / 'proc/net/route', 'a') as routes:
        routes.write('* 00000000 00000000 0200 0 0 4278198272 00000000 0 0 0\n')  # an unreachable one besides
    assert told(root) == (True, True, '')
    assert nat_monitor.nat_fault(['no network'], str(root)) == ''


def test_a_thousand_rules_of_which_each_may_be_meant_hide_no_fault(root: Path) -> None:
    rules = '\n'.join(f'\t\tip daddr 45.0.{n // 250}.{n % 250} drop' for n in range(1200))
    tool(root, 'nft', f"cat <<'END'\ntable ip f {{\n\tchain forward {{\n\t\ttype filter hook forward priority 0; "
                      f"policy accept;\n{rules}\n\t}}\n}}\n{MASQUERADE}\nEND\n")
    assert told(root) == (None, True, '')
    (root / 'proc/sys/net/ipv4/ip_forward').write_text('0\n')
    assert told(root) == (False, True, 'net.ipv4.ip_forward is 0')


def test_with_two_default_routes_no_interface_is_ruled_out(root: Path) -> None:
    with open(root / 'proc/net/route', 'a') as routes:
        routes.write('eth1 00000000 0100000A 0003 0 0 200 00000000 0 0 0\n')

    assert told(root) == (None, None, '')


@pytest.mark.parametrize('rule, masquerades', [
    ('oifname "ens5" counter packets 1 bytes 60 xt target "MASQUERADE"', True), ('xt target "SNAT"', None),
    ('xt match "policy" counter packets 0 bytes 0 accept', False),
    ('xt match "comment" xt target "MASQUERADE"', True), ('xt target "LOG"\n\t\tmasquerade', True),
    ('xt match "set" xt target "MASQUERADE"', None), ('queue to 0', None),
    ('oifname "ens5" # xt_MASQUERADE', True), ('# xt_SNAT', None), ('# xt_conntrack masquerade', None),
    ('snat to 10.0.0.11', None)])
def test_an_nft_that_does_not_know_the_words_of_iptables_is_understood(
        root: Path, rule: str, masquerades: Optional[bool]) -> None:
    tool(root, 'nft', "cat <<'END'\n%s\nEND\n" % re.sub('oifname.*', rule, MASQUERADE))

    assert told(root)[1] is masquerades
