"""--check: a healthy pair, then each fault alone, in moto's EC2 and with the real monitors of the lab."""
from __future__ import annotations

import contextlib
import email.utils
import functools
import os
import pathlib
import re
import signal
import subprocess
import time
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple
from unittest.mock import Mock

import pytest
import requests
from moto import mock_aws
from moto.iam.models import iam_backends

import nat_monitor
from tests.cloud_pair import (ACCOUNT, AS_ROOT, MASQUERADE, REGION, Host, Line, Pair, client, credentials,
                              read_lines, serving_metadata)
from tests.lab.lab import Lab
from tests.lab.network import ECHO

connect_once = functools.lru_cache(nat_monitor.connect)  # to make a client takes longer than most tests


@pytest.fixture
def folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the program is, and the tools that it calls."""
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
    monkeypatch.setattr(nat_monitor, '__file__', str(tmp_path / 'nat_monitor.py'))
    monkeypatch.setattr(nat_monitor, 'LIST_TIMEOUT', 100.0)  # a slow machine is no unclear host
    return str(tmp_path)


@pytest.fixture
def host(folder: str) -> Host:
    return Host(folder)


@pytest.fixture
def pair(folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.setenv(name, 'verysecret')
    monkeypatch.setenv('AWS_DEFAULT_REGION', REGION)
    role = {'iam/security-credentials/': 'NAT_Monitor',
            'iam/security-credentials/NAT_Monitor': credentials('ASIAROLE', 'verysecret', 'verysecret')}
    with mock_aws(), serving_metadata(role, monkeypatch):
        yield Pair(folder, connect_once)


def test_all_is_well_with_a_healthy_pair_and_every_key_task_has_its_line(pair: Pair, capfd: Any) -> None:
    code, lines = pair.check(capfd)

    assert {line.verdict for line in lines} == {'ok'} and code == 0, pair.text
    assert pair.mutations() == [] and 'verysecret' not in pair.text
    said = [(line.what, line.about) for line in lines if line.what != 'file']
    assert len(set(said)) == len(said)
    each = ('state', 'source/dest. check', 'network interface', 'public address', 'instance profile', 'Spot',
            'root device', 'stop protection', 'Auto Scaling group', 'maintenance')
    assert set(said) >= {
        *((what, i) for i in pair.instances for what in each), *((action, pair.table) for action in REHEARSED[:2]),
        ('AssociateAddress', pair.address), *((action, pair.primary) for action in REHEARSED[3:]),
        *((what, pair.table) for what in ('route table', 'subnets', 'default route')), ('Elastic IP', pair.address),
        ('ping', pair.primary), ('masquerading', '10.0.1.0/24'), ('this instance', pair.secondary),
        ('role', pair.secondary), *((what, '') for what in (
            'settings', 'metadata', 'forwarding', 'cron job', 'cron daemon', 'monitor'))}


REHEARSED = ('ReplaceRoute', 'CreateRoute', 'AssociateAddress', 'StopInstances', 'StartInstances')
ALL_CALLS = (*REHEARSED, 'DescribeInstances', 'DescribeInstanceStatus', 'DescribeInstanceAttribute',
             'DescribeRouteTables', 'DescribeSubnets', 'DescribeAddresses')


# Each fault, on a pair that is otherwise healthy: what is done to it; the line that tells; a word of its remedy.

def stop_primary(pair: Pair) -> None:
    pair.ec2.stop_instances(InstanceIds=[pair.primary])
    pair.record(pair.primary).state_reason.message = 'Client error on launch'


def add_interface(pair: Pair) -> None:
    interface = pair.ec2.create_network_interface(SubnetId=pair.public)['NetworkInterface']['NetworkInterfaceId']
    vars(pair)['attachment'] = pair.ec2.attach_network_interface(
        NetworkInterfaceId=interface, InstanceId=pair.primary, DeviceIndex=1)['AttachmentId']


def take_public_address(pair: Pair) -> None:
    vars(pair.record(pair.secondary).nics[0]).update(public_ip=None, public_ip_auto_assign=False)
    pair.record(pair.secondary).associate_public_ip = False


def take_profile(pair: Pair) -> None:
    [link] = pair.ec2.describe_iam_instance_profile_associations(Filters=[
        {'Name': 'instance-id', 'Values': [pair.primary]}])['IamInstanceProfileAssociations']
    pair.ec2.disassociate_iam_instance_profile(AssociationId=link['AssociationId'])


def use_foreign_table(pair: Pair) -> None:
    vpc = pair.ec2.create_vpc(CidrBlock='10.9.0.0/16')['Vpc']['VpcId']
    table = pair.ec2.create_route_table(VpcId=vpc)['RouteTable']['RouteTableId']
    use_table(pair, table)


def use_table(pair: Pair, table: str) -> None:
    edit_settings(pair, pair.table, table)
    pair.table = table


def use_main_table(pair: Pair) -> None:
    """Leave the pair's subnet without a table of its own, so that it uses the main one."""
    tables = pair.ec2.describe_route_tables(Filters=[{'Name': 'vpc-id', 'Values': [pair.vpc]}])['RouteTables']
    links = {link.get('SubnetId'): link for table in tables for link in table['Associations']}
    pair.ec2.disassociate_route_table(AssociationId=links[pair.public]['RouteTableAssociationId'])
    use_table(pair, links[None]['RouteTableId'])


