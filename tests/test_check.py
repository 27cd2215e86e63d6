"""--check: a healthy pair, then each fault alone, in moto's EC2 and with the real monitors of the lab."""
from __future__ import annotations

import contextlib
import email.utils
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Set, Tuple

import boto3
import pytest
import requests
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.iam.models import iam_backends

import nat_monitor
from tests.cloud_pair import (ACCOUNT, AS_ROOT, MASQUERADE, NO_RULES, REGION, Line, Pair, credentials, read_lines,
                              serving_metadata)
from tests.lab.lab import Lab
from tests.lab.network import ECHO, ELASTIC_IP


@pytest.fixture
def pair(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.setenv(name, 'test')
    monkeypatch.setenv('AWS_DEFAULT_REGION', REGION)
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
    monkeypatch.setattr(nat_monitor, '__file__', str(tmp_path / 'nat_monitor.py'))
    role = {'iam/security-credentials/': 'NAT_Monitor',
            'iam/security-credentials/NAT_Monitor': credentials('ASIAROLE', 'verysecret', 'verysecret')}
    with mock_aws(), serving_metadata(role, monkeypatch):
        yield Pair(str(tmp_path))


def test_all_is_well_with_a_healthy_pair_and_nothing_is_changed(pair: Pair, capfd: Any) -> None:
    started_at = time.monotonic()

    code, lines = pair.check(capfd)

    assert {line.verdict for line in lines} == {'ok'}, pair.text
    assert code == 0
    assert pair.mutations() == []
    assert time.monotonic() - started_at < 5


def test_every_key_task_has_its_line(pair: Pair, capfd: Any) -> None:
    _, lines = pair.check(capfd)

    said = [(line.what, line.about) for line in lines if line.what != 'file']
    assert len(set(said)) == len(said)
    for i in pair.instances:
        for what in ('state', 'source/dest. check', 'network interface', 'public address',
                     'instance profile', 'can be stopped', 'Auto Scaling group', 'maintenance'):
            assert (what, i) in said
    for action in ('DescribeInstances', 'DescribeInstanceStatus', 'DescribeRouteTables', 'DescribeAddresses',
                   'ReplaceRoute', 'CreateRoute', 'AssociateAddress', 'StopInstances', 'StartInstances'):
        assert ('permission', action) in said
    for what in ('route table', 'subnets', 'default route'):
        assert (what, pair.table) in said
    assert ('Elastic IP', pair.address) in said and ('ping', pair.primary) in said
    assert ('masquerading', '10.0.1.0/24') in said
    for what in ('settings', 'longest outage', 'forwarding', 'cron job', 'monitor'):
        assert (what, '') in said


# Each fault, on a pair that is otherwise healthy: what is done to it; the line that tells; a word of its remedy.

def stop_primary(pair: Pair) -> None:
    pair.ec2.stop_instances(InstanceIds=[pair.primary])


def check_source(pair: Pair) -> None:
    pair.ec2.modify_instance_attribute(InstanceId=pair.primary, SourceDestCheck={'Value': True})


def add_interface(pair: Pair) -> None:
    interface = pair.ec2.create_network_interface(SubnetId=pair.public)['NetworkInterface']['NetworkInterfaceId']
    pair.ec2.attach_network_interface(NetworkInterfaceId=interface, InstanceId=pair.primary, DeviceIndex=1)


def take_public_address(pair: Pair) -> None:
    pair.record(pair.secondary).nics[0].public_ip = None
    pair.record(pair.secondary).nics[0].public_ip_auto_assign = False
    pair.record(pair.secondary).associate_public_ip = False


def take_profile(pair: Pair) -> None:
    found = pair.ec2.describe_iam_instance_profile_associations()['IamInstanceProfileAssociations']
    for one in found:
        if one['InstanceId'] == pair.primary:
            pair.ec2.disassociate_iam_instance_profile(AssociationId=one['AssociationId'])


def protect(pair: Pair) -> None:
    pair.record(pair.primary).disable_api_stop = 'true'


def keep_root_on_host(pair: Pair) -> None:
    pair.record(pair.primary).root_device_type = 'instance-store'


def make_spot(pair: Pair) -> None:
    request = pair.ec2.request_spot_instances(InstanceCount=1, SpotPrice='1', LaunchSpecification={
        'ImageId': 'ami-12345678'}, Type='one-time')['SpotInstanceRequests'][0]['SpotInstanceRequestId']
    pair.record(pair.primary).spot_instance_request_id = request


def put_into_group(pair: Pair) -> None:
    pair.backend.create_tags([pair.primary], {'aws:autoscaling:groupName': 'nats'})


def tag_for_maintenance(pair: Pair) -> None:
    pair.ec2.create_tags(Resources=[pair.primary], Tags=[{'Key': TAG, 'Value': 'until noon'}])


def delete_table(pair: Pair) -> None:
    pair.ec2.disassociate_route_table(AssociationId=pair.association)
    pair.ec2.delete_route_table(RouteTableId=pair.table)


def use_foreign_table(pair: Pair) -> None:
    vpc = pair.ec2.create_vpc(CidrBlock='10.9.0.0/16')['Vpc']['VpcId']
    table = pair.ec2.create_route_table(VpcId=vpc)['RouteTable']['RouteTableId']
    subnet = pair.ec2.create_subnet(VpcId=vpc, CidrBlock='10.9.0.0/24')['Subnet']['SubnetId']
    pair.ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
    use_table(pair, table)


def use_table(pair: Pair, table: str) -> None:
    path = os.path.join(pair.root, 'nat_config.py')
    with open(path) as file:
        text = file.read().replace(pair.table, table)
    pair.file('nat_config.py', text)
    pair.table = table
    pair.ec2.create_tags(Resources=[table], Tags=[{'Key': 'nat_monitor', 'Value': 'true'}])


def serve_nobody(pair: Pair) -> None:
    pair.ec2.disassociate_route_table(AssociationId=pair.association)


def use_own_table(pair: Pair) -> None:
    use_table(pair, pair.public_table)


def use_main_table(pair: Pair) -> None:
    """Leave the pair's subnet without a table of its own, so that it uses the main one."""
    tables = pair.ec2.describe_route_tables(Filters=[{'Name': 'vpc-id', 'Values': [pair.vpc]}])['RouteTables']
    for table in tables:
        for link in table['Associations']:
            if link.get('SubnetId') == pair.public:
                pair.ec2.disassociate_route_table(AssociationId=link['RouteTableAssociationId'])
    use_table(pair, next(t['RouteTableId'] for t in tables if any(a.get('Main') for a in t['Associations'])))


def route_elsewhere(pair: Pair) -> None:
    pair.ec2.replace_route(RouteTableId=pair.table, DestinationCidrBlock='0.0.0.0/0', GatewayId=pair.gateway)


def release_address(pair: Pair) -> None:
    pair.ec2.disassociate_address(AssociationId=pair.ec2.describe_addresses()['Addresses'][0]['AssociationId'])
    pair.ec2.release_address(AllocationId=pair.allocation)


def give_address_away(pair: Pair) -> None:
    other = pair.ec2.run_instances(ImageId='ami-12345678', MinCount=1, MaxCount=1)['Instances'][0]['InstanceId']
    pair.ec2.associate_address(AllocationId=pair.allocation, InstanceId=other, AllowReassociation=True)


def block_ping(pair: Pair) -> None:
    pair.deaf.add(pair.instances[pair.primary]['PrivateIpAddress'])


def forward_nothing(pair: Pair) -> None:
    pair.file('proc/sys/net/ipv4/ip_forward', '0\n')


def drop_rules(pair: Pair) -> None:
    pair.firewall(NO_RULES)


def drop_cron_job(pair: Pair) -> None:
    os.remove(os.path.join(pair.root, 'etc/cron.d/nat_monitor'))


def end_monitor(pair: Pair) -> None:
    pair.file('proc/locks', '')


def switch_metadata_off(pair: Pair) -> None:
    error = requests.HTTPError('403 Client Error: Forbidden')
    pair.metadata.update(dict.fromkeys(pair.metadata, error))


def take_role(pair: Pair) -> None:
    pair.metadata['iam/security-credentials/'] = requests.HTTPError('404 Client Error: Not Found')


@pytest.mark.parametrize('spoil, verdict, what, remedy', [
    (stop_primary, 'FAIL', 'state', 'aws ec2 start-instances --instance-ids {primary}'),
    (check_source, 'FAIL', 'source/dest. check',
     'aws ec2 modify-instance-attribute --instance-id {primary} --no-source-dest-check'),
    (add_interface, 'FAIL', 'network interface', 'aws ec2 detach-network-interface --attachment-id eni-attach-'),
    (take_public_address, 'warn', 'public address', '--associate-public-ip-address --network-interface-id eni-'),
    (take_profile, 'FAIL', 'instance profile', 'associate-iam-instance-profile --iam-instance-profile '
     'Name=NAT_Monitor --instance-id {primary}'),
    (protect, 'FAIL', 'can be stopped', '--instance-id {primary} --no-disable-api-stop'),
    (keep_root_on_host, 'FAIL', 'can be stopped', 'launch another one'),
    (make_spot, 'FAIL', 'can be stopped', 'launch another one'),
    (put_into_group, 'FAIL', 'Auto Scaling group', 'aws autoscaling detach-instances --instance-ids {primary} '
     '--auto-scaling-group-name nats'),
    (tag_for_maintenance, 'warn', 'maintenance',
     'aws ec2 delete-tags --resources {primary} --tags Key=nat_monitor_maintenance'),
    (delete_table, 'FAIL', 'route table', 'nano '),
    (use_foreign_table, 'FAIL', 'route table', 'nano '),
    (serve_nobody, 'FAIL', 'subnets', 'aws ec2 associate-route-table --route-table-id {table}'),
    (use_own_table, 'FAIL', 'subnets', 'aws ec2 associate-route-table'),
    (use_main_table, 'FAIL', 'subnets', '--subnet-id {public}'),
    (route_elsewhere, 'warn', 'default route', 'describe-route-tables --route-table-ids {table}'),
    (release_address, 'FAIL', 'Elastic IP', 'aws ec2 describe-addresses'),
    (give_address_away, 'warn', 'Elastic IP', 'aws ec2 describe-addresses --public-ips {address}'),
    (block_ping, 'FAIL', 'ping', 'aws ec2 authorize-security-group-ingress --group-id sg-'),
    (forward_nothing, 'FAIL', 'forwarding', 'sysctl'),
    (drop_rules, 'FAIL', 'masquerading', 'nft '),
    (drop_cron_job, 'FAIL', 'cron job', 'install -m 644 nat_monitor.cron /etc/cron.d/nat_monitor'),
    (end_monitor, 'warn', 'monitor', "nat_monitor.py >> /var/log/nat_monitor.log 2>&1' | at now"),
    (switch_metadata_off, 'FAIL', 'metadata', '--http-endpoint enabled'),
    (take_role, 'FAIL', 'role', 'associate-iam-instance-profile'),
], ids=lambda value: getattr(value, '__name__', None))
def test_each_fault_is_told_by_its_own_line(pair: Pair, capfd: Any, spoil: Any, verdict: str, what: str, remedy: str
                                            ) -> None:
    spoil(pair)

    code, lines = pair.check(capfd)

    told = [line for line in lines if line.verdict == verdict]
    assert {line.what for line in told} == {what}, pair.text
    assert any(remedy.format(**vars(pair)) in line.words for line in told), pair.text
    assert all(line.words.rpartition('; ')[2] for line in lines if line.verdict != 'ok')
    assert code == (1 if verdict == 'FAIL' else 0)
    assert pair.mutations() == []


TARGET = '203.0.113.20'


@pytest.mark.parametrize('probed, deaf, verdict, words', [
    ((0.0004,), '', 'ok', 'a packet through it came back in 0.4 ms'),
    ((0.0004,), TARGET, 'ok', 'a packet through it came back in 0.4 ms'),
    ((None,), '', 'FAIL', 'a packet through it did not come back; run: nat_monitor.py --check  # there'),
    ((None, '02:00:00:00:00:01'), '', 'FAIL', 'a packet through it came back beside it, from 02:00:00:00:00:01; '
     'run: nat_monitor.py --check  # there'),
    ((None,), TARGET, 'unknown', f'a packet through it did not come back, nor did one to {TARGET} by the own route; '
     f'run: ping -c 20 {TARGET}'),
    (nat_monitor.NoNeighbour('said the test'), '', 'unknown', 'it cannot be probed from here: said the test; '
     'run: ip neigh show '),
    (nat_monitor.OwnFault('Network is down'), '', 'FAIL', 'OwnFault: Network is down; run: ip route')])
def test_a_packet_through_the_peer_is_told(pair: Pair, capfd: Any, probed: Any, deaf: str, verdict: str, words: str
                                           ) -> None:
    set_probe_address(pair)
    pair.probed = probed
    pair.deaf.add(deaf)

    code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.what == 'forwards']
    assert (line.verdict, line.about) == (verdict, pair.primary)
    assert line.words.startswith(words), line.words
    assert {line.what for line in lines if line.verdict != 'ok'} <= {'forwards'}, pair.text
    assert code == (1 if verdict == 'FAIL' else 0)


