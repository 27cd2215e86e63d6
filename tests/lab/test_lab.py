"""The lab itself: the network serves, EC2 behaves like EC2, what is injected happens, nothing is left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from tests.lab import ECHO, ELASTIC_IP, ENDPOINT, Instance, Lab
from tests.lab.ec2 import SECONDARY_ADDRESS
from tests.lab.lab import GUARD
from tests.lab.network import GATEWAY, INSTANCE_ADDRESSES, mac
from tests.lab.traffic import Connections

pytestmark = pytest.mark.lab

# A stand-in for the monitor: it says that it runs, and how it is told to end.
STAND_IN = '''#!/bin/sh
exec 2>/dev/null
trap 'echo terminated; exit 0' TERM
echo running
while :; do sleep 0.05; done
'''
# What an instance asks EC2 with: one call for each line that it reads, in one process and so on kept connections.
CLIENT = '''
import json, os, sys, boto3
from botocore.config import Config; from botocore.exceptions import BotoCoreError, ClientError
config = Config(connect_timeout=4, read_timeout=4, retries={'mode': 'standard', 'total_max_attempts': 1})
url = os.environ['AWS_ENDPOINT_URL_EC2']
ec2 = boto3.client('ec2', region_name='us-east-1', endpoint_url=url, config=config)
for line in sys.stdin:
    action, parameters = json.loads(line)
    try:
        print(json.dumps(getattr(ec2, action)(**parameters), default=str), flush=True)
    except ClientError as error:
        print(json.dumps(error.response['Error']['Code']), flush=True)
    except BotoCoreError as error:
        print(json.dumps(type(error).__name__), flush=True)
'''
QUICK = {'PING_TIMEOUT': 0.4, 'WAIT_BETWEEN_PINGS': 0.4}  # of a monitor
ROUTE: Dict[str, Any] = {'DestinationCidrBlock': '0.0.0.0/0'}


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / 'nat_monitor.py'
    path.write_text(STAND_IN)
    return path


@pytest.fixture
def lab(stand_in: Path) -> Iterator[Lab]:
    """A lab in which a stand-in runs instead of the monitor, and all is quick."""
    with Lab(monitor=stand_in, latency=0.0, pending=0.2, boot=0.3, job_delay=0.1, stop=0.4, checks=0.2, impaired=0.5,
             new_public_address=0.3) as lab:
        serves(lab, ELASTIC_IP)
        for instance in lab.instances.values():
            lab.wait_until(lambda: instance.log == 'running\n', f'the job of the {instance.name} runs')
        yield lab


class Asker:
    """An EC2 client inside an instance."""

    def __init__(self, instance: Instance) -> None:
        self._process = instance.popen(sys.executable, '-c', CLIENT, text=True, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE)

    def __call__(self, action: str, **parameters: Any) -> Any:
        """Return the answer, an error code, or the name of botocore's exception."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([action, parameters]) + '\n')
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serves(lab: Lab, address: str) -> None:
    lab.wait_until(lambda: lab.traffic.egress() == address, f'the private host is seen as {address}')


def pings(instance: Instance, peer: Instance) -> bool:
    """Tell whether an echo request from one instance to the other is answered within half a second."""
    return instance.run(sys.executable, '-ISc', '''
import socket, struct, sys, time
ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
ping.connect((sys.argv[1], 0)); ping.settimeout(0.5)
header = struct.pack('!BBHHH', 8, 0, 0xffff - 0x0800 - 0x1234 - 1, 0x1234, 1)
try:
    ping.send(header)
    while ping.recv(100)[20] != 0: pass
except OSError: sys.exit(1)
''', peer.address).returncode == 0


# Sends an echo request to the internet in a frame with the MAC of argv[2] (found as the monitor finds it), and writes
# the MAC from which the answer came.
PROBE = '''
import socket, struct, sys
def checked(header, at):
    total = sum(struct.unpack(f'!{len(header) // 2}H', header))
    return header[:at] + struct.pack('!H', 0xffff - total % 0xffff) + header[at + 2:]
source, target = map(socket.inet_aton, (sys.argv[1], sys.argv[3]))
[via] = [line.split() for line in open('/proc/net/arp') if line.split()[0] == sys.argv[2]]
echo = checked(struct.pack('!BBHHH', 8, 0, 0, 0x1234, 1), 2)
packet = checked(struct.pack('!BBHHHBBH', 0x45, 0, 28, 0, 0, 64, 1, 0) + source + target, 10) + echo
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as wire:
    wire.bind((via[5], 0x0800))
    wire.settimeout(0.5)
    try:
        wire.sendto(packet, (via[5], 0x0800, 0, 0, bytes.fromhex(via[3].replace(':', ''))))
        while True:
            answer, sender = wire.recvfrom(100)
            if (answer[9], answer[12:16], answer[20]) == (1, target, 0):
                print(sender[4].hex(':'))
                break
    except OSError: pass
'''


