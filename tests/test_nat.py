"""Whether a host masquerades and forwards what comes from private subnets, by what the tools list."""
from __future__ import annotations

import ipaddress
import os
from typing import Any, Dict, List, Optional

import pytest

import nat_monitor
from tests.cloud_pair import MASQUERADE, NO_RULES, ROUTES, match, nft

NETWORK = ipaddress.IPv4Network('10.0.1.0/24')
TO_NAT: Dict[str, Any] = {'masquerade': None}
ACCEPT: Dict[str, Any] = {'accept': None}
DROP: Dict[str, Any] = {'drop': None}
VPC_OUT = [match('ip saddr', '10.0.0.0/16'), match('ip daddr', '10.0.0.0/16', op='!=')]
RANGE = match('ip saddr', {'range': ['10.0.1.0', '10.0.2.255']})
STATES = {'vmap': {'key': {'ct': {'key': 'state'}}, 'data': {'set': [
    ['established', ACCEPT], ['related', ACCEPT], ['invalid', DROP]]}}}
COMMENT = '-A POSTROUTING -o ens5 -m comment --comment "no -j MASQUERADE" -j ACCEPT'
DOCKER = '''*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKER-FORWARD - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT'''
UFW = '''*filter
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
COMMIT'''


def iptables(*rules: str) -> str:
    """Return what iptables-save shows of a nat table with these rules."""
    return '\n'.join(['*nat', ':POSTROUTING ACCEPT [0:0]', *rules, 'COMMIT'])


def forward(*rules: str) -> str:
    """Return what it shows of a filter table that drops what these rules do not accept."""
    return '\n'.join(['*filter', ':FORWARD DROP [0:0]', *rules, 'COMMIT'])


def host(tables: str = '', tool: str = NO_RULES) -> nat_monitor.Host:
    interface, elsewhere = nat_monitor.read_routes(ROUTES)
    return nat_monitor.Host('1', interface, False, elsewhere, {
        **nat_monitor.read_iptables(tables), **nat_monitor.read_nft(tool)})


@pytest.mark.parametrize('rules, sure', [
    ([[*VPC_OUT, TO_NAT]], True),
    ([[TO_NAT]], True),
    ([[match('oifname', 'ens5'), {'counter': None}, {'snat': {'addr': '10.0.0.4'}}]], True),
    ([[match('oifname', 'ens*'), match('meta l4proto', 'tcp', 'udp'), TO_NAT]], True),
    ([[match('oifname', 'lo', op='!='), TO_NAT]], True),
    ([[match('ip saddr', '10.0.2.0/24', '10.0.1.0/24'), TO_NAT]], True),
    ([[RANGE, TO_NAT]], True),
    ([[match('ip saddr', '10.0.1.0/25'), TO_NAT]], None),  # half of it
    ([[match('ip saddr', '@private'), TO_NAT]], None),
    ([[match('ip daddr', '93.184.0.0/16'), TO_NAT]], None),  # all that they may ask for, perhaps
    ([[match('ip saddr', '@guests', op='!='), TO_NAT]], None),
    ([[match('meta mark', 1), TO_NAT]], None),
    ([[{'limit': {'rate': 3}}, TO_NAT]], None),
    ([[{'xt': {'type': 'target', 'name': 'MASQUERADE'}}]], None),
    ([[match('ct status', 'snat', op='in'), ACCEPT]], False),
    ([[match('ip saddr', '172.17.0.0/16'), TO_NAT]], False),
    ([[match('ip saddr', '10.0.0.0/16', op='!='), TO_NAT]], False),
    ([[match('ip daddr', '10.0.0.0/16'), TO_NAT]], False),
    ([[match('oifname', 'eth1'), TO_NAT]], False),
    ([[match('ip6 saddr', 'fd00::/8'), TO_NAT]], False),
    ([[match('udp dport', 53), TO_NAT]], False),
    ([[match('ip saddr', '10.0.1.0/24'), ACCEPT], [TO_NAT]], False),
    ([[match('ip saddr', '10.0.1.0/24'), {'return': None}], [TO_NAT]], False),
    ([], False),
])
def test_a_rule_of_nftables_masquerades_the_private_subnet_or_not(rules: Any, sure: Optional[bool]) -> None:
    assert host(tool=nft(*rules)).masquerading(NETWORK)[0] is sure


@pytest.mark.parametrize('rules, sure', [
    ([[{'jump': {'target': 'masquerade'}}]], False),  # a name tells nothing
    ([[{'jump': {'target': 'masquerade'}}], [TO_NAT]], True),
    ([[{'goto': {'target': 'masquerade'}}], [TO_NAT]], False),
])
def test_a_chain_is_followed(rules: Any, sure: bool) -> None:
    listing = nft(*rules, masquerade=[[match('oifname', 'lo'), TO_NAT]])

    assert host(tool=listing).masquerading(NETWORK)[0] is sure