def test_nothing_is_sent_through_a_peer_without_an_address_of_ec2(pair: Pair, capfd: Any) -> None:
    set_probe_address(pair)
    pair.errors['DescribeInstances'] = 'no answer'

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.what == 'forwards']
    assert line.verdict == 'unknown' and 'private address' in line.words


def test_without_the_setting_nothing_is_sent_through_the_peer(pair: Pair, capfd: Any) -> None:
    pair.probed = AssertionError('probed')

    _, lines = pair.check(capfd)

    assert 'forwards' not in {line.what for line in lines}


def set_probe_address(pair: Pair) -> None:
    with open(os.path.join(pair.root, 'nat_config.py'), 'a') as file:
        file.write(f'PROBE_ADDRESS = {TARGET!r}\n')


ALL_CALLS = ('DescribeInstances', 'DescribeInstanceStatus', 'DescribeRouteTables', 'DescribeAddresses', 'ReplaceRoute',
             'CreateRoute', 'AssociateAddress', 'StopInstances', 'StartInstances')


@pytest.mark.parametrize('action, remedy', [
    ('DescribeInstances', 'put-role-policy'), ('DescribeInstanceStatus', 'put-role-policy'),
    ('DescribeRouteTables', 'put-role-policy'), ('DescribeAddresses', 'put-role-policy'),
    ('ReplaceRoute', 'put-role-policy'), ('CreateRoute', 'put-role-policy'),
    ('AssociateAddress', 'create-tags --resources {allocation} eni-'),
    ('StopInstances', 'put-role-policy'), ('StartInstances', 'put-role-policy')])