def answers_through(instance: Instance, via: str) -> str:
    """Send a packet to the internet through the neighbour *via*; return who brings the answer, '' if none comes."""
    sender = instance.run(sys.executable, '-ISc', PROBE, instance.address, via, ECHO, check=True).stdout.strip()
    return {'': '', **{mac(address): address for address in (GATEWAY, *INSTANCE_ADDRESSES.values())}}[sender]


def states(lab: Lab, instance: Instance, *expected: str, then: Callable[[], object]) -> None:
    """Do something, and check through which states EC2 says the instance goes, until the last expected one."""
    before, seen = len(lab.timeline()), [instance.state]
    then()
    lab.wait_until(lambda: instance.state == expected[-1], f'{instance.name} is {expected[-1]}')
    said = f'{instance.name} {instance.id} is '
    seen += [event.text[len(said):] for event in lab.timeline(before) if event.text.startswith(said)]
    assert list(dict.fromkeys(seen)) == list(expected)


# ---- the network

def test_moving_the_route_changes_the_egress_address(lab: Lab) -> None:
    lab.ec2.set_route('secondary')
    lab.wait_until(lambda: (lab.traffic.egress() or ELASTIC_IP) != ELASTIC_IP, 'another egress address')
    lab.ec2.set_address('secondary')
    serves(lab, ELASTIC_IP)
    assert [address for _, address in lab.traffic.egresses()][::2] == [ELASTIC_IP, ELASTIC_IP]


def test_without_a_route_or_a_living_target_nothing_is_served(lab: Lab) -> None:
    since = time.monotonic()
    lab.ec2.set_route(None)
    lab.wait_until(lambda: lab.traffic.egress() is None, 'nothing is served')
    lab.ec2.set_route('primary')
    serves(lab, ELASTIC_IP)
    assert 0.2 < lab.traffic.outage(since) < time.monotonic() - since
    lab.primary.crash()
    lab.wait_until(lambda: lab.traffic.egress() is None, 'nothing is served')


def test_an_instance_can_fall_silent_and_come_back(lab: Lab) -> None:
    primary, pid = lab.primary, lab.primary.monitor_pid
    for fail, mend in ((primary.cut_off, primary.reconnect), (primary.hang, primary.thaw)):
        fail()
        assert not pings(lab.secondary, primary)
        lab.wait_until(lambda: primary.life.checks()['Status'] == 'impaired', 'the checks fail')
        mend()
        assert pings(lab.secondary, primary)
        assert primary.life.checks()['Status'] == 'ok'
        assert primary.monitor_pid == pid
        serves(lab, ELASTIC_IP)


def test_packets_between_the_two_can_be_lost(lab: Lab) -> None:
    lab.primary.block_ping('in')
    assert not pings(lab.secondary, lab.primary)
    assert pings(lab.primary, lab.secondary)
    lab.primary.allow_ping()
    lab.primary.lose_packets(100)
    assert not pings(lab.primary, lab.secondary)
    serves(lab, ELASTIC_IP)
    lab.primary.lose_packets(0)
    assert pings(lab.primary, lab.secondary)
    lab.primary.lose_requests(2)
    assert [pings(lab.secondary, lab.primary) for _ in range(3)] == [False, False, True]
    assert pings(lab.primary, lab.secondary)
    assert lab.network.lost_requests() == 2
    lab.primary.lose_requests(0)
    lab.lose_between(100)
    assert not pings(lab.secondary, lab.primary) and not pings(lab.primary, lab.secondary)
    serves(lab, ELASTIC_IP)
    lab.lose_between(0)
    assert pings(lab.secondary, lab.primary)