def forget_a_table(pair: Pair) -> None:
    other = pair.ec2.create_route_table(VpcId=pair.vpc)['RouteTable']['RouteTableId']
    pair.ec2.create_route(RouteTableId=other, DestinationCidrBlock='0.0.0.0/0', InstanceId=pair.primary)


def give_it_an_elastic_ip(pair: Pair) -> None:
    allocation = pair.ec2.allocate_address(Domain='vpc', Address='198.51.100.9')['AllocationId']
    pair.ec2.associate_address(AllocationId=allocation, InstanceId=pair.secondary)


def change_profile(pair: Pair) -> None:
    take_profile(pair)
    client('iam').create_instance_profile(InstanceProfileName='Other')
    pair.ec2.associate_iam_instance_profile(IamInstanceProfile={'Name': 'Other'}, InstanceId=pair.primary)


def release_address(pair: Pair) -> None:
    pair.ec2.disassociate_address(AssociationId=pair.ec2.describe_addresses()['Addresses'][0]['AssociationId'])
    pair.ec2.release_address(AllocationId=pair.allocation)


def give_address_away(pair: Pair) -> None:
    other = pair.ec2.run_instances(ImageId='ami-12345678', MinCount=1, MaxCount=1)['Instances'][0]['InstanceId']
    pair.ec2.associate_address(AllocationId=pair.allocation, InstanceId=other, AllowReassociation=True)


def drop_cron_job(host: Host) -> None:
    os.remove(os.path.join(host.root, 'etc/cron.d/nat_monitor'))


def edit_settings(pair: Pair, this: str, that: str) -> None:
    pair.file('nat_config.py', pathlib.Path(pair.settings_file).read_text().replace(this, that))


def masquerade(pair: Pair, rule: str) -> None:
    pair.firewall(re.sub('oifname.*', rule, MASQUERADE))


