"""Failures with real packets: what the pair must survive, each case in a lab of its own.

Times are shorter than the default settings', so that a case takes seconds; the rules are the same. What takes no
packets to be shown is in tests/unit and tests/simulation, in virtual time.
"""
from __future__ import annotations

import contextlib
import re
import signal
import time
from contextlib import closing
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from nat_monitor import CONNECTIONS
from tests.lab.lab import Instance, Lab
from tests.lab.metadata import CREDENTIALS
from tests.lab.network import ELASTIC_IP
from tests.lab.traffic import Connections

pytestmark = pytest.mark.lab

SETTINGS: Dict[str, Any] = {'NUM_PINGS': 3, 'PING_TIMEOUT': 0.4, 'WAIT_BETWEEN_PINGS': 0.4,
                            'WAIT_FOR_INSTANCE_STOP': 20, 'WAIT_FOR_INSTANCE_START': 30}
CLAIMS = ('ReplaceRoute', 'CreateRoute', 'AssociateAddress')
MUTATING = (*CLAIMS, 'StopInstances', 'StartInstances')
serves = Lab.serves


@contextlib.contextmanager
def serving_pair(python: str, **how: Any) -> Iterator[Lab]:
    """Open a lab in which both monitors run, hear each other, and the primary serves; for *how*, see Lab."""
    with Lab(**{'settings': SETTINGS, 'holder': None, **how}, python=python) as lab:
        serves(lab, lab.primary)
        lab.wait_until(lambda: knows(lab.primary, lab.primary), 'the primary knows that it serves')
        for instance in (lab.primary, lab.secondary):
            lab.wait_until(lambda: ' answers' in instance.log, f'the {instance.name} hears its peer')
        yield lab


def knows(instance: Instance, holder: Instance) -> bool:
    """Tell whether a monitor has logged of each part that it is at the holder."""
    parts = (*instance.lab.ec2.tables, ELASTIC_IP)
    return all(re.search(f' {part} .*at {holder.id}$', instance.log, re.MULTILINE) for part in parts)


def hears_again(lab: Lab, instance: Instance) -> None:
    lab.wait_until(lambda: instance.log.count(' answers') >= 2, f'the {instance.name} hears its peer again')


def loud(instance: Instance) -> List[str]:
    """Return the lines of a monitor's log that are meant to be read by somebody at once."""
    lines = [line.partition(' ')[2] for line in instance.log.splitlines()]
    return [line for line in lines if line.startswith(('WARNING ', 'ERROR '))]


def has_rehearsed(lab: Lab, instance: Instance) -> None:
    """Wait until the monitor has rehearsed all its calls, which is the last thing that a start does."""
    lab.wait_until(lambda: lab.ec2.calls('StartInstances', instance.name, dry_run=True) and all(
        call.seconds for call in lab.ec2.calls(instance=instance.name, dry_run=None)), f'{instance.name} has rehearsed')


def called(lab: Lab, instance: Instance, since: float = 0.0) -> List[str]:
    """Return the changes that the instance asked EC2 for, in order."""
    return [call.action for call in lab.ec2.calls(instance=instance.name, since=since) if call.action in MUTATING]


def nobody_was_stopped(lab: Lab) -> bool:
    return not lab.ec2.calls('StopInstances')


def restarted(lab: Lab, instance: Instance) -> None:
    """Wait until the instance has been stopped, started, and its monitor runs again."""
    lab.wait_until(lambda: lab.ec2.calls('StartInstances'), f'the {instance.name} is started')
    lab.wait_until(lambda: instance.state == 'running' and instance.monitor_pid,
                   f'the monitor of the {instance.name} runs again')


def status(instance: Instance) -> Tuple[int, List[str]]:
    """Return the exit code of --status there (2: no monitor runs), and the lines that are not fine."""
    done = instance.run(*instance.monitor_command, '--status')
    return done.returncode, [line for line in done.stdout.splitlines() if not line.startswith('ok ')]


def all_is_well(lab: Lab, when: str) -> None:
    for instance in lab.instances.values():
        instance.look()
    for instance in lab.instances.values():
        lab.wait_until(lambda: status(instance) == (0, []), f'all is well {when}, says the {instance.name}')


# One of the two dies