def test_the_way_to_the_peer_can_be_another_interface(lab: Lab) -> None:
    lab.primary.lead_pings_to('docker0')
    assert not pings(lab.primary, lab.secondary)
    serves(lab, ELASTIC_IP)
    lab.primary.mend_way('docker0')
    assert pings(lab.primary, lab.secondary)


# ---- frames through the peer

def test_a_frame_to_the_peers_mac_comes_back_through_the_peer(lab: Lab) -> None:
    peer = lab.primary.address
    assert answers_through(lab.secondary, peer) == peer
    assert answers_through(lab.secondary, GATEWAY) == GATEWAY
    assert answers_through(lab.primary, lab.secondary.address) == lab.secondary.address


def test_who_does_not_forward_answers_pings_all_the_same(lab: Lab) -> None:
    lab.primary.forwarding(False)
    assert answers_through(lab.secondary, lab.primary.address) == ''
    assert pings(lab.secondary, lab.primary) and pings(lab.primary, lab.secondary)
    assert Asker(lab.primary)('describe_instances')['Reservations']
    lab.wait_until(lambda: lab.traffic.egress() is None, 'nothing is served')
    lab.primary.forwarding(True)
    assert answers_through(lab.secondary, lab.primary.address) == lab.primary.address
    serves(lab, ELASTIC_IP)


def test_without_masquerading_the_answer_comes_beside_the_peer(lab: Lab) -> None:
    lab.primary.flush_rules()
    assert answers_through(lab.secondary, lab.primary.address) == GATEWAY
    lab.wait_until(lambda: lab.traffic.egress() is None, 'nothing is served')
    lab.primary.restore_rules()
    assert answers_through(lab.secondary, lab.primary.address) == lab.primary.address
    serves(lab, ELASTIC_IP)


def test_a_frame_through_the_peer_meets_the_faults_of_the_network(lab: Lab) -> None:
    primary = lab.primary
    for fail, mend in ((primary.cut_off, primary.reconnect), (primary.block_ping, primary.allow_ping),
                       (lambda: primary.lose_packets(100), lambda: primary.lose_packets(0))):
        fail()
        assert answers_through(lab.secondary, primary.address) == ''
        mend()
        assert answers_through(lab.secondary, primary.address) == primary.address
    lab.silence_echo(True)
    assert answers_through(lab.secondary, primary.address) == answers_through(lab.secondary, GATEWAY) == ''
    serves(lab, ELASTIC_IP)
    lab.silence_echo(False)
    primary.crash()
    assert answers_through(lab.secondary, primary.address) == ''
    assert answers_through(lab.secondary, GATEWAY) == GATEWAY


def test_in_two_subnets_the_instances_are_no_neighbours(stand_in: Path) -> None:
    with Lab(monitor=stand_in, start=False, subnets=2) as lab:
        assert pings(lab.secondary, lab.primary)
        neighbours = lab.secondary.run('cat', '/proc/net/arp').stdout
        assert GATEWAY in neighbours and lab.primary.address not in neighbours
        lab.secondary.run('ip', 'neigh', 'add', lab.primary.address, 'lladdr', mac(lab.primary.address), 'dev', 'eth0',
                          check=True)
        assert answers_through(lab.secondary, lab.primary.address) == ''
        serves(lab, ELASTIC_IP)


# ---- EC2

def test_a_connection_from_a_lost_address_is_dead_without_a_word(lab: Lab) -> None:
    ask = Asker(lab.primary)
    assert ask('describe_instances')
    lab.ec2.set_address('secondary')
    lab.wait_until(lambda: lab.network.links['primary'].public, 'the primary has another address')
    assert ask('describe_instances') == 'ReadTimeoutError'
    assert ask('describe_instances')['Reservations']


def test_who_takes_the_address_loses_the_answer(lab: Lab) -> None:
    ask = Asker(lab.secondary)
    [address] = ask('describe_addresses')['Addresses']
    assert ask('associate_address', AllocationId=address['AllocationId'], InstanceId=lab.secondary.id,
               AllowReassociation=True) == 'ReadTimeoutError'
    assert lab.holder().address == 'secondary'


def test_at_a_secondary_private_address_no_traffic_leaves_with_the_address(lab: Lab) -> None:
    lab.ec2.set_address('primary', beside=True)
    [address] = Asker(lab.secondary)('describe_addresses')['Addresses']
    assert (address['InstanceId'], address['PrivateIpAddress']) == (lab.primary.id, SECONDARY_ADDRESS)
    lab.wait_until(lambda: lab.traffic.egress() not in (None, ELASTIC_IP), 'traffic leaves with another one')
    lab.ec2.set_address('primary')
    serves(lab, ELASTIC_IP)