@pytest.mark.parametrize('spoil, verdict, what, words', [
    (stop_primary, 'FAIL', 'state', 'stopped (Client error on launch); run: aws ec2 start-instances --instance-ids '
     '{primary}  # a disk key of yours needs kms:CreateGrant'),
    (lambda pair: pair.ec2.terminate_instances(InstanceIds=[pair.primary]),
     'FAIL', 'state', '; run: nano {settings_file}  # launch another one instead of {primary}'),
    (lambda pair: edit_settings(pair, pair.primary, 'i-0123456789abcdef0'),
     'FAIL', 'state', 'gone (EC2 tells no more); run: nano {settings_file}  # launch another one instead of '
     'i-0123456789abcdef0'),
    (lambda pair: pair.ec2.modify_instance_attribute(InstanceId=pair.primary, SourceDestCheck={'Value': True}),
     'FAIL', 'source/dest. check', 'on; run: aws ec2 modify-instance-attribute --instance-id {primary} '
     '--no-source-dest-check'),
    (add_interface, 'FAIL', 'network interface', 'run: aws ec2 detach-network-interface --attachment-id {attachment}'),
    (take_public_address, 'warn', 'public address', '--associate-public-ip-address --network-interface-id eni-'),
    (give_it_an_elastic_ip, 'warn', 'public address', '198.51.100.9; run: aws ec2 modify-network-interface-attribute '
     '--associate-public-ip-address --network-interface-id '),
    (take_profile, 'FAIL', 'instance profile', 'associate-iam-instance-profile --iam-instance-profile Name=NAT_Monitor '
     '--instance-id {primary}'),
    (change_profile, 'FAIL', 'instance profile', 'describe-iam-instance-profile-associations --filters '
     'Name=instance-id,Values={primary}  # then replace-'),
    (lambda pair: setattr(pair.record(pair.primary), 'disable_api_stop', 'true'),
     'FAIL', 'stop protection', 'on; run: aws ec2 modify-instance-attribute --instance-id {primary} '
     '--no-disable-api-stop'),
    (lambda pair: setattr(pair.record(pair.primary), 'root_device_type', 'instance-store'),
     'FAIL', 'root device', 'instance-store; run: nano {settings_file}  # launch another one instead of {primary}'),
    (lambda pair: setattr(pair.record(pair.primary), 'spot_instance_request_id', 'sir-08b93456'), 'unknown', 'Spot',
     'aws ec2 describe-spot-instance-requests --spot-instance-request-ids sir-08b93456'),
    (lambda pair: pair.backend.create_tags([pair.primary], {'aws:autoscaling:groupName': 'nats'}),
     'FAIL', 'Auto Scaling group', 'aws autoscaling detach-instances --instance-ids {primary} '
     '--auto-scaling-group-name nats'),
    (lambda pair: pair.backend.create_tags([pair.primary], {nat_monitor.MAINTENANCE: 'until noon'}),
     'warn', 'maintenance', 'until noon; run: aws ec2 delete-tags --resources {primary} --tags '),
    (use_foreign_table, 'FAIL', 'route table', 'not in the VPC; run: nano {settings_file}'),
    (forget_a_table, 'warn', 'route table', 'leads 0.0.0.0/0 to {primary}, also after a failover: it is not in '
     'ROUTE_TABLE_IDS; run: nano '),
    (lambda pair: pair.ec2.disassociate_route_table(AssociationId=pair.association),
     'FAIL', 'subnets', 'none; run: aws ec2 associate-route-table --route-table-id {table}'),
    (lambda pair: use_table(pair, pair.public_table),
     'FAIL', 'own subnet', 'is in ROUTE_TABLE_IDS, so the pair, in {public}, would route to itself; run: nano'),
    (lambda pair: setattr(pair.record(pair.primary), '_subnet_id', pair.private),
     'FAIL', 'own subnet', 'is in ROUTE_TABLE_IDS, so the pair, in {private}, would route to itself; run: nano'),
    (use_main_table, 'FAIL', 'own subnet', 'is in ROUTE_TABLE_IDS, so the pair, in {public}, would route to itself; '
     'run: nano {settings_file}  # or give {public} a public route table of its own'),
    (lambda pair: pair.ec2.replace_route(RouteTableId=pair.table, DestinationCidrBlock='0.0.0.0/0',
                                         GatewayId=pair.gateway), 'warn', 'default route',
     'outside the pair; run: aws ec2 describe-route-tables --route-table-ids {table}'),
    (release_address, 'FAIL', 'Elastic IP', 'not found in eu-west-1; run: nano '),
    (give_address_away, 'warn', 'Elastic IP', 'aws ec2 describe-addresses --public-ips {address}'),
    (lambda pair: pair.deaf.add(pair.instances[pair.primary]['PrivateIpAddress']),
     'FAIL', 'ping', ' answers 0 of 3; run: aws ec2 authorize-security-group-ingress --protocol icmp --port -1 '
     '--group-id sg-'),
    (lambda pair: setattr(pair, 'ping', Mock(side_effect=nat_monitor.OwnFault('Network is unreachable'))),
     'FAIL', 'ping', 'Network is unreachable; run: ip route get {peer}; ping -c 20 {peer}'),
    (lambda pair: pair.file('proc/sys/net/ipv4/ip_forward', '0\n'),
     'FAIL', 'forwarding', 'net.ipv4.ip_forward is 0; run: echo net.ipv4.ip_forward=1 >> '),
    (lambda pair: pair.file('proc/sys/net/ipv4/conf/ens5/forwarding', '0\n'),
     'FAIL', 'forwarding', 'net.ipv4.conf.ens5.forwarding is 0; run: echo net.ipv4.conf.ens5.forwarding=1 >> '),
    (lambda pair: pair.firewall(''),
     'FAIL', 'masquerading', "no rule masquerades 10.0.1.0/24; run: nft 'table ip nat {{"),
    (lambda pair: masquerade(pair, 'snat to 198.51.100.7'), 'FAIL', 'masquerading', 'snat to 198.51.100.7'),
    (lambda pair: masquerade(pair, 'ip saddr @private masquerade'),
     'unknown', 'masquerading', 'ip saddr @private masquerade; run: nft list ruleset'),
    (drop_cron_job, 'FAIL', 'cron job', 'none starts the monitor; run: install -m 644 nat_monitor.cron '
     '/etc/cron.d/nat_monitor  # LF at its end; program: 755'),
    (lambda pair: pair.file('proc/1/comm', 'systemd\n'),
     'FAIL', 'cron daemon', 'none runs; run: dnf install -y cronie; systemctl enable --now crond'),
    (lambda pair: pair.file('proc/locks', ''),
     'warn', 'monitor', "nat_monitor.py >> /var/log/nat_monitor.log 2>&1' | at now"),
    (lambda pair: pair.metadata.update({'instance-id': requests.HTTPError('403 Client Error: Forbidden')}),
     'FAIL', 'metadata', '--http-endpoint enabled'),
    (lambda pair: pair.metadata.update({'iam/security-credentials/': requests.HTTPError('404 Client Error')}),
     'FAIL', 'role', 'associate-iam-instance-profile'),
], ids=lambda value: getattr(value, '__name__', None))
def test_each_fault_is_told_by_its_own_line(pair: Pair, capfd: Any, spoil: Any, verdict: str, what: str, words: str
                                            ) -> None:
    peer = pair.instances[pair.primary]['PrivateIpAddress']
    spoil(pair)

    code, lines = pair.check(capfd)

    told = [line for line in lines if line.verdict == verdict]
    assert {line.what for line in told} == {what}, pair.text
    assert any(words.format(peer=peer, **vars(pair)) in line.words for line in told), pair.text
    assert all('; run: ' in line.words for line in lines if line.verdict != 'ok')
    assert code == (1 if verdict == 'FAIL' else 0)
    assert pair.mutations() == []


def use_no_address(pair: Pair) -> None:
    give_it_an_elastic_ip(pair)  # its own, which nothing takes away then
    edit_settings(pair, repr(pair.address), 'None')


@pytest.mark.parametrize('do', [
    use_no_address,
    lambda pair: masquerade(pair, 'ip saddr 10.0.1.0/24 masquerade'),
    lambda pair: setattr(pair, 'probed', AssertionError('probed, although there is no PROBE_ADDRESS')),
    lambda pair: pair.ec2.delete_route(RouteTableId=pair.table, DestinationCidrBlock='0.0.0.0/0'),
    lambda pair: pair.ec2.disassociate_address(AssociationId=pair.ec2.describe_addresses()['Addresses'][0][
        'AssociationId']),
    lambda pair: pair.ec2.create_route(RouteTableId=pair.public_table, DestinationCidrBlock='0.0.0.0/0',
                                       GatewayId=pair.gateway)])
def test_what_is_no_fault_is_fine(pair: Pair, capfd: Any, do: Any) -> None:
    do(pair)

    code, lines = pair.check(capfd)

    assert {line.verdict for line in lines} == {'ok'} and code == 0, pair.text