def test_each_missing_permission_is_told(pair: Pair, capfd: Any, action: str, remedy: str) -> None:
    pair.errors[action] = 'UnauthorizedOperation'

    code, lines = pair.check(capfd)

    told = [line for line in lines if line.verdict == 'FAIL']
    assert [(line.what, line.about) for line in told] == [('permission', action)], pair.text
    assert remedy.format(**vars(pair)) in told[0].words
    assert code == 1
    assert pair.mutations() == []


@pytest.mark.parametrize('action, what', [
    ('DescribeInstanceAttribute', 'can be stopped'), ('DescribeSpotInstanceRequests', 'can be stopped'),
    ('DescribeSubnets', 'masquerading')])
def test_what_only_the_check_needs_is_unknown_without_its_permission(pair: Pair, capfd: Any, action: str, what: str
                                                                     ) -> None:
    make_spot(pair)
    pair.errors['DescribeSpotInstanceRequests'] = pair.errors[action] = 'UnauthorizedOperation'

    code, lines = pair.check(capfd)

    told = [line for line in lines if line.verdict != 'ok']
    assert {(line.verdict, line.what) for line in told} == {('unknown', what), ('unknown', 'can be stopped')}, pair.text
    assert code == 0


def test_a_missing_tag_is_told_with_the_command_that_sets_it(pair: Pair, capfd: Any) -> None:
    pair.ec2.delete_tags(Resources=[pair.table, pair.allocation], Tags=[{'Key': 'nat_monitor'}])
    pair.errors.update(dict.fromkeys(('ReplaceRoute', 'CreateRoute', 'AssociateAddress'), 'UnauthorizedOperation'))

    _, lines = pair.check(capfd)

    words = {line.about: line.words for line in lines if line.verdict == 'FAIL'}
    for action in ('ReplaceRoute', 'CreateRoute'):
        assert words[action].endswith(f'run: aws ec2 create-tags --resources {pair.table} --tags '
                                      'Key=nat_monitor,Value=true')
    assert re.search(f'run: aws ec2 create-tags --resources {pair.allocation} eni-[0-9a-f]+ --tags '
                     'Key=nat_monitor,Value=true$', words['AssociateAddress'])


def test_a_missing_profile_is_told_with_the_command_that_gives_it(pair: Pair, capfd: Any) -> None:
    take_profile(pair)
    pair.errors['StopInstances'] = 'UnauthorizedOperation'

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.about == 'StopInstances']
    assert line.words.endswith('aws ec2 associate-iam-instance-profile --iam-instance-profile Name=NAT_Monitor '
                               f'--instance-id {pair.primary}')


@pytest.mark.parametrize('code', ['RequestLimitExceeded', 'OperationNotPermitted', 'no answer'])
def test_another_answer_to_a_dry_run_is_unknown_and_shown(pair: Pair, capfd: Any, code: str) -> None:
    pair.errors['StopInstances'] = code

    exit_code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict != 'ok']
    assert (line.verdict, line.about) == ('unknown', 'StopInstances')
    assert code in line.words or 'BotoCoreError' in line.words
    assert exit_code == 0


@pytest.mark.parametrize('code', ['AuthFailure', 'RequestExpired', 'SignatureDoesNotMatch'])
@pytest.mark.parametrize('ahead, words', [(3600, 's ahead of EC2'), (-86400, 's behind EC2')])
def test_a_wrong_clock_is_told_with_its_skew(pair: Pair, capfd: Any, code: str, ahead: float, words: str) -> None:
    pair.errors.update(dict.fromkeys(ALL_CALLS, code))
    pair.headers['date'] = email.utils.formatdate(time.time() - ahead, usegmt=True)

    exit_code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.what == 'clock']
    assert line.verdict == 'FAIL' and exit_code == 1
    assert abs(int(line.words.split()[0]) - abs(ahead)) < 5
    assert f'{words}, which says {code}: said the test; run: systemctl enable --now chrony' in line.words


@pytest.mark.parametrize('date', ['', 'yesterday', 'Thu, 99 Foo 2026 00:00:00 GMT'])
def test_a_refusal_for_another_reason_says_nothing_of_the_clock(pair: Pair, capfd: Any, date: str) -> None:
    pair.errors.update(dict.fromkeys(ALL_CALLS, 'AuthFailure'))
    pair.headers['date'] = date or email.utils.formatdate(time.time() - 200, usegmt=True)

    _, lines = pair.check(capfd)

    assert 'clock' not in {line.what for line in lines}, pair.text


def test_the_skew_is_that_of_an_answer_with_a_date() -> None:
    assert nat_monitor.clock_skew(ValueError()) == 0.0
    for headers in ({}, {'date': 'x'}, {'date': None}):
        answer: Any = {'Error': {}, 'ResponseMetadata': {'HTTPHeaders': headers}}
        assert nat_monitor.clock_skew(ClientError(answer, 'Any')) == 0.0
    answer['ResponseMetadata']['HTTPHeaders'] = {'date': email.utils.formatdate(time.time() + 600)}
    assert nat_monitor.clock_skew(ClientError(answer, 'Any')) == pytest.approx(-600, abs=2)


def test_credentials_that_win_over_the_role_are_told(pair: Pair, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise nat_monitor.Refusal('the credentials are those of /root/.aws/credentials, not the role')

    monkeypatch.setattr(pair, 'connect', refuse)

    code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict == 'FAIL']
    assert line.what == 'EC2' and '/root/.aws/credentials' in line.words and 'nano' not in line.words
    assert code == 2


@pytest.mark.parametrize('reason', ['Client.InternalError', 'Client.InvalidKMSKey.InvalidState'])
def test_a_start_that_ended_in_stopped_names_the_permission_for_the_key(pair: Pair, capfd: Any, reason: str) -> None:
    pair.ec2.stop_instances(InstanceIds=[pair.primary])
    pair.record(pair.primary).state_reason.code = reason
    pair.record(pair.primary).state_reason.message = f'{reason}: Client error on launch'

    code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.what == 'state' and line.verdict == 'FAIL']
    assert line.words.startswith(f'stopped ({reason}: Client error on launch): ') and 'kms:CreateGrant' in line.words
    assert code == 1


def test_a_peer_that_somebody_stopped_lacks_no_key(pair: Pair, capfd: Any) -> None:
    stop_primary(pair)

    pair.check(capfd)

    assert 'kms' not in pair.text