def test_without_tls_ec2_speaks_http(stand_in: Path) -> None:
    with Lab(monitor=stand_in, start=False, tls=False) as lab:
        assert lab.environment['AWS_ENDPOINT_URL_EC2'] == f'http://{ENDPOINT}'
        assert Asker(lab.primary)('describe_instances')['Reservations']


def test_a_connection_and_a_call_take_round_trips(lab: Lab) -> None:
    lab.times.round_trip = 0.2
    ask = Asker(lab.primary)
    taken = []
    for _ in range(2):
        started = time.monotonic()
        assert ask('describe_instances')
        taken.append(time.monotonic() - started)
    assert taken[0] >= 0.6 and taken[1] >= 0.2  # connection, handshake and call; on the same connection
    assert len(lab.ec2.connections) == 1


def test_who_cannot_verify_the_certificate_asks_nothing(lab: Lab) -> None:
    with lab.ec2.untrusted():
        assert Asker(lab.primary)('describe_instances') == 'SSLError'
    assert lab.ec2.calls() == []
    assert Asker(lab.primary)('describe_instances')['Reservations']


def test_a_dry_run_changes_nothing(lab: Lab) -> None:
    ask = Asker(lab.secondary)
    table, instance = lab.ec2.tables[0], lab.primary.id
    for action, parameters in {
            'replace_route': {**ROUTE, 'RouteTableId': table, 'InstanceId': lab.secondary.id},
            'create_route': {**ROUTE, 'RouteTableId': table, 'InstanceId': lab.secondary.id},
            'associate_address': {'AllocationId': 'eipalloc-1', 'InstanceId': lab.secondary.id},
            'stop_instances': {'InstanceIds': [instance]}, 'start_instances': {'InstanceIds': [instance]},
            'describe_route_tables': {}, 'describe_instance_status': {}}.items():
        assert ask(action, **parameters, DryRun=True) == 'DryRunOperation'
    assert lab.holds(lab.primary)
    assert lab.primary.state == 'running'
    assert lab.ec2.calls() == []
    assert {call.result for call in lab.ec2.calls(dry_run=True)} == {'DryRunOperation'}


def test_a_call_has_the_errors_of_ec2(lab: Lab) -> None:
    ask = Asker(lab.secondary)
    table = lab.ec2.tables[0]
    route = {**ROUTE, 'RouteTableId': table, 'InstanceId': lab.secondary.id}
    assert ask('create_route', **route) == 'RouteAlreadyExists'
    assert ask('replace_route', **{**route, 'RouteTableId': 'rtb-0'}) == 'InvalidRouteTableID.NotFound'
    assert ask('replace_route', **{**route, 'InstanceId': 'i-0'}) == 'InvalidInstanceID.NotFound'
    assert ask('describe_instance_status', InstanceIds=['i-0', lab.primary.id]) == 'InvalidInstanceID.NotFound'
    lab.ec2.set_route(None)
    assert ask('replace_route', **route) == 'InvalidParameterValue'
    assert ask('create_route', **route)['Return']
    assert lab.holder().routes == ['secondary']
    assert [call.result for call in lab.ec2.calls('*Route', 'secondary')] == [
        'RouteAlreadyExists', 'InvalidRouteTableID.NotFound', 'InvalidInstanceID.NotFound', 'InvalidParameterValue',
        'ok']


def test_an_instance_stops_and_boots_with_a_fresh_run_and_its_job(lab: Lab) -> None:
    ask = Asker(lab.secondary)
    lab.times.stop, lab.times.checks = 10.0, 600.0  # programs have the first half of a stop to end
    lab.primary.run('touch', '/run/left', check=True)
    states(lab, lab.primary, 'running', 'stopping', 'stopped',
           then=lambda: ask('stop_instances', InstanceIds=[lab.primary.id]))
    [route] = [route for route in ask('describe_route_tables', RouteTableIds=lab.ec2.tables)['RouteTables'][0]['Routes']
               if route['DestinationCidrBlock'] == '0.0.0.0/0']
    assert (route['State'], route['InstanceId']) == ('blackhole', lab.primary.id)
    assert lab.primary.log == 'running\nterminated\n'
    assert not pings(lab.secondary, lab.primary)
    states(lab, lab.primary, 'stopped', 'pending', 'running',
           then=lambda: ask('start_instances', InstanceIds=[lab.primary.id]))
    assert ask('describe_instance_status', InstanceIds=[lab.primary.id])['InstanceStatuses'][0]['InstanceStatus'][
        'Status'] == 'initializing'
    lab.wait_until(lambda: lab.primary.log == 'running\nterminated\nrunning\n', 'the job runs again')
    assert lab.primary.run('ls', '/run').stdout == ''
    serves(lab, ELASTIC_IP)