TARGET = '203.0.113.20'


@pytest.mark.parametrize('probed, deaf, verdict, words', [
    (True, '', 'ok', 'a packet through it came back'),
    (False, '', 'FAIL', 'a packet through it did not come back; run: nat_monitor.py --check  # on {primary}'),
    (False, TARGET, 'unknown', 'a packet through it did not come back; run: nat_monitor.py --check  # on {primary}'),
    (nat_monitor.NoAnswer('said the test'), '', 'unknown',
     'NoAnswer: said the test; run: nat_monitor.py --check'),
    (nat_monitor.OwnFault('Operation not permitted'), '', 'FAIL',
     'OwnFault: Operation not permitted; run: ip route get')])
def test_a_packet_through_the_peer_is_told(pair: Pair, capfd: Any, probed: Any, deaf: str, verdict: str, words: str
                                           ) -> None:
    edit_settings(pair, 'ELASTIC_IP', f'PROBE_ADDRESS = {TARGET!r}\nELASTIC_IP')
    pair.probed = probed
    pair.deaf.add(deaf)

    code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.what == 'forwards']
    assert (line.verdict, line.about) == (verdict, pair.primary)
    assert line.words.startswith(words.format(primary=pair.primary)), line.words
    wrong = {line.what: line.words for line in lines if line.verdict != 'ok'}
    if deaf:
        assert wrong.pop('probe').startswith(f'a packet to it did not come back; run: ping -c 20 {TARGET}  # if ')
    assert set(wrong) <= {'forwards'}, pair.text
    assert code == (1 if verdict == 'FAIL' else 0)