@pytest.mark.parametrize('hook, table', [('prerouting', 'nat'), ('output', 'nat'), ('postrouting', 'filter')])
def test_masquerading_stands_in_a_postrouting_hook(hook: str, table: str) -> None:
    assert host(tool=nft([TO_NAT], hook=hook, table=table)).masquerading(NETWORK)[0] is False


@pytest.mark.parametrize('rule, sure', [
    ('-A POSTROUTING -o ens5 -j SNAT --to-source 10.0.0.4', True),
    ('-A POSTROUTING -s 10.0.0.0/16 ! -d 10.0.0.0/16 -o ens+ -m comment --comment "! -s x" -j MASQUERADE', True),
    ('-A POSTROUTING -m iprange --src-range 10.0.0.0-10.0.3.255 -j MASQUERADE --random-fully', True),
    ('-A POSTROUTING -m set --match-set private src -j MASQUERADE', None),
    ('-A POSTROUTING ! -s 10.0.1.7/32 -j MASQUERADE', None),
    ('-A POSTROUTING -j NETMAP --to 10.9.0.0/16', None),
    ('-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE', False),
    ('-A POSTROUTING -m addrtype --src-type LOCAL -o docker0 -j MASQUERADE', False),
    ('-A POSTROUTING -o eth1 -j MASQUERADE', False),
    (COMMENT, False),
    (':MASQUERADED - [0:0]\n-A POSTROUTING -j MASQUERADED', False),
    (':OURS - [0:0]\n-A OURS -o ens5 -j RETURN\n-A OURS -j MASQUERADE\n-A POSTROUTING -j OURS', False),
    (':OURS - [0:0]\n-A OURS -o lo -j RETURN\n-A OURS -j MASQUERADE\n-A POSTROUTING -g OURS', True),
])
def test_a_rule_of_iptables_masquerades_the_private_subnet_or_not(rule: str, sure: Optional[bool]) -> None:
    assert host(iptables(rule)).masquerading(NETWORK)[0] is sure


@pytest.mark.parametrize('tables, sure', [
    ('', True), (DOCKER, False), (UFW, False), (forward(), False),
    (forward('-A FORWARD -s 10.0.1.0/24 -j ACCEPT'), False),  # but not the answers
    (forward('-A FORWARD -s 10.0.0.0/16 -j ACCEPT', '-A FORWARD -m state --state ESTABLISHED -j ACCEPT'), True),
    (forward('-A FORWARD -i ens5 -o ens5 -j ACCEPT'), True),
    (forward('-A FORWARD -i eth1 -j ACCEPT'), False),
    (forward('-A FORWARD -p tcp -m tcp --dport 443 -j ACCEPT'), None),
    (forward('-A FORWARD -d 93.184.0.0/16 -j ACCEPT', '-A FORWARD -m state --state ESTABLISHED -j ACCEPT'), None),
    (DOCKER.replace('-A DOCKER-USER -j RETURN', '-A DOCKER-USER -i ens5 -o ens5 -j ACCEPT'), True),
    (DOCKER.replace('FORWARD DROP', 'FORWARD ACCEPT'), True),
    (UFW.replace('COMMIT', '-A ufw-user-forward -s 10.0.0.0/16 -j ACCEPT\nCOMMIT'), True),
    (UFW.replace('FORWARD DROP', 'FORWARD ACCEPT'), True),
])
def test_iptables_drops_what_is_to_be_forwarded_or_not(tables: str, sure: Optional[bool]) -> None:
    assert host(tables).forwarding(NETWORK)[0] is sure


@pytest.mark.parametrize('rules, policy, sure', [
    ([], 'drop', False), ([], 'accept', True),
    ([[match('ct state', 'established', 'related'), ACCEPT], [match('iifname', 'ens5'), ACCEPT]], 'drop', True),
    ([[match('ct state', 'established', 'related', op='in'), ACCEPT]], 'drop', False),
    ([[STATES], [match('ip saddr', '10.0.0.0/16'), ACCEPT]], 'drop', True),
    ([[STATES]], 'drop', False), ([[STATES]], 'accept', True),
    ([[match('iifname', 'ens5'), {'reject': None}]], 'accept', False),
    ([[match('ip saddr', '@bad'), DROP]], 'accept', None),
    ([[match('meta nfproto', 'ipv6'), DROP]], 'accept', True),
    ([[{'queue': None}]], 'accept', None),
])
def test_nftables_drops_what_is_to_be_forwarded_or_not(rules: Any, policy: str, sure: Optional[bool]) -> None:
    listing = nft(*rules, table='filter', hook='forward', policy=policy)

    assert host(tool=listing).forwarding(NETWORK)[0] is sure


@pytest.mark.parametrize('more, interface, elsewhere', [
    ('', 'ens5', ['172.17.0.0/16']),
    ('eth1 00000000 0100000A 0003 0 0 200 00000000 0 0 0\n', '', []),  # who knows where it leaves?
    ('tun0 00000000 00000000 0001 0 0 0 00000080 0 0 0\n', 'ens5', ['172.17.0.0/16']),  # not all hosts there are
])
def test_the_interface_is_known_where_there_is_one(more: str, interface: str, elsewhere: List[str]) -> None:
    found, routed = nat_monitor.read_routes(ROUTES + more)

    assert (found, [str(network) for network in routed]) == (interface, elsewhere)