def test_states_forbid_what_ec2_forbids(lab: Lab) -> None:
    ask = Asker(lab.secondary)
    [address] = ask('describe_addresses')['Addresses']
    lab.times.stop, lab.times.pending = 60, 60
    lab.primary.crash(ignores_stop=True)
    ask('stop_instances', InstanceIds=[lab.primary.id])
    assert ask('start_instances', InstanceIds=[lab.primary.id]) == 'IncorrectInstanceState'
    lab.times.stop = 0.1
    states(lab, lab.primary, 'stopping', 'stopped',
           then=lambda: ask('stop_instances', InstanceIds=[lab.primary.id], Force=True))
    states(lab, lab.primary, 'stopped', 'pending',
           then=lambda: ask('start_instances', InstanceIds=[lab.primary.id]))
    assert ask('associate_address', AllocationId=address['AllocationId'], InstanceId=lab.primary.id,
               AllowReassociation=True) == 'InvalidInstanceID'
    assert ask('stop_instances', InstanceIds=[lab.primary.id]) == 'IncorrectInstanceState'


def test_a_terminated_instance_never_comes_back(lab: Lab) -> None:
    ask = Asker(lab.secondary)
    states(lab, lab.primary, 'running', 'shutting-down', 'terminated', then=lambda: lab.ec2.terminate('primary'))
    assert ask('start_instances', InstanceIds=[lab.primary.id]) == 'IncorrectInstanceState'
    assert lab.holder().address is None
    assert ask('describe_instance_status', InstanceIds=[lab.primary.id], IncludeAllInstances=True)[
        'InstanceStatuses'][0]['InstanceState']['Name'] == 'terminated'


def test_a_call_can_go_wrong(lab: Lab) -> None:
    ask = Asker(lab.secondary)
    route = {**ROUTE, 'RouteTableId': lab.ec2.tables[0], 'InstanceId': lab.secondary.id}
    for kind, answer, holder in (('RequestLimitExceeded', 'RequestLimitExceeded', 'primary'),
                                 ('silent', 'ReadTimeoutError', 'primary'), ('lost', 'ReadTimeoutError', 'secondary')):
        with lab.ec2.injected(kind, 'ReplaceRoute', 'secondary'):
            assert ask('replace_route', **route) == answer
            assert lab.holder().routes == [holder]
            assert 'Reservations' in ask('describe_instances')
    assert 'ResponseMetadata' in ask('replace_route', **route)
    lab.ec2.inject('Unavailable', times=1)
    assert ask('describe_instances') == 'Unavailable'
    assert 'Reservations' in ask('describe_instances')


def test_a_call_takes_its_time_before_and_after_its_effect(lab: Lab) -> None:
    lab.ec2.inject('slow', 'ReplaceRoute', extra=2.0)
    ask = Asker(lab.secondary)
    ask('describe_instances')
    started = time.monotonic()
    asking = threading.Thread(target=ask, args=('replace_route',), kwargs={
        **ROUTE, 'RouteTableId': lab.ec2.tables[0], 'InstanceId': lab.secondary.id})
    asking.start()
    lab.wait_until(lambda: lab.holder().routes == ['secondary'], 'the route has moved')
    assert time.monotonic() - started >= 1.0 and asking.is_alive()
    asking.join()
    assert time.monotonic() - started >= 2.0
    [call] = lab.ec2.calls('ReplaceRoute')
    assert (call.instance, call.result, call.dry_run) == ('secondary', 'ok', False)
    lab.wait_until(lambda: call.seconds >= 2.0, 'the server has noted how long it took')