def test_the_second_interface_is_to_be_detached_also_where_ec2_lists_it_first(
        pair: Pair, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_pair(*asked: Any) -> Any:
        found = describe_pair(*asked)
        for one in found.values():
            one['NetworkInterfaces'].reverse()
        return found
    describe_pair = nat_monitor.describe_pair
    monkeypatch.setattr(nat_monitor, 'describe_pair', reversed_pair)
    add_interface(pair)

    [line] = [line for line in pair.check(capfd)[1] if line.what == 'network interface' and line.verdict == 'FAIL']

    assert line.words.endswith(f'--attachment-id {vars(pair)["attachment"]}')


def test_the_rule_that_is_to_be_added_where_no_private_network_is_known_is_right_then(pair: Pair, capfd: Any) -> None:
    pair.errors = {'DescribeSubnets': 'Unavailable'}
    for sure, rule in ('FAIL', ''), ('ok', 'ip saddr 0.0.0.0/0 oifname != "lo" masquerade'):
        masquerade(pair, rule)
        assert {line.verdict for line in pair.check(capfd)[1] if line.what == 'masquerading'} == {sure}, pair.text


def test_where_the_states_are_not_told_all_else_is(pair: Pair, capfd: Any) -> None:
    for code, verdict in ('UnauthorizedOperation', 'FAIL'), ('RequestLimitExceeded', 'unknown'):
        pair.errors = {'DescribeInstanceStatus': code}
        _, lines = pair.check(capfd)

        assert {line.about for line in lines if line.verdict != 'ok'} == {*pair.instances}, pair.text
        assert {line.verdict for line in lines if line.what == 'instance'} == {verdict}
        assert {'Elastic IP', 'StopInstances', 'ping'} <= {line.what for line in lines}


# Permissions

def test_each_missing_permission_is_told_with_the_policy_and_the_tags(pair: Pair, capfd: Any) -> None:
    own, its = (pair.instances[i]['NetworkInterfaces'][0]['NetworkInterfaceId'] for i in (pair.secondary, pair.primary))
    for action in ALL_CALLS:
        pair.errors = {action: 'UnauthorizedOperation'}

        code, lines = pair.check(capfd)

        told = [line for line in lines if line.verdict == 'FAIL']
        assert told and all('UnauthorizedOperation' in line.words for line in told), pair.text
        assert all('; run: aws iam put-role-policy --role-name NAT_Monitor --policy-name NAT_Monitor --policy-document '
                   f'file://policy.json && aws ec2 create-tags --resources {pair.table}' in line.words for line in told)
        if action in REHEARSED:
            assert [line.what for line in told] == [action]
            assert told[0].words.endswith(f' --resources {pair.table} {own} {its} {pair.allocation} --tags '
                                          'Key=nat_monitor,Value=${tag:-true}')
        assert code == 1 and pair.mutations() == []


USER = ('UnauthorizedOperation: You are not authorized to perform this operation. User: arn:aws:sts::123456789012:'
        'assumed-role/NAT_Monitor/i-0123456789abcdef0 is not authorized to perform: ec2:ReplaceRoute on resource: '
        'arn:aws:ec2:eu-west-1:123456789012:route-table/rtb-0123456789abcdef0 ')
ENCODED = '. Encoded authorization failure message: ' + 'Zx8' * 200
WHO_DENIES = {  # and the remedy
    'with an explicit deny in a service control policy': 'aws organizations list-policies --filter SERVICE_CONTROL',
    'with an explicit deny in a service control policy: arn:aws:organizations::210987654321:policy/o-0123456789/'
    'service_control_policy/p-01234567': 'aws organizations list-policies --filter SERVICE_CONTROL',
    'because no service control policy allows the ec2:ReplaceRoute action': 'aws organizations list-policies',
    'with an explicit deny in a permissions boundary': 'aws iam get-role --role-name NAT_Monitor --query '
                                                       'Role.PermissionsBoundary',
    'because no permissions boundary allows the ec2:ReplaceRoute action': 'aws iam get-role --role-name NAT_Monitor',
    'because no VPC endpoint policy allows the ec2:ReplaceRoute action': 'aws ec2 describe-vpc-endpoints',
    'because no identity-based policy allows the ec2:ReplaceRoute action': 'aws iam put-role-policy',
}


@pytest.mark.parametrize('action', ['ReplaceRoute', 'DescribeSubnets'])
def test_what_denies_a_call_is_named_with_the_remedy_that_fits(pair: Pair, capfd: Any, action: str) -> None:
    for why, remedy in WHO_DENIES.items():
        pair.errors[action] = USER + why + ENCODED

        _, lines = pair.check(capfd)

        words = next(line.words for line in lines if line.verdict != 'ok')
        assert why in words and f'; run: {remedy}' in words, pair.text
        assert 'Encoded' not in pair.text and 'Zx8' not in pair.text


def test_another_answer_to_a_dry_run_is_unknown_and_shown(pair: Pair, capfd: Any) -> None:
    for code in ('RequestLimitExceeded', 'OperationNotPermitted', 'no answer'):
        pair.errors['StopInstances'] = code

        exit_code, lines = pair.check(capfd)

        [line] = [line for line in lines if line.verdict != 'ok']
        assert line[:3] == ('unknown', 'StopInstances', pair.primary) and exit_code == 0
        assert code in line.words or 'BotoCoreError' in line.words


def test_a_clock_by_which_ec2_refuses_every_call_is_told(pair: Pair, capfd: Any) -> None:
    pair.errors.update(dict.fromkeys(ALL_CALLS, 'RequestExpired'))
    for ahead in (3600, -86400):
        pair.headers['date'] = email.utils.formatdate(time.time() - ahead, usegmt=True)

        exit_code, lines = pair.check(capfd)

        [line] = [line for line in lines if line.verdict == 'FAIL']
        assert line.what == 'clock' and exit_code == 1
        assert abs(int(line.words.split(' s ahead of EC2')[0]) - ahead) < 60
        assert '; run: systemctl enable --now chrony' in line.words

    pair.headers['date'] = email.utils.formatdate(time.time() - 200, usegmt=True)
    assert 'clock' not in {line.what for line in pair.check(capfd)[1]}


# What cannot be asked

def test_the_check_goes_on_without_ec2(pair: Pair, capfd: Any) -> None:
    pair.errors.update(dict.fromkeys(ALL_CALLS, 'no answer'))

    code, lines = pair.check(capfd)

    assert code == 0  # nothing is known to be wrong
    [line] = [line for line in lines if line.verdict != 'ok']
    assert line.verdict == 'unknown' and 'BotoCoreError' in line.words
    assert line.words.endswith('; run: nat_monitor.py --check')
    assert any(line.what == 'cron job' for line in lines)


def test_bad_settings_are_told_first_and_the_host_is_checked_all_the_same(pair: Pair, capfd: Any) -> None:
    pair.file('nat_config.py', "PRIMARY_INSTANCE_ID = ''\nSECONDARY_INSTANCE_ID = ''\nROUTE_TABLE_IDS = []\n"
              'NUM_PINGS = 1\n')

    code, lines = pair.check(capfd)

    assert code == 2
    assert [line.what for line in lines if line.verdict == 'FAIL'] == ['settings', 'settings']
    assert [line.what for line in lines if line.verdict == 'unknown'] == ['ec2']
    assert ('ok', 'forwarding') in [line[:2] for line in lines]
    assert pair.calls == []


def test_an_instance_outside_the_pair_is_a_bad_setting(pair: Pair, capfd: Any) -> None:
    pair.metadata['instance-id'] = 'i-0123456789abcdef0'

    code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict == 'FAIL']
    assert line.about == 'i-0123456789abcdef0' and '; run: nano' in line.words
    assert code == 2


# Files

@pytest.fixture
def above(host: Host, monkeypatch: pytest.MonkeyPatch) -> str:
    """The program and its settings lie two directories further down; return the upper one."""
    if not AS_ROOT:
        pytest.skip('only root can give files away')
    upper = os.path.join(host.root, 'opt')
    for name in ('nat_monitor.py', 'nat_config.py'):
        host.file(f'opt/nat/{name}', pathlib.Path(host.root, name).read_text())
    monkeypatch.setattr(nat_monitor, '__file__', f'{upper}/nat/nat_monitor.py')
    host.settings_file = f'{upper}/nat/nat_config.py'
    return upper


@pytest.mark.parametrize('name, owner, mode', [
    ('nat/nat_config.py', 0, 0o664), ('nat/nat_config.py', 65534, 0o644), ('nat/nat_monitor.py', 0, 0o757),
    ('nat', 0, 0o777), ('nat', 0, 0o1777),  # Python would import what others put there
    ('', 65534, 0o755), ('', 0, 0o775), ('', 0, 0o757), ('', 65534, 0o1755)])
def test_who_can_change_or_swap_the_program_or_its_settings_is_told(
        host: Host, capfd: Any, above: str, name: str, owner: int, mode: int) -> None:
    path = os.path.join(above, name).rstrip('/')
    os.chown(path, owner, owner)
    os.chmod(path, mode)

    code, lines = host.check(capfd, 'files')

    [line] = [line for line in lines if line.verdict != 'ok']
    assert line[:2] == ('FAIL', 'file') and code == 1
    assert line.words == (f'{path} belongs to user {owner}, mode {mode:o}; run: chown root:root {path} && '
                          f'chmod go-w {path}')


