"""The lab itself: EC2 behaves like EC2, addresses that move take connections with them, and it needs no root.

That what is injected happens, the tests of the monitor show; that nothing is left behind, the one of the demonstration.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from .ec2 import ANYWHERE
from .lab import REPOSITORY, Instance, Lab

pytestmark = pytest.mark.lab

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


def test_who_takes_the_address_loses_the_answer_and_who_loses_it_its_connections() -> None:
    with Lab(start=False, new_public_address=0.3) as lab:
        loser, taker = Asker(lab.primary), Asker(lab.secondary)
        assert loser('describe_instances')
        [address] = taker('describe_addresses')['Addresses']

        assert taker('associate_address', AllocationId=address['AllocationId'], InstanceId=lab.secondary.id,
                     AllowReassociation=True) == 'ReadTimeoutError'

        assert lab.holder() == ['primary', 'secondary']
        lab.wait_until(lambda: lab.network.links['primary'].public, 'the primary has another address')
        assert loser('describe_instances') == 'ReadTimeoutError'
        assert loser('describe_instances')['Reservations']


def test_dry_runs_change_nothing_and_states_forbid_what_ec2_forbids() -> None:
    with Lab(start=False, stop=0.4, pending=600.0) as lab:
        ask, primary = Asker(lab.secondary), {'InstanceIds': [lab.primary.id]}
        route = {'RouteTableId': lab.ec2.tables[0], 'DestinationCidrBlock': ANYWHERE, 'InstanceId': lab.secondary.id}
        for action, parameters in (('replace_route', route), ('create_route', route), ('stop_instances', primary)):
            assert ask(action, **parameters, DryRun=True) == 'DryRunOperation'
        assert lab.holds(lab.primary) and lab.primary.state == 'running' and lab.ec2.calls() == []

        assert ask('create_route', **route) == 'RouteAlreadyExists'
        lab.times.stop = 600.0
        ask('stop_instances', **primary)
        assert ask('start_instances', **primary) == 'IncorrectInstanceState'
        lab.times.stop = 0.1
        ask('stop_instances', **primary, Force=True)
        lab.wait_until(lambda: lab.primary.state == 'stopped', 'it is stopped')
        [table] = ask('describe_route_tables', RouteTableIds=lab.ec2.tables)['RouteTables']
        assert [one['State'] for one in table['Routes'] if one.get('InstanceId') == lab.primary.id] == ['blackhole']
        ask('start_instances', **primary)
        assert lab.primary.state == 'pending'
        assert ask('stop_instances', **primary) == 'IncorrectInstanceState'
        [address] = ask('describe_addresses')['Addresses']
        assert ask('associate_address', AllocationId=address['AllocationId'], InstanceId=lab.primary.id,
                   AllowReassociation=True) == 'InvalidInstanceID'


OPEN_LAB = '''
import os
from tests.lab import Lab
with Lab() as lab:
    lab.wait_until(lambda: lab.traffic.egress(), 'served')
    print(os.getuid())
'''


def test_it_needs_no_root() -> None:
    # Through env, as setpriv itself can still execute what nobody may not.
    nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', 'env'] if os.getuid() == 0 else []
    same_python = f'import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})'
    pythons = [python for python in (sys.executable, '/usr/bin/python3')
               if subprocess.run([*nobody, python, '-c', same_python], capture_output=True).returncode == 0]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'PYTHONDONTWRITEBYTECODE': '1'}
    if not pythons or subprocess.run([*nobody, pythons[0], '-c', 'import tests.lab'], cwd=REPOSITORY, env=environment,
                                     capture_output=True).returncode:
        pytest.skip('who is not root may not read the Python that runs this test')
    if subprocess.run([*nobody, 'unshare', '--user', '--map-root-user', 'true'], capture_output=True).returncode:
        pytest.skip('user namespaces are not allowed to everybody on this machine')
    result = subprocess.run([*nobody, pythons[0], '-c', OPEN_LAB], cwd=REPOSITORY, env=environment, text=True,
                            capture_output=True)
    assert (result.stderr, result.returncode) == ('', 0)
    assert result.stdout.strip() != '0'