def test_every_table_has_a_host_of_its_own(stand_in: Path) -> None:
    from tests.lab import Traffic
    with Lab(monitor=stand_in, tables=3, elastic_ip=False, start=False) as lab:
        second = Traffic(lab.network, 1, serve=False)
        with contextlib.closing(second):
            lab.wait_until(lambda: lab.traffic.egress() and lab.traffic.egress() == second.egress(), 'both served')
            lab.ec2.set_route('secondary', 1)
            lab.wait_until(lambda: second.egress() not in (None, lab.traffic.egress()), 'served by two')
            assert lab.holder().routes == ['primary', 'secondary', 'primary']


# ---- what an instance has

METADATA = '''
import requests
base = 'http://169.254.169.254/latest/'
print(requests.get(base + 'meta-data/instance-id').status_code)
token = requests.put(base + 'api/token', headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'}).text
for item in 'instance-id', 'placement/region', 'iam/security-credentials/', 'nothing':
    answer = requests.get(base + 'meta-data/' + item, headers={'X-aws-ec2-metadata-token': token})
    print(answer.status_code, answer.text)
'''


def test_the_metadata_service_wants_a_token_and_gives_credentials_when_it_has_them(lab: Lab) -> None:
    def asked() -> List[str]:
        return lab.primary.run(sys.executable, '-c', METADATA, check=True).stdout.splitlines()

    assert asked() == ['401', f'200 {lab.primary.id}', '200 us-east-1', '200 NAT_Monitor', '404 ']
    lab.metadata['primary'].has_credentials = False
    assert asked()[3] == '404 '
    lab.metadata['primary'].status = 403
    assert asked() == ['403', '403 ', '403 ', '403 ', '403 ']


def test_names_resolve_at_once_or_hang(stand_in: Path) -> None:
    resolve = 'import socket; print(socket.gethostbyname("ec2.lab.example"))'
    with Lab(monitor=stand_in, start=False, by_name=True) as lab:
        assert lab.primary.run(sys.executable, '-c', resolve).stdout == f'{ENDPOINT}\n'
        lab.primary.names_hang()
        with pytest.raises(subprocess.TimeoutExpired):
            lab.primary.run(sys.executable, '-c', resolve, timeout=1.5)
        assert lab.secondary.run(sys.executable, '-c', resolve).stdout == f'{ENDPOINT}\n'


def test_processes_are_seen_by_their_own_instance_only(lab: Lab) -> None:
    lab.primary.run('killall', 'nat_monitor.py', check=True)
    lab.wait_until(lambda: lab.primary.log == 'running\nterminated\n', 'it has ended')
    assert lab.secondary.log == 'running\n'
    assert lab.primary.monitor_pid is None
    lab.secondary.kill_monitor(signal.SIGTERM)
    lab.wait_until(lambda: lab.secondary.log == 'running\nterminated\n', 'it has ended')


def test_a_terminal_has_job_control(lab: Lab) -> None:
    terminal = lab.primary.terminal()
    terminal.type('sh -c "echo r$((1))ady; exec sleep 60"\n')
    lab.wait_until(lambda: 'r1ady' in terminal.output, 'the program runs')
    terminal.type('\x03')
    lab.wait_until(lambda: terminal.output.endswith('# '), 'the shell asks again')
    terminal.type('exit 7\n')
    lab.wait_until(lambda: terminal.exit_code == 7, 'the shell has ended')


def test_the_time_line_has_logs_calls_states_and_what_the_test_did(lab: Lab) -> None:
    lab.wait_until(lambda: ('secondary', 'running') in [event[1:] for event in lab.timeline()], 'the log is read')
    Asker(lab.secondary)('stop_instances', InstanceIds=[lab.primary.id])
    lab.wait_until(lambda: lab.primary.state == 'stopped', 'it has stopped')
    report = lab.report()
    for words in 'secondary: StopInstances', 'is stopping', 'is stopped', 'default route of', 'dead = True':
        assert words in report


def test_a_failure_tells_what_has_happened(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match='not within 0.1 s: pigs fly'):
        with Lab(monitor=stand_in, start=False) as lab:
            lab.wait_until(lambda: False, 'pigs fly', 0.1)
    assert '198.51.100.7 to primary' in capsys.readouterr().out


# ---- the monitor and TLS