@pytest.mark.core
def test_a_crashed_primary_is_replaced_restarted_and_claims_again_at_boot_in_four_loud_lines(python: str) -> None:
    patient = {**SETTINGS, 'WAIT_FOR_INSTANCE_START': 300}  # or a slow machine adds that it stays silent
    with serving_pair(python, settings=patient, impaired=1.0) as lab:
        all_is_well(lab, 'before')
        since, before = time.monotonic(), {name: len(loud(instance)) for name, instance in lab.instances.items()}

        lab.primary.crash()

        lab.wait_until(lambda: status(lab.primary)[0] == 2, 'no monitor runs on the primary')
        serves(lab, lab.secondary)
        lab.wait_until(lambda: any(re.match('FAIL +peer_answers', line) for line in status(lab.secondary)[1]),
                       'the secondary says that something is to mend')
        restarted(lab, lab.primary)
        serves(lab, lab.primary)
        claims, restart = (called(lab, lab.secondary, since)[part] for part in (slice(2), slice(2, None)))
        assert sorted(claims) == ['AssociateAddress', 'ReplaceRoute']  # at the same moment, in either order
        assert restart == ['StopInstances', 'StartInstances']
        all_is_well(lab, 'after')
        told = [loud(instance)[before[name]:] for name, instance in lab.instances.items()]
        assert [[words in line for line, words in zip(lines, expected)] for lines, expected in zip(told, (
            ['has started: claiming'], ['taking over', 'stopping it', 'answers again: the pair is redundant']))] == [
                [True], [True] * 3], told
        assert [len(lines) for lines in told] == [1, 3], told


@pytest.mark.core
def test_a_crashed_secondary_is_restarted_and_the_network_is_not_touched(python: str) -> None:
    with serving_pair(python, impaired=1.0) as lab:
        since = time.monotonic()

        lab.secondary.crash()

        restarted(lab, lab.secondary)
        hears_again(lab, lab.primary)
        assert called(lab, lab.primary, since) == ['StopInstances', 'StartInstances']
        assert called(lab, lab.secondary, since) == []
        assert lab.traffic.lost(since) == 0


# One that lives does not answer

def test_ping_blocked_between_two_that_are_well_stops_nobody_and_moves_twice_at_most_and_is_told(python: str) -> None:
    with serving_pair(python) as lab:
        since = time.monotonic()
        lab.primary.block_ping()
        for instance in lab.instances.values():  # also after more than a start may take
            lab.wait_until(lambda: 'look at the security groups' in instance.log, 'the log says what to look at')
        lab.stays(lambda: nobody_was_stopped(lab), 30, 'nobody is stopped')
        lab.primary.allow_ping()
        for instance in lab.instances.values():
            hears_again(lab, instance)

        assert len(lab.ec2.calls('ReplaceRoute', since=since)) <= 2 and nobody_was_stopped(lab)
        assert lab.holds(lab.primary) or lab.holds(lab.secondary)


@pytest.mark.core
def test_a_secondary_that_was_cut_off_does_nothing_and_takes_over_later(python: str) -> None:
    with serving_pair(python) as lab:
        pid = lab.secondary.monitor_pid
        lab.secondary.cut_off()
        lab.stays(lambda: lab.holds(lab.primary), 12, 'the primary serves')
        lab.secondary.reconnect()
        for instance in lab.instances.values():
            hears_again(lab, instance)
        lab.stays(lambda: lab.holds(lab.primary), 8, 'the primary still serves')
        assert lab.secondary.monitor_pid == pid
        assert called(lab, lab.secondary) == []

        lab.primary.crash()

        serves(lab, lab.secondary)


def test_a_primary_that_was_only_frozen_is_not_stopped_and_claims_nothing(python: str) -> None:
    with serving_pair(python) as lab:
        since = time.monotonic()

        lab.primary.hang()
        serves(lab, lab.secondary)
        lab.primary.thaw()

        hears_again(lab, lab.secondary)
        for instance in lab.instances.values():
            instance.look()
        lab.stays(lambda: lab.holds(lab.secondary) and nobody_was_stopped(lab), 10, 'it stays so')
        assert called(lab, lab.primary, since) == []


# EC2 fails, or tells of something else

@pytest.mark.core
def test_a_take_over_is_done_once_ec2_answers_again(python: str) -> None:
    with serving_pair(python) as lab:
        with closing(lab.ec2.inject('silent', 'ReplaceRoute')), closing(lab.ec2.inject('silent', 'AssociateAddress')):
            lab.primary.crash()
            lab.wait_until(lambda: lab.ec2.calls('ReplaceRoute', 'secondary'), 'the secondary takes over')
            with closing(lab.ec2.inject('silent')):
                lab.stays(lambda: lab.holds(lab.primary), 12, 'EC2 does nothing')

        serves(lab, lab.secondary)


@pytest.mark.core
def test_a_lost_answer_to_the_move_of_the_address_costs_no_second_move(python: str) -> None:
    with serving_pair(python) as lab:
        since = time.monotonic()
        lab.ec2.inject('lost', 'AssociateAddress', 'secondary')

        lab.primary.crash()

        serves(lab, lab.secondary)
        lab.wait_until(lambda: knows(lab.secondary, lab.secondary), 'the secondary knows that it serves')
        lab.secondary.look()
        assert sorted(called(lab, lab.secondary, since)) == ['AssociateAddress', 'ReplaceRoute']


