"""iam_policy.json: what it allows, how narrowly, and that the monitor needs all of it and nothing else."""
from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import re
import warnings
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

import boto3
import pytest
from moto import mock_aws
from moto.core.authorization import enable_iam_authentication

import nat_monitor
from tests.cloud_pair import ACCOUNT, REGION, Pair, client, credentials, serving_metadata
from tests.readme import script

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(os.path.join(REPOSITORY, 'iam_policy.json')) as policy_file:
    POLICY: Dict[str, Any] = json.load(policy_file)


def actions(statement: Dict[str, Any]) -> List[str]:
    found = statement['Action']
    return [found] if isinstance(found, str) else list(found)


ALLOWED = sorted({action for statement in POLICY['Statement'] for action in actions(statement)})


# Scope

PROFILE = ('ArnLike', 'ec2:InstanceProfile', 'arn:*:iam::*:instance-profile/NAT_Monitor')
TAG = ('StringEquals', 'aws:ResourceTag/nat_monitor', 'true')
ALL, INSTANCES, TABLES = '*', 'arn:*:ec2:*:*:instance/i-*', 'arn:*:ec2:*:*:route-table/rtb-*'

# (action, resource, condition): why it is needed, and why no narrower.
SCOPES: Dict[Tuple[str, str, Any], str] = {
    ('DescribeAddresses', ALL, None): 'who holds the address, and its allocation id; IAM has no scope for Describe',
    ('DescribeInstances', ALL, None): 'the private address of the peer; no scope',
    ('DescribeInstanceStatus', ALL, None): 'state and checks of both; no scope',
    ('DescribeRouteTables', ALL, None): 'who holds the default route; no scope',
    ('DescribeSubnets', ALL, None): 'the networks that this host must masquerade; no scope',
    ('DescribeInstanceAttribute', INSTANCES, PROFILE): '--check: stop protection of the pair',
    ('StartInstances', INSTANCES, PROFILE): 'to restart the peer: only what has this very profile',
    ('StopInstances', INSTANCES, PROFILE): 'to restart the peer: only what has this very profile',
    ('CreateRoute', TABLES, TAG): 'to claim a table without a default route; IAM knows no condition on the route',
    ('ReplaceRoute', TABLES, TAG): 'to claim a table; IAM knows no condition on the route',
    ('AssociateAddress', 'arn:*:ec2:*:*:elastic-ip/eipalloc-*', TAG): 'to claim the egress address and no other one',
    ('AssociateAddress', INSTANCES, PROFILE): 'for one of the pair',
    ('AssociateAddress', 'arn:*:ec2:*:*:network-interface/eni-*', TAG): 'an interface has a tag, and no profile',
}


def test_each_action_has_the_narrowest_scope() -> None:
    found: Set[Tuple[str, str, Any]] = set()
    for statement in POLICY['Statement']:
        assert statement['Effect'] == 'Allow' and isinstance(statement['Resource'], str)
        conditions = [(operator, key, value) for operator, tests in statement.get('Condition', {}).items()
                      for key, value in tests.items()]
        assert len(conditions) <= 1
        for action in actions(statement):
            service, _, name = action.partition(':')
            assert service == 'ec2'
            entry = (name, statement['Resource'], conditions[0] if conditions else None)
            assert entry not in found, f'{entry} is allowed twice'
            found.add(entry)

    assert found == set(SCOPES)


def test_nothing_is_left_for_a_user_to_fill_in() -> None:
    text = json.dumps(POLICY)
    assert not any(sign in text for sign in ('<', '$', '123456789012', 'ACCOUNT', 'REGION', 'arn:aws:'))


def test_the_policy_allows_what_the_monitor_calls_and_nothing_else() -> None:
    with mock_aws():
        api: Dict[str, str] = dict(boto3.client('ec2', REGION).meta.method_to_api_mapping)
    with open(os.path.join(REPOSITORY, 'nat_monitor.py')) as file:
        tree = ast.parse(file.read())
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}

    called = {f'ec2:{api[name]}' for name in named & set(api)}

    assert called == set(ALLOWED)


# Lint

@pytest.fixture
def parliament() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return pytest.importorskip('parliament', reason='parliament judges the policy')


def findings(parliament: Any, policy: Dict[str, Any]) -> List[str]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return [finding.issue for finding in parliament.analyze_policy_string(json.dumps(policy)).findings]


def test_parliament_finds_nothing(parliament: Any) -> None:
    assert findings(parliament, POLICY) == []


def test_each_condition_is_one_that_its_resource_has(parliament: Any) -> None:
    """Parliament is content if one of an action's resource types has the key; elsewhere it would never be true."""
    [ec2] = [service for service in parliament.iam_definition if service['prefix'] == 'ec2']
    keys = {(privilege['privilege'], kind['resource_type'].rstrip('*')): kind['condition_keys']
            for privilege in ec2['privileges'] for kind in privilege['resource_types']}
    for (action, resource, condition) in SCOPES:
        kind = resource.rpartition(':')[2].partition('/')[0]
        assert condition is None or condition[1].replace('/nat_monitor', '/${TagKey}') in keys[action, kind], action


def test_the_statement_for_an_encrypted_disk_allows_one_grant_and_no_more(parliament: Any) -> None:
    [text] = re.findall(r"--policy-document '(.*?)'\n", script('Key of the disks'), re.S)
    key = f'arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab'
    policy = json.loads(text.replace('\'"$key"\'', key))

    assert findings(parliament, policy) == []
    assert policy['Statement'] == [{
        'Effect': 'Allow', 'Action': 'kms:CreateGrant', 'Resource': policy['Statement'][0]['Resource'],
        'Condition': {'Bool': {'kms:GrantIsForAWSResource': 'true'}}}]