def test_the_check_goes_on_without_ec2(pair: Pair, capfd: Any) -> None:
    pair.errors.update(dict.fromkeys(ALL_CALLS, 'no answer'))

    code, lines = pair.check(capfd)

    assert code == 0  # nothing is known to be wrong
    assert {line.what for line in lines if line.verdict == 'unknown'} == {
        'permission', 'instance', 'route table', 'Elastic IP', 'ping', 'longest outage'}
    assert any(line.what == 'cron job' for line in lines)


def test_a_ping_that_cannot_leave_this_host_is_a_fault_here(pair: Pair, capfd: Any,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> bool:
        raise nat_monitor.OwnFault('Network is unreachable')

    monkeypatch.setattr(pair, 'ping', fail)

    code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict != 'ok']
    assert (line.verdict, line.what) == ('FAIL', 'ping') and 'Network is unreachable; run: ip route' in line.words
    assert code == 1


def test_another_profile_is_told_with_the_command_that_replaces_it(pair: Pair, capfd: Any) -> None:
    take_profile(pair)
    boto3.client('iam').create_instance_profile(InstanceProfileName='Other')
    pair.ec2.associate_iam_instance_profile(IamInstanceProfile={'Name': 'Other'}, InstanceId=pair.primary)

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict != 'ok']
    assert line[:3] == ('FAIL', 'instance profile', pair.primary)
    assert 'replace-iam-instance-profile-association --iam-instance-profile Name=NAT_Monitor' in line.words


def test_an_instance_that_does_not_exist_is_told_and_the_rest_goes_on(pair: Pair, capfd: Any) -> None:
    with open(os.path.join(pair.root, 'nat_config.py')) as file:
        pair.file('nat_config.py', file.read().replace(pair.primary, 'i-0123456789abcdef0'))

    code, lines = pair.check(capfd)

    assert ('FAIL', 'instance', 'i-0123456789abcdef0') in [line[:3] for line in lines]
    assert ('ok', 'state', pair.secondary) in [line[:3] for line in lines]
    assert ('unknown', 'ping') in [line[:2] for line in lines]
    assert code == 1


def test_bad_settings_are_told_first_and_the_host_is_checked_all_the_same(pair: Pair, capfd: Any) -> None:
    pair.file('nat_config.py', "PRIMARY_INSTANCE_ID = ''\nSECONDARY_INSTANCE_ID = ''\nROUTE_TABLE_IDS = []\n"
              'NUM_PINGS = 1\n')

    code, lines = pair.check(capfd)

    assert code == 2
    assert [line.what for line in lines if line.verdict == 'FAIL'] == ['settings', 'settings']
    assert [line.what for line in lines if line.verdict == 'unknown'] == ['EC2']
    assert ('ok', 'forwarding') in [line[:2] for line in lines]
    assert pair.calls == []


def test_an_instance_outside_the_pair_is_a_bad_setting(pair: Pair, capfd: Any) -> None:
    pair.metadata['instance-id'] = 'i-0123456789abcdef0'

    code, lines = pair.check(capfd)

    assert code == 2
    [line] = [line for line in lines if line.verdict == 'FAIL']
    assert line[:3] == ('FAIL', 'this instance', 'i-0123456789abcdef0')


@pytest.mark.skipif(not AS_ROOT, reason='only root can give files to root')
@pytest.mark.parametrize('name, mode, what', [('nat_config.py', 0o664, 'file'), ('nat_monitor.py', 0o757, 'file'),
                                              ('.', 0o777, 'file')])
def test_what_others_can_write_is_told(pair: Pair, capfd: Any, name: str, mode: int, what: str) -> None:
    path = os.path.normpath(os.path.join(pair.root, name))
    os.chmod(path, mode)

    code, lines = pair.check(capfd)

    told = [line for line in lines if line.verdict == 'FAIL']
    assert {line.what for line in told} == {what} and code == 1
    assert f'run: chown root:root {path} && chmod go-w {path}' in told[0].words


@pytest.fixture
def above(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> str:
    """The program and its settings lie two directories further down; return the upper one."""
    upper = os.path.join(pair.root, 'opt')
    for name in ('nat_monitor.py', 'nat_config.py'):
        with open(os.path.join(pair.root, name)) as file:
            pair.file(f'opt/nat/{name}', file.read())
    monkeypatch.setattr(nat_monitor, '__file__', f'{upper}/nat/nat_monitor.py')
    pair.settings_file = f'{upper}/nat/nat_config.py'
    return upper


@pytest.mark.skipif(not AS_ROOT, reason='only root can give files away')
@pytest.mark.parametrize('owner, mode', [(65534, 0o755), (0, 0o775), (0, 0o757), (65534, 0o1755)])
def test_who_can_rename_a_directory_above_can_swap_the_program(pair: Pair, capfd: Any, above: str, owner: int,
                                                               mode: int) -> None:
    os.chown(above, owner, owner)
    os.chmod(above, mode)

    code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict != 'ok']
    assert line[:2] == ('FAIL', 'file') and code == 1
    assert line.words == (f'{above} belongs to user {owner}, mode {mode:o}; run: chown root:root {above} && '
                          f'chmod go-w {above}')


@pytest.mark.skipif(not AS_ROOT, reason='only root can give files away')
def test_a_link_to_the_program_is_followed(pair: Pair, capfd: Any, above: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.makedirs(f'{pair.root}/sbin')
    os.symlink(f'{above}/nat/nat_monitor.py', f'{pair.root}/sbin/nat_monitor.py')
    monkeypatch.setattr(nat_monitor, '__file__', f'{pair.root}/sbin/nat_monitor.py')
    for wrong in (above, f'{pair.root}/sbin'):
        os.chmod(wrong, 0o777)

        _, lines = pair.check(capfd)

        assert [line.words.split()[0] for line in lines if line.verdict != 'ok'] == [wrong]
        os.chmod(wrong, 0o755)


@pytest.mark.skipif(not AS_ROOT, reason='only root can give files away')
def test_higher_up_others_may_add_files_but_not_beside_the_program(pair: Pair, capfd: Any, above: str) -> None:
    os.chmod(above, 0o1777)  # like /tmp

    assert {line.verdict for line in pair.check(capfd)[1]} == {'ok'}, pair.text

    os.chmod(f'{above}/nat', 0o1777)  # Python would import what others put there

    assert [line.verdict for line in pair.check(capfd)[1]].count('FAIL') == 1


@pytest.mark.skipif(not AS_ROOT, reason='only root can give files away')
def test_files_of_another_user_are_told(pair: Pair, capfd: Any) -> None:
    os.chown(os.path.join(pair.root, 'nat_config.py'), 65534, 65534)

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict == 'FAIL']
    assert line.what == 'file' and 'belongs to user 65534' in line.words


JOB = '@reboot root {root}/nat_monitor.py >> /var/log/nat_monitor.log 2>&1\n'