def test_what_comes_late_after_boot_is_waited_for(python: str) -> None:
    with Lab(SETTINGS, python=python, holder=None, start=False) as lab:
        lab.metadata['primary'].status = 503
        role = lab.metadata['primary'].items.pop(CREDENTIALS)
        since = time.monotonic()
        api = lab.ec2.inject('silent')
        for instance in lab.instances.values():
            instance.start_monitor()
        lab.wait_until(lambda: 'metadata' in lab.primary.log, 'the primary says what it waits for')
        lab.metadata['primary'].status = None
        lab.wait_until(lambda: 'NoCredentials' in lab.primary.log, 'credentials are missing')
        lab.metadata['primary'].items[CREDENTIALS] = role
        lab.wait_until(lambda: lab.ec2.calls(instance='primary'), 'EC2 is asked')
        lab.stays(lambda: lab.primary.monitor_pid, since + 12 - time.monotonic(), 'it waits')

        api.close()

        serves(lab, lab.primary)


# The monitor is killed

# Nothing in EC2 or in a reboot takes long, and the checks fail soon: a monitor that was started anew has heard nobody.
QUICK: Dict[str, Any] = {'pending': 0.3, 'boot': 0.6, 'job_delay': 0.2, 'stop': 0.5, 'checks': 1.0, 'impaired': 1.0}
BEFORE, AFTER = 'silent', 'lost'  # it took effect; either way the answer finds nobody


@pytest.mark.parametrize('whose, action, kind', [  # at which of its calls, and whether that takes effect
    ('secondary', 'AssociateAddress', BEFORE),
    pytest.param('secondary', 'StopInstances', AFTER, marks=pytest.mark.core),
    ('secondary', 'StartInstances', AFTER),
    ('primary', 'StopInstances', BEFORE)])
def test_a_monitor_killed_at_a_call_finishes_the_work_when_started_again(
        python: str, whose: str, action: str, kind: str) -> None:
    with serving_pair(python, **QUICK) as lab:
        instance, peer = lab.instances[whose], lab.instances[whose].peer
        lab.ec2.inject(kind, action, whose, times=1)
        peer.crash()
        lab.wait_until(lambda: 'no answer' in [call.result for call in lab.ec2.calls(action, whose)],
                       f'{action} is called')

        instance.kill_monitor(signal.SIGKILL)
        instance.start_monitor()

        serves(lab, instance)
        restarted(lab, peer)
        serves(lab, lab.primary)
        lab.wait_until(lambda: f'{peer.id} answers' in instance.log.rpartition('watching i-')[2], 'it hears it')
        graceful = [call for call in lab.ec2.calls('StopInstances') if call.parameters['Force'] == 'false']
        assert {call.instance for call in graceful} == {whose}
        assert len(graceful) == 1 + ((action, kind) == ('StopInstances', BEFORE))


# One part of several, and connections

def test_fifty_tables_share_connections_and_all_are_claimed_and_the_address_after_them(python: str) -> None:
    with serving_pair(python, tables=50) as lab:
        opened, since = len(lab.ec2.connections), time.monotonic()

        lab.primary.crash()

        serves(lab, lab.secondary)
        newly_opened = lab.ec2.connections[opened:].count('secondary')
        calls = lab.ec2.calls(instance='secondary', since=since, dry_run=None)
        claims = [call for call in calls if call.action in CLAIMS and not call.dry_run]
        assert {call.parameters.get('RouteTableId', '') for call in claims} == {'', *lab.ec2.tables}
        [address, *_] = [call for call in claims if call.action == 'AssociateAddress']
        before = [call for call in claims if call.seconds and call.at + call.seconds <= address.at]
        assert len(before) > len(lab.ec2.tables) - CONNECTIONS  # the others are under way beside it
        assert newly_opened <= CONNECTIONS + len(calls) - len(claims)


def test_of_connections_those_alone_on_which_the_private_host_sends_survive_a_crash(python: str) -> None:
    with serving_pair(python) as lab, Connections(lab.network, 20) as client, (
            Connections(lab.network, 4, by_server=True)) as server:
        since = time.monotonic()
        lab.wait_until(lambda: (client.alive(since), server.alive(since)) == (20, 4), 'all connections are alive')

        lab.primary.crash()

        serves(lab, lab.secondary)
        since = time.monotonic()
        lab.wait_until(lambda: client.alive(since) == 20, 'those of the private host go on')
        lab.wait_until(lambda: all(server.lost), 'the server has reset its own')