def test_a_monitor_decides_nothing_while_it_cannot_verify_the_certificate(python: str) -> None:
    with Lab(QUICK, python=python) as lab:
        for instance in lab.instances.values():
            lab.wait_until(lambda: ' answers' in instance.log, f'the {instance.name} hears its peer')
        with lab.ec2.untrusted():
            lab.primary.crash()
            lab.wait_until(lambda: 'certificate verify failed' in lab.secondary.log, 'the secondary says so')
            since = time.monotonic()  # until then, it had connections from before
            lab.stays(lambda: lab.holds(lab.primary) and not lab.ec2.calls(instance='secondary', since=since), 5,
                      'no call reaches who shows that certificate')
        lab.wait_until(lambda: lab.holds(lab.secondary), 'the secondary takes over')


# ---- what is left behind

def processes(mark: str) -> List[str]:
    """Return the command lines of the processes that have inherited MARK=*mark*.

    Who asks for those in certain namespaces finds strangers: a namespace made later may have the number of one gone.
    """
    found = []
    for directory in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if f'MARK={mark}'.encode() in (directory / 'environ').read_bytes().split(b'\0'):
                found.append((directory / 'cmdline').read_text().replace('\0', ' '))
    return found


OPEN_LAB = '''
import os, sys, time
from pathlib import Path
from tests.lab import Lab
with Lab(monitor=Path(sys.argv[1]), environment={'MARK': sys.argv[1]}) as lab:
    lab.primary.popen('sleep', '1000')
    lab.secondary.hang()
    lab.wait_until(lambda: lab.traffic.egress(), 'served')
    print(os.getuid(), flush=True)
    time.sleep(float(sys.argv[2]))
'''


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT, None], ids=['kill -9', 'Ctrl-C', 'at its end'])
def test_nothing_is_left_behind(stand_in: Path, how: Any) -> None:
    root = Path(__file__).parents[2]
    mounts = Path('/proc/mounts').read_text()
    mark = str(stand_in)
    opened = subprocess.Popen([sys.executable, '-c', OPEN_LAB, mark, '0' if how is None else '100'], cwd=root,
                              env={**os.environ, 'MARK': mark}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True)
    assert opened.stdout and opened.stdout.readline() == f'{os.getuid()}\n'
    assert len(processes(mark)) > 5 or how is None
    if how is not None:
        opened.send_signal(how)
    opened.wait(GUARD)
    opened.stdout.close()
    until = time.monotonic() + GUARD
    while left := processes(mark):
        assert time.monotonic() < until, left
        time.sleep(0.05)
    assert Path('/proc/mounts').read_text() == mounts


def test_it_needs_no_root() -> None:
    # Through env, as setpriv itself can still execute what nobody may not.
    nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', 'env'] if os.getuid() == 0 else []
    same_python = f'import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})'
    pythons = [python for python in (sys.executable, '/usr/bin/python3')
               if subprocess.run([*nobody, python, '-c', same_python], capture_output=True).returncode == 0]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'PYTHONDONTWRITEBYTECODE': '1'}
    root = Path(__file__).parents[2]
    if not pythons or subprocess.run([*nobody, pythons[0], '-c', 'import tests.lab'], cwd=root, env=environment,
                                     capture_output=True).returncode:
        pytest.skip('who is not root may not read the Python that runs this test')
    if subprocess.run([*nobody, 'unshare', '--user', '--map-root-user', 'true'], capture_output=True).returncode:
        pytest.skip('user namespaces are not allowed to everybody on this machine')
    result = subprocess.run([*nobody, pythons[0], '-c', OPEN_LAB, '/dev/null', '0'], cwd=root, env=environment,
                            text=True, capture_output=True)
    assert (result.stderr, result.returncode) == ('', 0)
    assert result.stdout.strip() != '0'


def test_of_connections_only_those_on_which_the_private_host_sends_survive_a_move() -> None:
    with Lab(start=False) as lab, Connections(lab.network, 4) as client, Connections(lab.network, 4, True) as server:
        lab.wait_until(lambda: client.alive(0.0) == server.alive(0.0) == 4, 'all are alive')
        # The moment in between is one in which nothing is served.
        lab.primary.cut_off()
        lab.secondary.cut_off()
        lab.ec2.set_route('secondary')
        lab.ec2.set_address('secondary')
        moved_at = time.monotonic()
        lab.secondary.reconnect()

        lab.wait_until(lambda: client.alive(moved_at) == 4 and all(server.lost), 'the server has reset its own')
        assert server.alive(moved_at) == 0