@pytest.mark.parametrize('name, text, mode', [
    ('etc/cron.d/nat_monitor', JOB, 0o664),
    ('etc/cron.d/nat_monitor', JOB, 0o755),
    ('etc/cron.d/nat_monitor', JOB.strip(), 0o644),  # the line does not end
    ('etc/cron.d/nat_monitor.cron', JOB, 0o644),  # cron skips files with such names
    ('etc/cron.d/nat_monitor~', JOB, 0o644),
    ('etc/cron.d/nat_monitor', JOB.replace('\n', '\r\n'), 0o644),
    ('etc/cron.d/nat_monitor', JOB.replace('>>', '--check >>'), 0o644),
    ('etc/cron.d/nat_monitor', JOB.replace('>>', '--status >>'), 0o644),
    ('etc/cron.d/nat_monitor', '@daily root pkill -f {root}/nat_monitor.py\n', 0o644),
    ('etc/cron.d/nat_monitor', '@reboot root test -x {root}/nat_monitor.py\n', 0o644),
    ('etc/cron.d/nat_monitor', '@reboot root {root}/nat_monitor.py.old >> /tmp/log\n', 0o644),
    ('etc/cron.d/nat_monitor', JOB.replace('root ', 'nobody ', 1), 0o644),
    ('var/spool/cron/crontabs/root', JOB, 0o600),  # no user there: it would be the command
    ('etc/cron.d/nat_monitor', JOB.replace('root ', ''), 0o644),
    ('etc/cron.d/nat_monitor', '#' + JOB, 0o644),
    ('etc/cron.d/nat_monitor', JOB.replace('{root}', '/nowhere'), 0o644),
])
def test_a_cron_job_that_cron_would_not_start_is_none(pair: Pair, capfd: Any, name: str, text: str, mode: int) -> None:
    drop_cron_job(pair)
    pair.file(name, text.format(root=pair.root), mode)

    code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict == 'FAIL' and line.what == 'cron job']
    assert line.words.startswith('none that cron accepts') and code == 1


@pytest.mark.parametrize('rest', [
    '', '>/dev/null', '&>> /var/log/nat_monitor.log', '>>/var/log/nat_monitor.log 2>&1 </dev/null',
    '> /tmp/out 2> /tmp/err'])
def test_the_output_of_the_job_may_go_anywhere(pair: Pair, capfd: Any, rest: str) -> None:
    pair.file('etc/cron.d/nat_monitor', f'@reboot\troot  {pair.root}/nat_monitor.py {rest}\n')

    _, lines = pair.check(capfd)

    assert ('ok', 'cron job') in [line[:2] for line in lines], pair.text


@pytest.mark.parametrize('name, text', [
    ('etc/cron.d/nat', "@reboot root flock -n /run/n.lock {root}/nat_monitor.py >> /var/log/nat_monitor.log 2>&1"),
    ('etc/cron.d/nat', "@reboot root sh -c '{root}/nat_monitor.py >> /var/log/nat_monitor.log'"),
    ('etc/cron.d/nat', '@reboot root cd {root} && ./nat_monitor.py >> /var/log/nat_monitor.log 2>&1'),
    ('etc/cron.d/nat', '@reboot root nat_monitor.py >> /var/log/nat_monitor.log 2>&1'),  # depends on PATH
    ('etc/cron.d/nat', '@reboot admin sudo {root}/nat_monitor.py >> /tmp/log'),
    ('etc/cron.d/nat', '@reboot root sleep 30; /usr/bin/python3 {root}/nat_monitor.py'),
    ('etc/cron.d/nat', '@reboot root test -x {root}/nat_monitor.py && {root}/nat_monitor.py'),
    ('etc/cron.d/nat', '@reboot root {root}/nat_monitor.py 2>&1 | logger -t nat'),
    ('etc/cron.d/nat', '*/5 * * * * root pgrep nat_monitor.py || {root}/nat_monitor.py >> /tmp/log'),
    ('var/spool/cron/root', '@reboot nohup {root}/nat_monitor.py &'),
    ('etc/systemd/system/nat.service', '[Service]\nExecStart={root}/nat_monitor.py'),
])
def test_what_starts_it_in_another_form_is_shown(pair: Pair, capfd: Any, name: str, text: str) -> None:
    drop_cron_job(pair)
    path = pair.file(name, text.format(root=pair.root) + '\n')

    code, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict != 'ok']
    assert line[:2] == ('unknown', 'cron job') and code == 0, pair.text
    assert line.words.startswith(f'{path}: {text.format(root=pair.root).splitlines()[-1]}')


def test_a_unit_that_ends_it_does_not_start_it(pair: Pair, capfd: Any) -> None:
    drop_cron_job(pair)
    pair.file('etc/systemd/system/nat.service', '[Service]\nExecStart=killall nat_monitor.py\n')

    _, lines = pair.check(capfd)

    assert ('FAIL', 'cron job') in [line[:2] for line in lines], pair.text


def test_a_job_in_the_crontab_of_root_will_do(pair: Pair, capfd: Any) -> None:
    drop_cron_job(pair)
    pair.file('var/spool/cron/crontabs/root', JOB.replace('root ', '').format(root=pair.root), 0o600)

    _, lines = pair.check(capfd)

    assert ('ok', 'cron job') in [line[:2] for line in lines], pair.text


@pytest.mark.parametrize('rule, verdict, words', [
    ('ip saddr 10.0.1.0/24 masquerade', 'ok', 'ip nat postrouting: ip saddr 10.0.1.0/24 masquerade'),
    ('ip saddr 10.0.0.0/24 masquerade', 'FAIL', "no rule masquerades 10.0.1.0/24; run: nft 'table ip nat {"),
    ('snat to 198.51.100.7', 'FAIL', 'snat to 198.51.100.7'),
    ('ip saddr @private masquerade', 'unknown', 'ip saddr @private masquerade; run: nft list ruleset'),
])
def test_rules_are_judged_by_what_they_do_with_the_private_subnet(
        pair: Pair, capfd: Any, rule: str, verdict: str, words: str) -> None:
    pair.firewall(re.sub('oifname.*', rule, MASQUERADE))

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.what == 'masquerading']
    assert line.verdict == verdict and words in line.words, pair.text


def test_each_private_network_has_its_line(pair: Pair, capfd: Any) -> None:
    subnet = pair.ec2.create_subnet(VpcId=pair.vpc, CidrBlock='10.0.2.0/24')['Subnet']['SubnetId']
    pair.ec2.associate_route_table(RouteTableId=pair.table, SubnetId=subnet)
    pair.firewall(MASQUERADE.replace('oifname', 'ip saddr 10.0.1.0/24 oifname'))

    _, lines = pair.check(capfd)

    assert [line[:3] for line in lines if line.what == 'masquerading'] == [
        ('ok', 'masquerading', '10.0.1.0/24'), ('FAIL', 'masquerading', '10.0.2.0/24')]


def test_where_the_peer_probes_its_packets_are_judged_too(pair: Pair, capfd: Any) -> None:
    pair.firewall(MASQUERADE.replace('oifname', 'ip saddr 10.0.1.0/24 oifname'))
    with open(pair.settings_file, 'a') as settings:
        settings.write(f'PROBE_ADDRESS = {ECHO!r}\n')
    peer = pair.instances[pair.primary]['PrivateIpAddress']

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict == 'FAIL']
    assert line[:3] == ('FAIL', 'masquerading', f'{peer}/32')
    assert 'the peer, which probes through this host' in line.words and f'ip saddr {peer}/32 oif' in line.words