def test_a_link_to_the_program_is_followed(host: Host, capfd: Any, above: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.makedirs(f'{host.root}/sbin')
    os.symlink(f'{above}/nat/nat_monitor.py', f'{host.root}/sbin/nat_monitor.py')
    monkeypatch.setattr(nat_monitor, '__file__', f'{host.root}/sbin/nat_monitor.py')
    host.settings_file = f'{host.root}/nat_config.py'
    for wrong in (above, f'{host.root}/sbin'):
        os.chmod(wrong, 0o777)

        _, lines = host.check(capfd, 'files')

        assert [line.words.split()[0] for line in lines if line.verdict != 'ok'] == [wrong]
        os.chmod(wrong, 0o755)


def test_higher_up_others_may_add_files_as_in_tmp(host: Host, capfd: Any, above: str) -> None:
    os.chmod(above, 0o1777)

    assert {line.verdict for line in host.check(capfd, 'files')[1]} == {'ok'}, host.text


# Cron

JOB = '@reboot root {root}/nat_monitor.py >> /var/log/nat_monitor.log 2>&1\n'


def cron_line(host: Host, capfd: Any, name: str, text: str, mode: int = 0o644) -> Line:
    """Put this file there, in the place of the job, and return what is said of it."""
    drop_cron_job(host)
    host.file(name, text.format(root=host.root), mode)
    code, lines = host.check(capfd, 'cron')
    [line] = [line for line in lines if line.what == 'cron job']
    assert code == (line.verdict == 'FAIL'), host.text
    return line


NOT_AS_CRON_WANTS_IT = [
    ('etc/cron.d/nat_monitor', JOB, 0o664),
    ('etc/cron.d/nat_monitor', JOB, 0o755),
    ('etc/cron.d/nat_monitor', JOB.strip(), 0o644),  # the line does not end
    ('etc/cron.d/nat_monitor', JOB.replace('\n', '\r\n'), 0o644),
    ('etc/cron.d/nat_monitor.cron', JOB, 0o644),
    ('etc/cron.d/nat_monitor~', JOB, 0o644),
    ('etc/cron.d/nat_monitor', JOB.replace('root ', 'nobody ', 1), 0o644),
    ('etc/cron.d/nat_monitor', JOB.replace('root ', ''), 0o644),
    ('var/spool/cron/crontabs/root', JOB, 0o600),  # no user there: it would be the command
    ('etc/cron.d/nat_monitor', JOB.replace('{root}', '/nowhere'), 0o644)]
PLAIN_JOBS = [  # wherever their output goes
    ('etc/cron.d/nat_monitor', '@reboot\troot  {root}/nat_monitor.py \n', 0o644),
    *(('etc/cron.d/nat', f'@reboot root {{root}}/nat_monitor.py {rest}\n', 0o600) for rest in (
        '>/dev/null', '&>> /var/log/nat_monitor.log', '>>/var/log/nat_monitor.log 2>&1 </dev/null',
        '> /tmp/out 2> /tmp/err')),
    ('etc/crontab', JOB + '# the end', 0o644),
    ('var/spool/cron/root', JOB.replace('root ', ''), 0o600),
    ('var/spool/cron/crontabs/root', '# m h dom mon dow command\n' + JOB.replace('root ', ''), 0o600)]
OF_ANOTHER_FORM = [
    ('etc/cron.d/nat', '@reboot root flock -n /run/n.lock {root}/nat_monitor.py >> /var/log/nat_monitor.log 2>&1'),
    ('etc/cron.d/nat', '@reboot root nat_monitor.py >> /var/log/nat_monitor.log 2>&1'),  # depends on PATH
    ('etc/cron.d/nat', '@reboot root {root}/nat_monitor.py 2>&1 | logger -t nat'),
    ('etc/cron.d/nat', '@reboot root {root}/nat_monitor.py --check >> /tmp/log'),
    ('etc/cron.d/nat', '*/5 * * * * root pgrep nat_monitor.py || {root}/nat_monitor.py >> /tmp/log'),
    ('var/spool/cron/root', '@reboot nohup {root}/nat_monitor.py &'),
    ('var/spool/cron/crontabs/admin', '@reboot sudo {root}/nat_monitor.py'),
    ('var/spool/cron/crontabs/admin', '@reboot {root}/nat_monitor.py'),
    ('etc/systemd/system/nat.service', '[Service]\nExecStart={root}/nat_monitor.py'),
    ('usr/lib/systemd/system/nat.service', '[Service]\nExecStart=/bin/sh -c \\\n  {root}/nat_monitor.py'),
    ('etc/systemd/system/nat.service.d/start.conf', '[Service]\nExecStart={root}/nat_monitor.py'),
    ('etc/rc.local', '#!/bin/sh\n{root}/nat_monitor.py >> /var/log/nat_monitor.log 2>&1 &'),
    ('etc/rc.d/rc.local', '{root}/nat_monitor.py &'),
    ('etc/init.d/nat', 'start-stop-daemon --start --exec {root}/nat_monitor.py'),
    ('etc/cron.d.bak/nat', JOB.strip()), ('etc/crontab-old', JOB.strip()),
    ('etc/cron.hourly/nat', 'pgrep nat_monitor.py || {root}/nat_monitor.py &'),
    ('var/lib/cloud/scripts/per-boot/nat', '{root}/nat_monitor.py &')]


@pytest.mark.parametrize('verdict, name, text, mode', [
    *(('unknown', *one) for one in NOT_AS_CRON_WANTS_IT), *(('ok', *one) for one in PLAIN_JOBS),
    *(('unknown', name, f'{text}\n', 0o644) for name, text in OF_ANOTHER_FORM)])
def test_only_a_plain_job_for_root_in_a_file_that_cron_accepts_is_sure_to_start_the_monitor(
        host: Host, capfd: Any, verdict: str, name: str, text: str, mode: int) -> None:
    line = cron_line(host, capfd, name, text, mode)

    assert line.verdict == verdict, host.text
    [mention] = [each.strip() for each in text.format(root=host.root).splitlines() if 'nat_monitor.py' in each]
    assert line.words.partition('; run: ')[0] == f'{host.root}/{name}: {mention}'


def test_a_job_in_a_file_that_is_not_roots_is_not_sure_to_start_it(host: Host, capfd: Any) -> None:
    cron_line(host, capfd, 'etc/cron.d/nat_monitor', JOB)
    os.chown(os.path.join(host.root, 'etc/cron.d/nat_monitor'), 1, 0)

    host.check(capfd, 'cron')

    assert 'unknown cron job' in ' '.join(host.text.split())


@pytest.mark.parametrize('name', [
    'etc/cron.d/nat_monitor', 'etc/rc.local', 'etc/systemd/system/nat.service', 'etc/logrotate.d/nat_monitor'])
def test_a_comment_starts_nothing(host: Host, capfd: Any, name: str) -> None:
    assert cron_line(host, capfd, name, f' # {JOB}').words.startswith('none starts the monitor')


def test_a_job_of_cron_wins_over_what_is_not_clear(host: Host, capfd: Any) -> None:
    host.file('etc/rc.local', 'nat_monitor.py &\n')

    assert cron_line(host, capfd, 'etc/cron.d/nat', JOB).verdict == 'ok'


def test_each_private_network_has_its_line_and_the_peer_where_it_probes(pair: Pair, capfd: Any) -> None:
    subnet = pair.ec2.create_subnet(VpcId=pair.vpc, CidrBlock='10.0.2.0/24')['Subnet']['SubnetId']
    pair.ec2.associate_route_table(RouteTableId=pair.table, SubnetId=subnet)
    edit_settings(pair, 'ELASTIC_IP', f'PROBE_ADDRESS = {TARGET!r}\nELASTIC_IP')
    masquerade(pair, 'ip saddr 10.0.1.0/24 masquerade')
    peer = pair.instances[pair.primary]['PrivateIpAddress'] + '/32'

    _, lines = pair.check(capfd)

    told = [line for line in lines if line.what == 'masquerading']
    assert [line[:3] for line in told] == [('ok', 'masquerading', '10.0.1.0/24'), *(
        ('FAIL', 'masquerading', whom) for whom in ('10.0.2.0/24', peer))]
    assert f'ip saddr {peer} oif' in told[2].words


def test_rules_that_cannot_be_listed_are_unknown(host: Host, capfd: Any) -> None:
    host.file('bin/nft', '#!/bin/sh\nexit 1\n', 0o755)

    _, lines = host.check(capfd, 'nat')

    told = {line.what: line.words for line in lines if line.verdict == 'unknown'}
    assert set(told) == {'forwarding', 'masquerading'}
    assert all('exit status 1' in words for words in told.values())


OFF, ON = 'net.ipv4.ip_forward = 0\n', 'net.ipv4.ip_forward = 1\n'


@pytest.mark.parametrize('files, told', [
    ({'etc/sysctl.d/90-nat.conf': ON}, ''),
    ({'etc/sysctl.d/90-nat.conf': ON, 'usr/lib/sysctl.d/50-default.conf': OFF}, ''),
    ({'etc/sysctl.d/90-nat.conf': ON, 'usr/lib/sysctl.d/99-hard.conf': OFF}, 'usr/lib/sysctl.d/99-hard.conf'),
    ({'etc/sysctl.d/90-nat.conf': ON, 'run/sysctl.d/90-nat.conf': OFF}, ''),  # the one in /etc takes its place
    ({'etc/sysctl.d/90-nat.conf': ON, 'etc/sysctl.conf': f'# {ON}{OFF}'}, 'etc/sysctl.conf'),
    ({'etc/sysctl.conf': f'#{OFF};{OFF}'}, ''),
    ({'etc/sysctl.conf': f'{OFF}{ON}'}, ''),
    ({'etc/sysctl.d/9.conf': f'{ON}-net/ipv4/conf/all/forwarding=0'}, 'etc/sysctl.d/9.conf'),
    ({'etc/sysctl.d/9.conf': f'{ON}net.ipv4.conf.ens5.forwarding=0'}, 'etc/sysctl.d/9.conf'),
    ({'etc/sysctl.d/9.conf': f'{ON}net.ipv4.conf.docker0.forwarding=0'}, ''),
    ({'etc/sysctl.d/9.conf': f'{ON}net.ipv4.conf.all.mc_forwarding=0'}, ''),
])
def test_a_file_that_turns_forwarding_off_at_the_next_boot_is_told(
        host: Host, capfd: Any, files: Dict[str, str], told: str) -> None:
    for name, text in files.items():
        host.file(name, text)
    os.makedirs(f'{host.root}/etc/sysctl.d', exist_ok=True)
    os.symlink('../sysctl.conf', f'{host.root}/etc/sysctl.d/99-sysctl.conf')  # as distributions have it

    _, lines = host.check(capfd, 'sysctl')

    assert [line.words.split()[0] for line in lines if line.verdict == 'warn'] == (
        [os.path.join(host.root, told)] if told else [])
    for command in (line.words.partition('run: ')[2] for line in lines if line.verdict == 'warn'):
        subprocess.run(command, shell=True, check=True)  # and does what it says
        assert 'warn' not in {line.verdict for line in host.check(capfd, 'sysctl')[1]}


def test_a_suspended_monitor_is_told(host: Host, capfd: Any) -> None:
    with subprocess.Popen(['sleep', '60']) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            host.hold_lock(process.pid)

            code, lines = host.check(capfd, 'monitor')
        finally:
            process.kill()
    [line] = [line for line in lines if line.verdict == 'FAIL']
    assert line.what == 'monitor' and line.words.endswith(f'run: kill -CONT {process.pid}') and code == 1


# In the lab: the program as it is installed, asking EC2 over HTTP and pinging with real packets

TO_DOCKER = '''  # a network that has both addresses of the pair
ip link add docker0 type bridge
ip address add 10.0.0.9/29 dev docker0
ip link set docker0 up'''
INSTALL_JOB = '''set -e
mount -t tmpfs -o mode=0755 tmpfs /etc/cron.d
cat >/etc/cron.d/nat_monitor
chmod 0644 /etc/cron.d/nat_monitor'''


@pytest.fixture(scope='module')
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A pair that is set up as it should be, with no monitor running, so that nobody else calls EC2."""
    python = str(request.config.getoption('--monitor-python'))
    with Lab({'PING_TIMEOUT': 0.4, 'PROBE_ADDRESS': ECHO}, python=python, start=False) as lab:
        iam = iam_backends[ACCOUNT]['aws']
        iam.reset()
        iam.create_instance_profile('NAT_Monitor', '/', [])
        job = pathlib.Path(nat_monitor.SETTINGS_FILE).with_name('nat_monitor.cron').read_text()
        for instance in lab.instances.values():
            lab.ec2.backend.associate_iam_instance_profile(instance.id, iam_instance_profile_name='NAT_Monitor')
            instance.run('sh', '-c', INSTALL_JOB, input=job, check=True)
        yield lab
        iam.reset()  # moto keeps it in this process, where other tests make one of that name


def run_check(lab: Lab) -> Tuple[List[Line], str]:
    """Run --check on the primary; return its lines but for cron's, which the lab lacks, and all of them as text."""
    since = time.monotonic()
    result = lab.primary.run(*lab.primary.monitor_command, '--check')
    assert [call for call in lab.ec2.calls(since=since) if not call.action.startswith('Describe')] == []
    assert result.stderr == ''
    return [line for line in read_lines(result.stdout) if line.what != 'cron daemon'], result.stdout


@pytest.mark.core
@pytest.mark.lab
def test_a_healthy_pair_in_the_lab_is_all_ok_beside_a_running_monitor(lab: Lab) -> None:
    lab.primary.start_monitor()
    lab.wait_until(lambda: f'at {lab.primary.id}' in lab.primary.log, 'it knows that it serves')

    lines, text = run_check(lab)

    assert {line.verdict for line in lines} == {'ok'}, text
    assert any(line.what == 'monitor' and 'runs with pid' in line.words for line in lines)
    lab.primary.kill_monitor()


@pytest.mark.lab
@pytest.mark.parametrize('do, undo, what, also', [
    pytest.param(lambda lab: lab.secondary.forwarding(False), lambda lab: lab.secondary.forwarding(True),
                 'forwards', set(), id='peer does not forward', marks=pytest.mark.core),
    pytest.param(lambda lab: lab.primary.node.run('sh', '-ec', TO_DOCKER),
                 lambda lab: lab.primary.node.run('ip', 'link', 'del', 'docker0'),
                 'ping', {'forwards', 'masquerading', 'forwarding'}, id='the way to the peer is another one')])
def test_each_fault_in_the_lab_is_told_by_its_own_line(
        lab: Lab, do: Callable[[Lab], Any], undo: Callable[[Lab], Any], what: str, also: Set[str]) -> None:
    do(lab)
    lines, text = run_check(lab)
    undo(lab)

    told = {line.what: line for line in lines if line.verdict != 'ok' and line.what != 'monitor'}
    assert told[what].verdict == 'FAIL', text
    assert set(told) - {what} <= also, text
    assert all('; run: ' in line.words for line in told.values()), text


@pytest.mark.lab
def test_ctrl_c_during_the_check_is_no_success(lab: Lab) -> None:
    since = time.monotonic()
    with contextlib.closing(lab.ec2.inject('silent')):
        terminal = lab.primary.terminal(*lab.primary.monitor_command, '--check')
        lab.wait_until(lambda: lab.ec2.calls('DescribeInstances', since=since), 'it asks EC2')
        terminal.type('\x03')
        lab.wait_until(lambda: terminal.exit_code is not None, 'it ends at once')

    assert terminal.exit_code == 1 and 'Traceback' not in terminal.output