# In force

@pytest.fixture
def pair(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Yield a pair whose secondary gets all its credentials from the metadata service."""
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'test')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'test')
    monkeypatch.setenv('AWS_DEFAULT_REGION', REGION)
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
    monkeypatch.setattr(nat_monitor, '__file__', str(tmp_path / 'nat_monitor.py'))
    monkeypatch.setattr(boto3, 'DEFAULT_SESSION', None)
    with mock_aws():
        pair = Pair(str(tmp_path))
        with serving_metadata(pair.metadata, monkeypatch):
            yield pair


def assume(pair: Pair, policy: Dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the instances a role with this policy alone; its credentials come from the metadata service only.

    Moto asks for every action on "*", so the policy is put in force without its scopes.
    """
    policy = {**policy, 'Statement': [
        {'Effect': 'Allow', 'Action': actions(one), 'Resource': '*'} for one in policy['Statement']]}
    iam, role = client('iam'), 'NAT_Monitor'
    iam.create_role(RoleName=role, AssumeRolePolicyDocument='{}')
    iam.put_role_policy(RoleName=role, PolicyName=role, PolicyDocument=json.dumps(policy))
    got = client('sts').assume_role(RoleArn=f'arn:aws:iam::{ACCOUNT}:role/{role}', RoleSessionName='test')[
        'Credentials']
    pair.metadata[f'iam/security-credentials/{role}'] = credentials(
        got['AccessKeyId'], got['SecretAccessKey'], got['SessionToken'])
    for name in list(os.environ):
        if name.startswith('AWS_') and name != 'AWS_EC2_METADATA_SERVICE_ENDPOINT':
            monkeypatch.delenv(name)


DIES_AT = 200.0  # s, by when all has been rehearsed


class Done(BaseException):
    """The monitor has done all that it was watched for."""


class Watched:
    """The doors of a secondary whose peer dies and comes back, and what EC2 answered to each of its calls.

    Time passes only while it sleeps, and stands still while it asks EC2.
    """

    def __init__(self, connect: Callable[[str], Any], peer_id: str = '') -> None:
        self.connect_really, self.peer_id = connect, peer_id
        self.allowed: Set[str] = set()
        self.refused: Set[str] = set()
        self.now = 0.0
        self.answered_again = 0

    def monotonic(self) -> float:
        return self.now

    def connect(self, region: str) -> Any:
        client = self.connect_really(region)
        client.meta.events.register('after-call.ec2', self.note)
        return client

    def note(self, model: Any, parsed: Dict[str, Any], **_: Any) -> None:
        code = parsed.get('Error', {}).get('Code', '')
        if code in nat_monitor.DENIED:
            self.refused.add(f'ec2:{model.name}')
        elif code != 'DryRunOperation':
            self.allowed.add(f'ec2:{model.name}')
        for one in parsed.get('InstanceStatuses', []) if self.now >= DIES_AT else ():
            one['InstanceStatus']['Status'] = 'impaired' if one['InstanceId'] == self.peer_id else 'ok'

    def run_together(self, calls: Any, timeout: float, _: Any = None, *rest: Any, **limits: Any) -> Dict[str, Any]:
        return nat_monitor.run_together(calls, timeout, lambda: math.inf, *rest, **limits)

    def sleep(self, seconds: float) -> None:
        if self.refused or self.answered_again > 3 or self.now > 600.0:
            raise Done
        self.now += seconds

    def ping(self, address: str, own: Any = ()) -> bool:
        back = 'ec2:StartInstances' in self.allowed
        self.answered_again += back
        answers = back or self.now < DIES_AT
        self.sleep(0.01 if answers else 1.0)
        return answers


def fail_over(pair: Pair) -> Watched:
    """Let the secondary's monitor take over from a primary that dies, and restart it."""
    settings = dataclasses.replace(
        nat_monitor.read_settings(os.path.join(pair.root, 'nat_config.py')), wait_for_instance_stop=20.0)
    watched = Watched(pair.connect, pair.primary)
    with pytest.raises(Done):
        nat_monitor.Monitor(settings, clock=watched, ping=watched.ping, connect=watched.connect,
                            run_together=watched.run_together, nat_fault=lambda networks: '',
                            requests_from=lambda address: True).run()
    return watched


def check(pair: Pair) -> Watched:
    watched = Watched(nat_monitor.connect)
    nat_monitor.Check(settings_file=os.path.join(pair.root, 'nat_config.py'), ping=pair.ping,
                      connect=watched.connect, root=pair.root).run()
    return watched


ONLY_CHECK = {'ec2:DescribeInstanceAttribute'}


def test_monitor_and_check_can_do_all_their_work_with_the_policy_and_need_all_of_it(
        pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second table has no default route yet."""
    table = pair.ec2.create_route_table(VpcId=pair.vpc)['RouteTable']['RouteTableId']
    with open(os.path.join(pair.root, 'nat_config.py')) as file:
        pair.file('nat_config.py', file.read().replace(f'{pair.table!r}]', f'{pair.table!r}, {table!r}]'))
    assume(pair, POLICY, monkeypatch)

    with enable_iam_authentication():
        monitor, checked = fail_over(pair), check(pair)

    assert monitor.refused == checked.refused == set()
    assert monitor.allowed == set(ALLOWED) - ONLY_CHECK
    assert ONLY_CHECK < checked.allowed
    assert pair.backend.route_tables  # the moves were real
    assert nat_monitor.describe_address(pair.ec2, pair.address, pair.secondary, pair.primary,
                                        {})[0] == nat_monitor.SELF