def test_rules_that_cannot_be_listed_are_unknown(pair: Pair, capfd: Any) -> None:
    pair.file('bin/nft', '#!/bin/sh\nexit 1\n', 0o755)

    _, lines = pair.check(capfd)

    told = {line.what: line.words for line in lines if line.verdict == 'unknown'}
    assert set(told) == {'forwarding', 'masquerading'}
    assert all('exit status 1' in words for words in told.values())


def test_an_interface_that_does_not_forward_is_told_with_its_switch(pair: Pair, capfd: Any) -> None:
    pair.file('proc/sys/net/ipv4/conf/ens5/forwarding', '0\n')

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.verdict == 'FAIL']
    assert line.words.startswith('net.ipv4.conf.ens5.forwarding is 0; run: echo net.ipv4.conf.ens5.forwarding=1 > ')


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
])
def test_a_file_that_turns_forwarding_off_at_the_next_boot_is_told(
        pair: Pair, capfd: Any, files: Dict[str, str], told: str) -> None:
    for name, text in files.items():
        pair.file(name, text)

    _, lines = pair.check(capfd)

    assert [line.words.split()[0] for line in lines if line.verdict == 'warn'] == (
        [os.path.join(pair.root, told)] if told else [])
    for command in (line.words.partition('run: ')[2] for line in lines if line.verdict == 'warn'):
        subprocess.run(command, shell=True, check=True)  # and does what it says
        assert 'warn' not in {line.verdict for line in pair.check(capfd)[1]}


@pytest.mark.skipif(not shutil.which('sleep'), reason='needs sleep')
def test_a_suspended_monitor_is_told(pair: Pair, capfd: Any) -> None:
    with subprocess.Popen(['sleep', '60']) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            pair.hold_lock(process.pid)

            code, lines = pair.check(capfd)
        finally:
            process.kill()
    [line] = [line for line in lines if line.verdict == 'FAIL']
    assert line.what == 'monitor' and line.words.endswith(f'run: kill -CONT {process.pid}')
    assert code == 1


@pytest.mark.parametrize('call, pings, seconds', [(0.15, 2, 2.75), (0.15, 3, 3.6), (0.15, 6, 6.75), (1.5, 3, 5.45)])
def test_the_longest_outage_is_wait_and_misses_and_calls(call: float, pings: int, seconds: float) -> None:
    settings = nat_monitor.Settings('i-1', 'i-2', ('rtb-1',))

    assert nat_monitor.longest_outage(settings, pings, call) == pytest.approx(seconds)


def test_nothing_secret_is_told(pair: Pair, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'verysecret')

    pair.check(capfd)

    assert 'verysecret' not in pair.text


def test_the_variables_that_count_are_told_where_they_are_set(pair: Pair, capfd: Any, monkeypatch: pytest.MonkeyPatch
                                                              ) -> None:
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    monkeypatch.setenv('AWS_ENDPOINT_URL_EC2', f'https://ec2.{REGION}.amazonaws.com')
    monkeypatch.setenv('AWS_CA_BUNDLE', '')
    metadata = os.environ['AWS_EC2_METADATA_SERVICE_ENDPOINT']

    _, lines = pair.check(capfd)

    assert [line for line in lines if line.what == 'environment'] == [Line(
        'ok', 'environment', '', f'AWS_ENDPOINT_URL_EC2=https://ec2.{REGION}.amazonaws.com '
                                 f'AWS_EC2_METADATA_SERVICE_ENDPOINT={metadata}')]


def test_no_elastic_ip_is_nothing_to_move(pair: Pair, capfd: Any) -> None:
    with open(os.path.join(pair.root, 'nat_config.py')) as file:
        pair.file('nat_config.py', file.read().replace(repr(pair.address), 'None'))

    code, lines = pair.check(capfd)

    assert {line.verdict for line in lines} == {'ok'}, pair.text
    assert code == 0


def test_no_default_route_yet_is_no_fault(pair: Pair, capfd: Any) -> None:
    pair.ec2.delete_route(RouteTableId=pair.table, DestinationCidrBlock='0.0.0.0/0')

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.what == 'default route']
    assert line.verdict == 'ok' and 'nobody' in line.words


def test_an_address_that_nobody_has_yet_is_no_fault(pair: Pair, capfd: Any) -> None:
    pair.ec2.disassociate_address(AssociationId=pair.ec2.describe_addresses()['Addresses'][0]['AssociationId'])

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.what == 'Elastic IP']
    assert line.verdict == 'ok' and 'nobody' in line.words


def test_a_terminated_peer_is_told_and_no_other_line_blames_the_tables(pair: Pair, capfd: Any) -> None:
    pair.ec2.terminate_instances(InstanceIds=[pair.primary])

    code, lines = pair.check(capfd)

    assert ('FAIL', 'state', pair.primary) in [line[:3] for line in lines]
    assert ('ok', 'route table') in [line[:2] for line in lines], pair.text
    assert code == 1


def test_a_blackhole_is_told(pair: Pair, capfd: Any) -> None:
    for route in pair.backend.route_tables[pair.table].routes:
        if route.destination_cidr_block == '0.0.0.0/0':
            route.__class__ = type('Blackhole', (type(route),), {'state': 'blackhole'})

    _, lines = pair.check(capfd)

    [line] = [line for line in lines if line.what == 'default route']
    assert line.verdict == 'warn' and 'blackhole' in line.words


# In the lab: the program as it is installed, asking EC2 over HTTP and pinging with real packets

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
        if 'NAT_Monitor' not in {profile.name for profile in iam.instance_profiles.values()}:
            iam.create_instance_profile('NAT_Monitor', '/', [])
        with open(os.path.join(os.path.dirname(nat_monitor.SETTINGS_FILE), 'nat_monitor.cron')) as file:
            job = file.read()
        for name, instance in lab.instances.items():
            lab.ec2.backend.associate_iam_instance_profile(instance.id, iam_instance_profile_name='NAT_Monitor')
            instance.run('sh', '-c', INSTALL_JOB, input=job, check=True)
        lab.ec2.backend.create_tags([*lab.ec2.tables, allocation(lab)], {'nat_monitor': 'true'})
        yield lab


def record(lab: Lab, name: str) -> Any:
    return lab.ec2.lives[name].record


def allocation(lab: Lab) -> str:
    return next(str(address.allocation_id) for address in lab.ec2.backend.addresses
                if address.public_ip == ELASTIC_IP)


def run_check(lab: Lab) -> Tuple[int, List[Line], str]:
    """Run --check on the primary; return its exit code, its lines, and all of them as text."""
    since = time.monotonic()
    result = lab.primary.run(*lab.primary.monitor_command, '--check')
    assert [call for call in lab.ec2.calls(since=since) if not call.action.startswith('Describe')] == []
    assert result.stderr == ''
    return result.returncode, read_lines(result.stdout), result.stdout