def test_without_a_known_interface_no_rule_is_ruled_out() -> None:
    nobody = host(tool=nft([match('oifname', 'eth1'), TO_NAT]))._replace(interface='')

    assert nobody.masquerading(NETWORK)[0] is None


# All of it, for the monitor

@pytest.fixture
def root(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A host that forwards and masquerades; its tools are scripts."""
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    put(tmp_path, 'proc/sys/net/ipv4/ip_forward', '1\n')
    put(tmp_path, 'proc/net/route', ROUTES)
    tools(tmp_path, MASQUERADE)
    return str(tmp_path)


def put(root: Any, name: str, text: str) -> None:
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as file:
        file.write(text)
    os.chmod(path, 0o755)


def tools(root: Any, listing: str, tables: str = '') -> None:
    for name, text in (('nft', listing), ('iptables-save', tables)):
        put(root, name, f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")


def test_a_host_that_can_nat_has_no_fault(root: str) -> None:
    assert nat_monitor.nat_fault(root=root) == nat_monitor.nat_fault(['10.0.1.0/24', '10.0.2.0/24'], root) == ''


@pytest.mark.parametrize('listing, tables, networks, words', [
    (NO_RULES, '', [], 'no rule masquerades the private networks'),
    (NO_RULES, '', ['10.0.1.0/24'], 'no rule masquerades 10.0.1.0/24'),
    (NO_RULES, iptables('-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE'), [],
     'no rule masquerades the private networks'),  # docker0 has that network
    (NO_RULES, iptables('-A POSTROUTING -s 10.0.0.0/16 -j MASQUERADE'), [], ''),  # who knows the networks?
    (NO_RULES, iptables('-A POSTROUTING -s 10.0.0.0/16 -j MASQUERADE'), ['10.0.1.0/24', '10.9.0.0/24'],
     'no rule masquerades 10.9.0.0/24'),
    (MASQUERADE, DOCKER, [], 'forwarding is dropped (iptables filter FORWARD: policy drop)'),
    (MASQUERADE, forward('-A FORWARD -p tcp -m tcp --dport 443 -j ACCEPT'), [], ''),
    ('no JSON', '', [], ''), ('{"nftables": [{"rule": 1}]}', '', [], ''), (MASQUERADE, '-A x', [], ''),
    (MASQUERADE, '', ['no network'], ''),
])
def test_a_fault_is_told_where_it_is_sure(root: str, listing: str, tables: str, networks: List[str], words: str
                                          ) -> None:
    tools(root, listing, tables)

    assert nat_monitor.nat_fault(networks, root) == words


def test_what_iptables_keeps_in_nftables_is_read_from_iptables(root: str) -> None:
    xt = nft([{'xt': {'type': 'target', 'name': 'MASQUERADE'}}]).replace('"postrouting"', '"POSTROUTING"', 1)
    tables = '# Generated by iptables-save v1.8.9 (nf_tables)\n'
    tools(root, xt.replace('"chain": "postrouting"', '"chain": "POSTROUTING"'),
          tables + iptables('-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE'))

    assert nat_monitor.nat_fault(['10.0.1.0/24'], root) == 'no rule masquerades 10.0.1.0/24'


def test_rules_of_the_old_iptables_may_be_there_too(root: str) -> None:
    put(root, 'nft', f"#!/bin/sh\necho '{NO_RULES}'\n")
    put(root, 'iptables-save', '#!/bin/sh\necho "# Warning: iptables-legacy tables present" >&2\n')

    assert nat_monitor.nat_fault(['10.0.1.0/24'], root) == ''
    assert nat_monitor.look_at_host(root).masquerading(NETWORK) == (
        None, 'this may be for 10.0.1.0/24, or not: iptables-legacy has rules, too')


def test_tools_that_hang_or_fail_are_no_fault_and_hold_nobody_up(root: str) -> None:
    put(root, 'nft', '#!/bin/sh\nexec sleep 1000\n')
    put(root, 'iptables-save', '#!/bin/sh\nexit 4\n')

    assert nat_monitor.nat_fault(['10.0.1.0/24'], root) == ''


def test_nothing_is_listed_where_nothing_is_forwarded(root: str) -> None:
    put(root, 'proc/sys/net/ipv4/ip_forward', '0\n')
    put(root, 'nft', f'#!/bin/sh\ntouch {root}/asked\n')

    assert nat_monitor.nat_fault(root=root) == 'net.ipv4.ip_forward is 0'
    assert not os.path.exists(f'{root}/asked')


def test_without_any_tool_nobody_can_tell(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat_monitor, 'list_with', lambda *_: '')

    assert nat_monitor.nat_fault(root=root) == ''
    assert nat_monitor.look_at_host(root).unlisted == 'neither nft nor iptables-save is installed'