def test_a_healthy_pair_in_the_lab_is_all_ok_beside_a_running_monitor_and_quick(lab: Lab) -> None:
    lab.primary.start_monitor()
    lab.wait_until(lambda: lab.primary.monitor_pid and 'watching' in lab.primary.log, 20, 'the monitor runs')
    lab.wait_until(lambda: 'holds tables and address' in lab.primary.log, 20, 'it knows that it serves')
    time.sleep(1.0)

    started_at = time.monotonic()
    code, lines, text = run_check(lab)
    seconds = time.monotonic() - started_at
    lab.primary.kill_monitor()

    assert {line.verdict for line in lines} == {'ok'}, text
    assert code == 0
    assert seconds < 5
    assert any(line.what == 'monitor' and 'runs with pid' in line.words for line in lines)


@contextlib.contextmanager
def changed(thing: Any, **values: Any) -> Iterator[None]:
    """Set attributes of a record for as long as the with statement lasts."""
    before = {name: getattr(thing, name, None) for name in values}
    for name, value in values.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)


@contextlib.contextmanager
def undone(do: Callable[[], Any], undo: Callable[[], Any]) -> Iterator[None]:
    do()
    try:
        yield
    finally:
        undo()


def stopped(lab: Lab) -> ContextManager[None]:
    def do() -> None:
        lab.ec2.stop('secondary')
        lab.wait_until(lambda: lab.secondary.state == 'stopped', 20, 'it is stopped')

    def undo() -> None:
        lab.ec2.start('secondary')
        lab.wait_until(lambda: lab.secondary.state == 'running' and not lab.secondary.unreachable_at, 20, 'it is back')
        lab.secondary.run('sh', '-c', 'killall nat_monitor.py; true')
    lab.secondary.runs_boot_job = False
    return undone(do, undo)


@contextlib.contextmanager
def second_interface(lab: Lab) -> Iterator[None]:
    backend = lab.ec2.backend
    interface = backend.create_network_interface(record(lab, 'secondary').subnet_id, '10.0.0.99')
    attachment = backend.attach_network_interface(interface.id, lab.secondary.id, 1)
    yield
    backend.detach_network_interface(attachment.attachment_id)
    lab.ec2.backend.delete_network_interface(interface.id)


def no_public_address(lab: Lab) -> ContextManager[None]:
    return undone(lambda: lab.ec2.lose_public_address('secondary', 600),
                  lambda: lab.ec2.lose_public_address('secondary', 0))


def no_profile(lab: Lab) -> ContextManager[None]:
    backend = lab.ec2.backend
    return undone(lambda: backend.disassociate_iam_instance_profile(
        backend.iam_instance_profile_associations[lab.secondary.id].association_id),
        lambda: backend.associate_iam_instance_profile(lab.secondary.id, iam_instance_profile_name='NAT_Monitor'))


def auto_scaling(lab: Lab) -> ContextManager[None]:
    tag = {'aws:autoscaling:groupName': 'nats'}
    return undone(lambda: lab.ec2.backend.create_tags([lab.secondary.id], tag),
                  lambda: lab.ec2.backend.delete_tags([lab.secondary.id], tag))


@contextlib.contextmanager
def deleted_table(lab: Lab) -> Iterator[None]:
    restore = lab.ec2.delete_table(0)
    yield
    restore()
    lab.ec2.set_route('primary')


def association(lab: Lab, subnets: Set[str]) -> ContextManager[None]:
    table = lab.ec2.backend.route_tables[lab.ec2.tables[0]]
    return changed(table, _associations={f'rtbassoc-{subnet}': subnet for subnet in subnets})


def at_nat_gateway(lab: Lab) -> ContextManager[None]:
    return undone(lab.ec2.set_route_to_nat_gateway, lambda: lab.ec2.set_route('primary'))


@contextlib.contextmanager
def address_elsewhere(lab: Lab) -> Iterator[None]:
    address = next(one for one in lab.ec2.backend.addresses if one.public_ip == ELASTIC_IP)
    interface = lab.ec2.backend.create_network_interface(record(lab, 'primary').subnet_id, '10.0.0.98')
    with changed(address, instance=None, eni=interface):
        lab.ec2.sync()
        lab.wait_until(lambda: lab.primary.link.public, 10, 'the primary has a public address again')
        yield
    lab.ec2.sync()


def address_gone(lab: Lab) -> ContextManager[None]:
    return undone(lambda: lab.primary.configure(ELASTIC_IP='198.51.100.9'), lab.primary.configure)


def no_rules(lab: Lab) -> ContextManager[None]:
    rules = lab.primary.run('/usr/sbin/nft', 'list', 'ruleset', check=True).stdout
    return undone(lambda: lab.primary.run('/usr/sbin/nft', 'flush', 'ruleset', check=True),
                  lambda: lab.primary.run('/usr/sbin/nft', '-f', '-', input=rules, check=True))


def dropped(lab: Lab) -> ContextManager[None]:
    rules = 'table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }'
    return undone(lambda: lab.primary.run('/usr/sbin/nft', rules, check=True),
                  lambda: lab.primary.run('/usr/sbin/nft', 'delete table inet filter', check=True))


def moved_file(lab: Lab, path: str) -> ContextManager[None]:
    return undone(lambda: lab.primary.run('mv', path, f'{path}.away', check=True),
                  lambda: lab.primary.run('mv', f'{path}.away', path, check=True))


def mode(lab: Lab, path: str, wrong: str, right: str) -> ContextManager[None]:
    return undone(lambda: lab.primary.run('chmod', wrong, path, check=True),
                  lambda: lab.primary.run('chmod', right, path, check=True))


@contextlib.contextmanager
def one_time_spot(lab: Lab) -> Iterator[None]:
    nothing = dict.fromkeys((
        'valid_from', 'valid_until', 'launch_group', 'availability_zone_group', 'key_name', 'user_data', 'placement',
        'kernel_id', 'ramdisk_id'))
    [request] = lab.ec2.backend.request_spot_instances(
        price='1', image_id='ami-12345678', count=1, spot_instance_type='one-time', security_groups=[],
        instance_type='t3.small', monitoring_enabled=False, subnet_id=record(lab, 'secondary').subnet_id, **nothing)
    with changed(record(lab, 'secondary'), spot_instance_request_id=request.id):
        yield


def main_table(lab: Lab) -> ContextManager[None]:
    """Make the private table the main one, which serves the pair's subnet: it has no table of its own in the lab."""
    return changed(lab.ec2.backend.route_tables[lab.ec2.tables[0]], main_association_id='rtbassoc-12345678')


def public_subnet(lab: Lab) -> Set[str]:
    return {record(lab, 'primary').subnet_id}


TAG = nat_monitor.MAINTENANCE
MONITOR, CONFIG = '/usr/local/sbin/nat_monitor.py', '/usr/local/sbin/nat_config.py'
FAULTS: List[Tuple[str, Callable[[Lab], ContextManager[Any]], str, str, Set[str]]] = [
    # what is wrong, how it is made, the line that tells, its verdict, lines that this makes tell too
    ('peer stopped', stopped, 'state', 'FAIL', {'ping', 'public address', 'forwards'}),
    ('source/destination check on', lambda lab: changed(record(lab, 'secondary'), source_dest_check=True),
     'source/dest. check', 'FAIL', set()),
    ('two interfaces', second_interface, 'network interface', 'FAIL', set()),
    ('no public address', no_public_address, 'public address', 'warn', {'forwards'}),
    ('no profile', no_profile, 'instance profile', 'FAIL', set()),
    ('stop protection', lambda lab: changed(record(lab, 'secondary'), disable_api_stop='true'), 'can be stopped',
     'FAIL', set()),
    ('instance store', lambda lab: changed(record(lab, 'secondary'), root_device_type='instance-store'),
     'can be stopped', 'FAIL', set()),
    ('one-time Spot', one_time_spot, 'can be stopped', 'FAIL', set()),
    ('Auto Scaling', auto_scaling, 'Auto Scaling group', 'FAIL', set()),
    ('no such table', deleted_table, 'route table', 'FAIL', {'masquerading'}),
    ('other VPC', lambda lab: changed(lab.ec2.backend.route_tables[lab.ec2.tables[0]], vpc_id='vpc-12345678'),
     'route table', 'FAIL', set()),
    ('table of no subnet', lambda lab: association(lab, set()), 'subnets', 'FAIL', {'masquerading'}),
    ('table of the own subnet', lambda lab: association(lab, public_subnet(lab)), 'subnets', 'FAIL', set()),
    ('main table', main_table, 'subnets', 'FAIL', set()),
    ('route to a NAT gateway', at_nat_gateway, 'default route', 'warn', set()),
    ('no such address', address_gone, 'Elastic IP', 'FAIL', {'permission'}),
    ('address elsewhere', address_elsewhere, 'Elastic IP', 'warn', set()),
    ('ping blocked', lambda lab: undone(lab.secondary.block_ping, lab.secondary.allow_ping), 'ping', 'FAIL',
     {'forwards'}),  # a probe is one, too
    ('peer does not forward', lambda lab: undone(
        lambda: lab.secondary.forwarding(False), lambda: lab.secondary.forwarding(True)), 'forwards', 'FAIL', set()),
    ('peer does not translate', lambda lab: undone(lab.secondary.flush_rules, lab.secondary.restore_rules), 'forwards',
     'FAIL', set()),
    ('target of probes silent', lambda lab: undone(
        lambda: lab.silence_echo(True), lambda: lab.silence_echo(False)), 'forwards', 'unknown', set()),
    ('maintenance', lambda lab: undone(lambda: lab.ec2.tag('secondary', TAG), lambda: lab.ec2.untag('secondary', TAG)),
     'maintenance', 'warn', set()),
    ('no forwarding', lambda lab: undone(lambda: lab.primary.forwarding(False), lambda: lab.primary.forwarding(True)),
     'forwarding', 'FAIL', set()),
    ('no masquerading', no_rules, 'masquerading', 'FAIL', set()),
    ('forwarding dropped', dropped, 'forwarding', 'FAIL', set()),
    ('no cron job', lambda lab: moved_file(lab, '/etc/cron.d/nat_monitor'), 'cron job', 'FAIL', set()),
    ('cron job that cron ignores', lambda lab: mode(lab, '/etc/cron.d/nat_monitor', '0664', '0644'), 'cron job',
     'FAIL', set()),
    ('settings that others can write', lambda lab: mode(lab, CONFIG, '0646', '0644'), 'file', 'FAIL', set()),
    ('monitor that others can write', lambda lab: mode(lab, MONITOR, '0775', '0755'), 'file', 'FAIL', set()),
    ('metadata off', lambda lab: changed(lab.metadata['primary'], status=403), 'metadata',
     'FAIL', {'EC2', 'masquerading'}),
    ('EC2 silent', lambda lab: lab.ec2.injected('silent'), 'permission', 'unknown',
     {'instance', 'route table', 'Elastic IP', 'ping', 'forwards', 'longest outage', 'masquerading'}),
    ('EC2 slow', lambda lab: lab.ec2.injected('slow', extra=0.5), 'longest outage', 'warn', set()),
    *((f'no {action}', lambda lab, action=action: lab.ec2.injected('UnauthorizedOperation', action), 'permission',
       'FAIL', set()) for action in ('ReplaceRoute', 'CreateRoute', 'AssociateAddress', 'StopInstances',
                                     'StartInstances')),
    ('no DescribeInstanceAttribute', lambda lab: lab.ec2.injected('UnauthorizedOperation', 'DescribeInstanceAttribute'),
     'can be stopped', 'unknown', set()),
]


@pytest.mark.parametrize('make, what, verdict, also', [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS])
def test_each_fault_in_the_lab_is_told_by_its_own_line(lab: Lab, make: Callable[[Lab], ContextManager[Any]], what: str,
                                                       verdict: str, also: Set[str]) -> None:
    with make(lab):
        code, lines, text = run_check(lab)

    told = {line.what: line for line in lines if line.verdict != 'ok' and line.what != 'monitor'}
    assert told[what].verdict == verdict, text
    assert set(told) - {what} <= also, text
    assert all('; ' in line.words for line in told.values()), text
    assert code == (1 if 'FAIL' in {line.verdict for line in lines} else 0)


@pytest.mark.parametrize('text, words', [
    ("PRIMARY_INSTANCE_ID = ''\nSECONDARY_INSTANCE_ID = ''\nROUTE_TABLE_IDS = []\n", 'fill in'),
    ('NUM_PINGS = = 3\n', 'line 1'), ('import os\nraise OSError\n', 'nat_config.py')])
def test_bad_settings_in_the_lab_end_with_2_and_no_call(lab: Lab, text: str, words: str) -> None:
    since = time.monotonic()
    with undone(lambda: lab.primary.configure(text), lab.primary.configure):
        code, lines, shown = run_check(lab)

    assert code == 2
    assert [line for line in lines if line.what == 'settings' and words in line.words], shown
    assert 'Traceback' not in shown
    assert lab.ec2.calls(since=since, dry_run=None) == []


def test_ctrl_c_during_the_check_is_no_success(lab: Lab) -> None:
    since = time.monotonic()
    with lab.ec2.injected('silent'):
        terminal = lab.primary.terminal(*lab.primary.monitor_command, '--check')
        lab.wait_until(lambda: lab.ec2.calls('DescribeInstances', since=since), 10, 'it asks EC2')
        terminal.type('\x03')
        lab.wait_until(lambda: terminal.exit_code is not None, 3, 'it ends at once')

    assert terminal.exit_code == 1
    assert 'Traceback' not in terminal.output


def test_only_root_may_check() -> None:
    script = 'import os, sys; os.geteuid = lambda: 1000; import nat_monitor; sys.exit(nat_monitor.main(["--check"]))'

    result = subprocess.run([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            check=False, cwd=os.path.dirname(nat_monitor.SETTINGS_FILE))

    assert result.returncode == 2
    assert result.stdout.startswith('the user is 1000, but must be root') and result.stdout.count('\n') == 1
