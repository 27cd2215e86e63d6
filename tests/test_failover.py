"""Failures with real packets: what the pair must survive, each case in a lab of its own.

Times are shorter than the default settings', so that a case takes seconds; the rules are the same.
"""
from __future__ import annotations

import contextlib
import re
import signal
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from nat_monitor import CONNECTIONS, LOOK_AFTER_CHANGE
from tests.lab.lab import Instance, Lab
from tests.lab.network import ELASTIC_IP
from tests.lab.traffic import Connections

pytestmark = pytest.mark.lab

SETTINGS: Dict[str, Any] = {'NUM_PINGS': 3, 'PING_TIMEOUT': 0.4, 'WAIT_BETWEEN_PINGS': 0.4,
                            'WAIT_FOR_INSTANCE_STOP': 20, 'WAIT_FOR_INSTANCE_START': 30}
QUICK_PINGS: Dict[str, Any] = {'PING_TIMEOUT': 0.2, 'WAIT_BETWEEN_PINGS': 0.2}
SHIPPED: Dict[str, Any] = {'PING_TIMEOUT': 1.0, 'WAIT_BETWEEN_PINGS': 0.25,
                           'WAIT_FOR_INSTANCE_STOP': 60, 'WAIT_FOR_INSTANCE_START': 300}
LOOK = ['DescribeAddresses', 'DescribeInstanceStatus', 'DescribeInstances', 'DescribeRouteTables']
CLAIMS = ('ReplaceRoute', 'CreateRoute', 'AssociateAddress')
MUTATING = (*CLAIMS, 'StopInstances', 'StartInstances')


@contextlib.contextmanager
def serving_pair(python: str, **how: Any) -> Iterator[Lab]:
    """Open a lab in which both monitors run, hear each other, and the primary serves."""
    settings = {**SETTINGS, **how.pop('settings', {})}
    with Lab(settings, python=python, holder=None, **how) as lab:
        serves(lab, lab.primary)
        for part in (*lab.ec2.tables, ELASTIC_IP):
            lab.wait_until(lambda: f'{part} is at' in lab.primary.log, 'the primary knows that it serves')
        for instance in (lab.primary, lab.secondary):
            lab.wait_until(lambda: ' answers' in instance.log, f'the {instance.name} hears its peer')
        yield lab


def serves(lab: Lab, instance: Instance) -> None:
    """Wait until the instance has all tables and the address, and the internet sees the private host through it."""
    lab.wait_until(lambda: lab.holds(instance), f'the {instance.name} holds tables and address')
    since = time.monotonic() + 0.1  # until then packets may go the way of before
    lab.wait_until(lambda: any(packet.egress == ELASTIC_IP for packet in lab.traffic.packets(since)),
                   'the private host has its egress address')


def look(lab: Lab, *instances: Instance) -> None:
    """Let monitors look at EC2 at once (all of them, unless told otherwise), and wait until they have."""
    for instance in instances or lab.instances.values():
        since = time.monotonic()
        instance.kill_monitor(signal.SIGHUP)
        lab.wait_until(lambda: any(call.result for call in lab.ec2.calls('DescribeRouteTables', instance.name,
                                                                         since=since)), f'{instance.name} looks')


def looks_of_the_start_are_over(lab: Lab) -> None:
    """Wait until nobody has called EC2 for longer than something is left to do: for two minutes that is the last."""
    lab.wait_until(lambda: time.monotonic() - lab.ec2.calls(dry_run=None)[-1].at > LOOK_AFTER_CHANGE + 2, 'all is calm')


def has_rehearsed(lab: Lab, instance: Instance) -> None:
    """Wait until the monitor has rehearsed all its calls, which is the last thing that a start does."""
    def is_under_way() -> bool:
        return not all(call.result for call in lab.ec2.calls(instance=instance.name, dry_run=None))

    lab.wait_until(lambda: lab.ec2.calls('StartInstances', instance.name, dry_run=True) and not is_under_way(),
                   f'the {instance.name} has rehearsed')
    time.sleep(0.2)  # its answers arrive


def claims_are_believed(lab: Lab) -> None:
    """Wait until the claims of the start are old enough: what came less than 10 s ago is here, whatever EC2 says."""
    newest = max(call.at for call in lab.ec2.calls() if call.action in CLAIMS)
    lab.wait_until(lambda: time.monotonic() - newest > 11, 'the claims are old enough')


def start_both(lab: Lab) -> None:
    lab.primary.start_monitor()
    lab.secondary.start_monitor()


@contextlib.contextmanager
def during(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    begin()
    try:
        yield
    finally:
        end()


def called(lab: Lab, instance: Instance, since: float = 0.0, *, actions: Any = MUTATING) -> List[str]:
    """Return the changes that the instance asked EC2 for, in order."""
    return [call.action for call in lab.ec2.calls(instance=instance.name, since=since) if call.action in actions]


def nobody_was_stopped(lab: Lab, since: float = 0.0) -> bool:
    return not lab.ec2.calls('StopInstances', since=since)


def restarted(lab: Lab, instance: Instance) -> None:
    """Wait until the instance has been stopped, started, and its monitor runs again."""
    lab.wait_until(lambda: lab.ec2.calls('StartInstances'), f'the {instance.name} is started')
    lab.wait_until(lambda: instance.state == 'running' and instance.monitor_pid,
                   f'the monitor of the {instance.name} runs again')


def status(instance: Instance) -> Tuple[int, List[str]]:
    """Return the exit code of --status there, and the lines that are not fine."""
    done = instance.run(*instance.monitor_command, '--status')
    return done.returncode, [line for line in done.stdout.splitlines() if not line.startswith('ok ')]


def all_is_well(lab: Lab, when: str) -> None:
    for instance in lab.instances.values():
        lab.wait_until(lambda: status(instance) == (0, []), f'all is well {when}, says the {instance.name}')


# 1

@pytest.mark.core
def test_a_crashed_primary_is_replaced_restarted_and_claims_again_at_boot_and_the_status_tells(python: str) -> None:
    with serving_pair(python) as lab:
        all_is_well(lab, 'before')
        since = time.monotonic()

        lab.primary.crash()

        assert status(lab.primary)[0] == 2
        serves(lab, lab.secondary)
        silent = f'FAIL .*{lab.primary.id}.* is not heard'
        lab.wait_until(lambda: re.search(silent, '\n'.join(status(lab.secondary)[1])),
                       'the secondary says that something is to mend')
        restarted(lab, lab.primary)
        serves(lab, lab.primary)
        claims, restart = (called(lab, lab.secondary, since)[part] for part in (slice(2), slice(2, None)))
        assert sorted(claims) == ['AssociateAddress', 'ReplaceRoute']  # at the same moment, in either order
        assert restart == ['StopInstances', 'StartInstances']
        all_is_well(lab, 'after')


def test_a_primary_that_was_only_frozen_is_not_stopped(python: str) -> None:
    with serving_pair(python) as lab:
        since = time.monotonic()

        with during(lab.primary.hang, lab.primary.thaw):
            serves(lab, lab.secondary)

        lab.wait_until(lambda: 'answers again' in lab.secondary.log, 'the secondary hears the primary again')
        lab.stays(lambda: nobody_was_stopped(lab), 14, 'nobody is stopped')
        look(lab)
        assert lab.holds(lab.secondary)
        assert 'to move it to the primary, restart the monitor there' in lab.secondary.log
        assert called(lab, lab.primary, since) == []


# 2

@pytest.mark.core
def test_a_crashed_secondary_is_restarted_and_the_network_is_not_touched(python: str) -> None:
    with serving_pair(python) as lab:
        since = time.monotonic()

        lab.secondary.crash()

        restarted(lab, lab.secondary)
        lab.wait_until(lambda: lab.primary.log.count('answers') >= 2, 'the primary hears the secondary again')
        assert called(lab, lab.primary, since) == ['StopInstances', 'StartInstances']
        assert called(lab, lab.secondary, since) == []
        assert lab.traffic.lost(since) == 0


# 3, 4

def test_blocked_ping_between_healthy_instances_never_stops_both(python: str) -> None:
    with serving_pair(python) as lab:
        lab.primary.block_ping()

        lab.wait_until(lambda: lab.ec2.calls('StartInstances'), 'one is restarted')
        restarted(lab, lab.primary)
        for instance in lab.instances.values():
            lab.wait_until(lambda: 'security groups' in instance.log, 'the log says what to look at')
        lab.stays(lambda: lab.holds(lab.secondary), 10, 'whoever has the route serves on')
        assert [call.instance for call in lab.ec2.calls('StopInstances')] == ['secondary']


def test_ping_blocked_from_the_start_moves_and_stops_nobody_and_says_what_to_look_at(python: str) -> None:
    with Lab(SETTINGS, python=python, holder=None, start=False) as lab:
        lab.primary.block_ping()

        start_both(lab)

        for instance in (lab.primary, lab.secondary):
            lab.wait_until(lambda: 'security groups' in instance.log, 'the log says what to look at')
        serves(lab, lab.primary)
        lab.stays(lambda: lab.holds(lab.primary) and nobody_was_stopped(lab), 10, 'nothing happens')
        assert called(lab, lab.secondary) == []


# 5, 6

@pytest.mark.parametrize('how', [pytest.param('packets vanish', marks=pytest.mark.core), 'interface down'])
def test_a_secondary_that_was_cut_off_does_nothing_and_takes_over_later(python: str, how: str) -> None:
    with serving_pair(python) as lab:
        pid = lab.secondary.monitor_pid
        begin, end = (lab.secondary.cut_off, lab.secondary.reconnect) if how == 'packets vanish' else (
            lab.secondary.interface_down, lab.secondary.interface_up)
        with during(begin, end):  # not for so long that it would be stopped: it comes back with what it thought
            lab.stays(lambda: lab.holds(lab.primary), 12, 'the primary serves')
        lab.wait_until(lambda: 'answers again' in lab.primary.log, 'the primary hears it again')
        lab.stays(lambda: lab.holds(lab.primary), 8, 'the primary still serves')
        assert lab.secondary.monitor_pid == pid
        assert called(lab, lab.secondary) == []

        lab.primary.crash()

        serves(lab, lab.secondary)


def test_a_primary_that_is_cut_off_is_replaced_and_restarted(python: str) -> None:
    with serving_pair(python) as lab:
        with during(lab.primary.cut_off, lab.primary.reconnect):
            lab.stays(lambda: lab.secondary.state == 'running', 60, 'nobody stops the one that serves')
            assert lab.ec2.calls('StopInstances', 'secondary')
            lab.wait_until(lambda: lab.holds(lab.secondary), 'the secondary serves')

        serves(lab, lab.primary)
        assert {call.instance for call in lab.ec2.calls('StopInstances')} == {'secondary'}


# 7, 8

@pytest.mark.parametrize('kind', ['Unavailable', 'RequestLimitExceeded', 'UnauthorizedOperation',
                                  pytest.param('silent', marks=pytest.mark.core)])
def test_a_take_over_is_done_once_the_api_returns(python: str, kind: str) -> None:
    with serving_pair(python) as lab:
        with lab.ec2.injected(kind, 'ReplaceRoute'), lab.ec2.injected(kind, 'AssociateAddress'):
            lab.primary.crash()
            lab.wait_until(lambda: lab.ec2.calls('ReplaceRoute', 'secondary'), 'the secondary takes over')
            with lab.ec2.injected(kind):
                lab.stays(lambda: lab.holds(lab.primary), 12, 'the API does nothing')

        serves(lab, lab.secondary)


@pytest.mark.core
def test_a_lost_answer_to_the_move_of_the_address_costs_no_second_move(python: str) -> None:
    with serving_pair(python) as lab:
        since = time.monotonic()
        lab.ec2.inject('lost', 'AssociateAddress', 'secondary')

        lab.primary.crash()

        serves(lab, lab.secondary)
        lab.wait_until(lambda: lab.ec2.calls('StopInstances'), 'the work goes on')
        assert sorted(called(lab, lab.secondary, since)) == ['AssociateAddress', 'ReplaceRoute', 'StopInstances']


# 9, 10, 11

def test_a_dead_primary_that_ignores_a_graceful_stop_is_forced(python: str) -> None:
    with serving_pair(python) as lab:
        lab.primary.crash(ignores_stop=True)

        lab.wait_until(lambda: len(lab.ec2.calls('StopInstances')) == 2, 'it is forced')
        first, second = lab.ec2.calls('StopInstances')
        assert first.parameters['Force'] == 'false' and second.parameters['Force'] == 'true'
        restarted(lab, lab.primary)
        serves(lab, lab.primary)


def test_a_terminated_primary_is_replaced_for_good_with_few_calls(python: str) -> None:
    with serving_pair(python) as lab:
        lab.ec2.terminate('primary')

        serves(lab, lab.secondary)
        lab.wait_until(lambda: 'is gone' in lab.secondary.log, 'the secondary says so')
        lab.wait_until(lambda: time.monotonic() - lab.ec2.calls('AssociateAddress')[-1].at > 16, 'the look is over')
        since = time.monotonic()
        lab.stays(lambda: lab.holds(lab.secondary), 20, 'the secondary serves on')
        assert len(lab.ec2.calls(since=since)) <= 3
        assert lab.secondary.log.count('is gone') == 1
        assert nobody_was_stopped(lab)


def test_both_boot_at_once_and_the_slower_primary_serves_in_the_end(python: str) -> None:
    with Lab(SETTINGS, python=python, holder=None, start=False) as lab:
        lab.secondary.start_monitor()
        lab.ec2.later(6, lab.primary.start_monitor)

        lab.wait_until(lambda: lab.holds(lab.secondary) or lab.holds(lab.primary), 'somebody serves')
        serves(lab, lab.primary)
        lab.stays(lambda: lab.holds(lab.primary) and nobody_was_stopped(lab), 15, 'it settles')


# 12, 13, 14

def test_a_missing_default_route_is_created(python: str) -> None:
    with serving_pair(python) as lab:
        # Where the address comes before it is known that there is no route, that answer is lost with the connection.
        assert set(called(lab, lab.primary)) == {'ReplaceRoute', 'CreateRoute', 'AssociateAddress'}
        assert len(lab.ec2.calls('CreateRoute')) == len(lab.ec2.calls('AssociateAddress')) == 1


def test_what_comes_late_after_boot_is_waited_for(python: str) -> None:
    with Lab(SETTINGS, python=python, holder=None, start=False) as lab:
        lab.metadata['primary'].status = 503
        lab.metadata['primary'].has_credentials = False
        since = time.monotonic()
        api = lab.ec2.inject('silent')
        start_both(lab)
        lab.wait_until(lambda: 'metadata' in lab.primary.log, 'the primary says what it waits for')
        lab.metadata['primary'].status = None
        lab.wait_until(lambda: 'NoCredentials' in lab.primary.log, 'credentials are missing')
        lab.metadata['primary'].has_credentials = True
        lab.wait_until(lambda: lab.ec2.calls(instance='primary'), 'EC2 is asked')
        lab.stays(lambda: lab.primary.monitor_pid, since + 12 - time.monotonic(), 'it waits')

        api.remove()

        serves(lab, lab.primary)


def test_while_all_is_well_there_is_no_line_and_no_call_and_one_lost_ping_is_no_event(python: str) -> None:
    with serving_pair(python) as lab:
        looks_of_the_start_are_over(lab)
        since, logs = time.monotonic(), [instance.log for instance in lab.instances.values()]
        lab.stays(lambda: lab.holds(lab.primary), 20, 'all is well')
        assert lab.ec2.calls(since=since, dry_run=None) == []

        for instance in lab.instances.values():
            instance.lose_requests(6)
        lab.wait_until(lambda: lab.network.lost_requests() == 12, 'all six requests of a ping each way are lost')

        lab.stays(lambda: [instance.log for instance in lab.instances.values()] == logs, 5, 'no line is logged')
        for name in lab.instances:  # EC2 is asked at the first miss, as its answer must precede the ping that decides
            asked = [call.action for call in lab.ec2.calls(instance=name, since=since, dry_run=None)]
            assert sorted(asked) == LOOK


def test_lost_packets_do_not_look_like_a_dead_peer(python: str) -> None:
    with serving_pair(python) as lab:
        since = time.monotonic()
        lab.secondary.lose_packets(20)

        lab.stays(lambda: lab.holds(lab.primary), 60, 'nothing happens')

        assert called(lab, lab.primary, since) + called(lab, lab.secondary, since) == []
        assert 'missed' not in lab.primary.log + lab.secondary.log


def test_a_primary_that_does_not_forward_does_not_claim(python: str) -> None:
    with Lab(SETTINGS, python=python, holder=None, start=False) as lab:
        lab.primary.forwarding(False)
        start_both(lab)
        lab.wait_until(lambda: 'cannot NAT (net.ipv4.ip_forward is 0)' in lab.primary.log, 'the primary says so')
        lab.stays(lambda: called(lab, lab.primary) == [], 5, 'it claims nothing')

        lab.primary.forwarding(True)

        serves(lab, lab.primary)


def test_a_holder_whose_source_check_is_turned_on_is_relieved_at_the_next_look(python: str) -> None:
    with serving_pair(python) as lab:
        since = time.monotonic()

        lab.ec2.check_source('primary', True)
        look(lab, lab.secondary)

        serves(lab, lab.secondary)
        assert lab.traffic.outage(since) > 0.0 and nobody_was_stopped(lab)
        assert f'--instance-id {lab.primary.id} --no-source-dest-check' in lab.secondary.log


def test_who_has_its_source_check_on_claims_nothing_and_stops_nobody(python: str) -> None:
    with serving_pair(python) as lab:
        lab.ec2.check_source('secondary', True)
        since = time.monotonic()

        lab.primary.crash()

        lab.wait_until(lambda: 'cannot NAT (EC2 drops what it forwards' in lab.secondary.log, 20, 'it says so')
        lab.stays(lambda: called(lab, lab.secondary, since) == [] and nobody_was_stopped(lab), 45, 'it does nothing')

        lab.ec2.check_source('secondary', False)

        serves(lab, lab.secondary)


def test_a_pair_serves_whatever_stands_in_the_environment_of_its_monitors(python: str) -> None:
    dead = 'http://198.51.100.99:9'
    proxies = {name: dead for each in ('http_proxy', 'https_proxy', 'all_proxy') for name in (each, each.upper())}
    with serving_pair(python, environment={**proxies, 'AWS_EC2_METADATA_DISABLED': 'true', 'AWS_ENDPOINT_URL': dead,
                                           'AWS_USE_FIPS_ENDPOINT': 'true', 'AWS_ACCESS_KEY_ID': 'AKIALEFT',
                                           'AWS_SECRET_ACCESS_KEY': 'left'}) as lab:
        lab.primary.crash()

        serves(lab, lab.secondary)


# 16

# Nothing in EC2 or in a reboot takes long, and the checks fail soon: a monitor that was started anew has heard nobody.
QUICK: Dict[str, Any] = {'pending': 0.3, 'boot': 0.6, 'job_delay': 0.2, 'stop': 0.5, 'checks': 1.0, 'impaired': 1.0}
BEFORE, AFTER = 'silent', 'lost'  # it took effect; either way the answer finds nobody

# Whose monitor is killed at which of its calls, the first one after another call of its own, and whether the call
# takes effect. What only asks has no effect, so that either will do.
TAKE_OVER = [('secondary', '', 'DescribeInstanceStatus', BEFORE),
             ('secondary', '', 'ReplaceRoute', BEFORE), ('secondary', '', 'ReplaceRoute', AFTER),
             ('secondary', '', 'AssociateAddress', BEFORE), ('secondary', '', 'AssociateAddress', AFTER),
             ('secondary', 'AssociateAddress', 'DescribeAddresses', BEFORE)]
STOP = [('secondary', 'AssociateAddress', 'DescribeInstanceStatus', BEFORE),
        ('secondary', '', 'StopInstances', BEFORE),
        pytest.param('secondary', '', 'StopInstances', AFTER, marks=pytest.mark.core),
        ('secondary', 'StopInstances', 'DescribeInstanceStatus', BEFORE)]
START = [('secondary', '', 'StartInstances', BEFORE), ('secondary', '', 'StartInstances', AFTER),
         ('secondary', 'StartInstances', 'DescribeInstanceStatus', BEFORE)]
BY_PRIMARY = [('primary', '', 'DescribeInstanceStatus', BEFORE),
              ('primary', '', 'StopInstances', BEFORE), ('primary', '', 'StopInstances', AFTER),
              ('primary', '', 'StartInstances', BEFORE), ('primary', '', 'StartInstances', AFTER),
              ('primary', 'StartInstances', 'DescribeInstanceStatus', BEFORE)]


@pytest.mark.parametrize('whose, after, action, kind', [*TAKE_OVER, *STOP, *START, *BY_PRIMARY])
def test_a_monitor_killed_at_any_call_finishes_the_work_when_started_again(
        python: str, whose: str, after: str, action: str, kind: str) -> None:
    with serving_pair(python, **QUICK) as lab:
        instance, peer = lab.instances[whose], next(i for name, i in lab.instances.items() if name != whose)
        peer.crash()
        lab.wait_until(lambda: not after or lab.ec2.calls(after, whose), f'{after} is called')
        if after == 'StartInstances':
            lab.times.boot = 20.0  # it is asked for 5 s later, and the peer must not be back by then
        lab.ec2.inject(kind, action, whose, times=1)
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


# 17

def test_a_table_that_is_missing_holds_up_nothing_and_is_claimed_when_it_is_back(python: str) -> None:
    with serving_pair(python, tables=2) as lab:
        restore = lab.ec2.delete_table(1)

        lab.primary.crash()

        lab.wait_until(lambda: lab.ec2.route_target(0) == lab.ec2.address_owner() == 'secondary', 'the rest moves')
        lab.wait_until(lambda: lab.ec2.calls('StopInstances', 'secondary'), 'the primary is restarted')
        restore()
        lab.wait_until(lambda: lab.ec2.route_target(1) in ('primary', 'secondary'), 'the table is claimed')
        serves(lab, lab.primary)


# 18, 19, 20

def test_an_instance_without_a_public_address_is_blind_says_so_and_decides_nothing(python: str) -> None:
    with serving_pair(python) as lab:
        pid = lab.secondary.monitor_pid
        lab.secondary.lose_public_address_for(20)
        with during(lambda: lab.primary.block_ping('in'), lab.primary.allow_ping):
            lab.wait_until(lambda: 'EC2 does not answer' in lab.secondary.log, 'it says so')
            lab.stays(lambda: lab.holds(lab.primary), 5, 'it decides nothing')
        lab.wait_until(lambda: lab.secondary.link.public, 'it has an address again')
        lab.stays(lambda: called(lab, lab.secondary) == [], 5, 'it still decides nothing')
        assert lab.secondary.monitor_pid == pid

        lab.primary.crash()

        serves(lab, lab.secondary)


def test_a_hanging_name_resolution_holds_up_no_ping_beyond_the_deadline(python: str) -> None:
    with serving_pair(python, by_name=True) as lab:
        lab.wait_until(lambda: 'holds tables and address' in lab.secondary.log, 'no look is due soon')
        lab.secondary.names_hang()
        with (lab.secondary.node.root / 'etc/resolv.conf').open('a') as file:
            file.write('options timeout:30 attempts:5\n')
        with during(lambda: lab.primary.block_ping('in'), lab.primary.allow_ping):
            lab.wait_until(lambda: 'missed 3 pings' in lab.secondary.log, 'pinging goes on')

        lab.wait_until(lambda: 'answers again' in lab.secondary.log, 'the next ping follows within the deadline', 100)
        assert called(lab, lab.secondary) == []


# 22, 23

def test_a_role_without_a_permission_is_said_at_the_start_by_both(python: str) -> None:
    with Lab(SETTINGS, python=python, holder=None, start=False) as lab:
        lab.ec2.inject('UnauthorizedOperation', 'AssociateAddress')

        start_both(lab)

        said = f'does not allow AssociateAddress on {ELASTIC_IP}'  # as it has rehearsed
        lab.wait_until(lambda: said in lab.secondary.log, 'the secondary says it')
        said = f'{ELASTIC_IP} could not be moved to {lab.primary.id} (UnauthorizedOperation'  # as it has tried
        lab.wait_until(lambda: said in lab.primary.log, 'the primary says it')
        assert ' ERROR ' in lab.secondary.log


def test_an_address_moved_by_hand_is_back_after_a_look(python: str) -> None:
    with serving_pair(python) as lab:
        claims_are_believed(lab)
        lab.ec2.set_address('secondary')
        lab.wait_until(lambda: lab.primary.link.public, 'the primary reaches EC2')

        look(lab, lab.secondary, lab.primary)

        serves(lab, lab.primary)
        assert called(lab, lab.secondary) == []


def test_a_secondary_killed_between_table_and_address_leaves_nothing_apart(python: str) -> None:
    with serving_pair(python) as lab:
        lab.ec2.inject('silent', 'AssociateAddress', 'secondary', times=1)
        with during(lab.primary.hang, lab.primary.thaw):
            lab.wait_until(lambda: lab.ec2.route_target() == 'secondary', 'the table is moved')
            lab.wait_until(lambda: lab.ec2.calls('AssociateAddress', 'secondary'), 'the address is not')
            lab.secondary.kill_monitor(signal.SIGKILL)
        lab.secondary.start_monitor()

        lab.wait_until(lambda: lab.holds(lab.primary) or lab.holds(lab.secondary), 'table and address are together')


def test_a_route_to_something_outside_the_pair_is_left_alone_and_warned_about(python: str) -> None:
    with serving_pair(python) as lab:
        claims_are_believed(lab)
        gateway = lab.ec2.set_route_to_nat_gateway()

        look(lab)

        for instance in lab.instances.values():
            lab.wait_until(lambda: 'outside the pair' in instance.log, f'the {instance.name} warns')
        lab.stays(lambda: lab.ec2.route_target() == gateway, 5, 'it is left alone')


# The path between two that are well is cut for a moment

@pytest.mark.parametrize('settings, seconds, pauses, stands_by', [
    (QUICK_PINGS, 1.4, (16.0, 5.0, 9.3, 13.1, 7.7, 11.0), 'secondary'),
    (SHIPPED, 6.5, (5.3, 16.0, 9.7, 12.0), 'secondary'),
    (SHIPPED, 4.5, (5.3, 16.0, 9.7, 12.0), 'primary')])
def test_hiccups_of_the_path_between_two_that_are_well_stop_nobody(
        python: str, settings: Dict[str, Any], seconds: float, pauses: List[float], stands_by: str) -> None:
    with serving_pair(python, settings=settings) as lab:
        if stands_by == 'primary':
            with during(lab.primary.hang, lab.primary.thaw):
                serves(lab, lab.secondary)
            lab.wait_until(lambda: 'answers again' in lab.secondary.log, 'the secondary hears the primary again')
            look(lab)

        for pause in pauses:
            lab.lose_between(100)
            time.sleep(seconds)
            lab.lose_between(0)
            lab.stays(lambda: nobody_was_stopped(lab), pause, 'nobody is stopped')

        lab.wait_until(lambda: lab.holds(lab.primary) or lab.holds(lab.secondary), 'one has everything')
        lab.wait_until(lambda: lab.traffic.egress() == ELASTIC_IP, 'the private host has its egress address')
        assert nobody_was_stopped(lab)


@pytest.mark.parametrize('whose', ['primary', 'secondary'])
def test_an_instance_that_reboots_by_itself_is_not_stopped(python: str, whose: str) -> None:
    """EC2 knows nothing of it."""
    with serving_pair(python, settings={'WAIT_FOR_INSTANCE_STOP': 60}) as lab:
        instance, peer = lab.instances[whose], next(i for name, i in lab.instances.items() if name != whose)
        instance.crash()
        lab.stays(lambda: nobody_was_stopped(lab), 30, 'nobody is stopped')

        instance.boot()
        instance.run_boot_job()

        lab.wait_until(lambda: 'answers again' in peer.log, 'its peer hears it again')
        serves(lab, lab.primary)
        lab.stays(lambda: nobody_was_stopped(lab), 10, 'nobody is stopped')


def test_a_secondary_that_does_not_forward_takes_nothing_in_a_hiccup(python: str) -> None:
    with serving_pair(python, settings=SHIPPED) as lab:
        lab.secondary.forwarding(False)
        look(lab)
        since = time.monotonic()

        lab.lose_between(100)
        lab.stays(lambda: lab.holds(lab.primary), 4.5, 'the primary serves')
        lab.lose_between(0)

        lab.wait_until(lambda: 'answers again' in lab.secondary.log, 'the secondary hears the primary again')
        assert lab.holds(lab.primary) and called(lab, lab.secondary) == []
        assert lab.traffic.lost(since) == 0


# One part of several

@pytest.mark.parametrize('what', ['the address is released', 'one of two routes is deleted'])
def test_a_part_that_somebody_takes_away_comes_back_and_moves_nothing_else(python: str, what: str) -> None:
    with serving_pair(python, tables=2, new_public_address=0.1) as lab:
        claims_are_believed(lab)
        since = time.monotonic()

        if what == 'the address is released':
            lab.ec2.set_address(None)
            lab.wait_until(lambda: lab.primary.link.public, 'the primary reaches EC2')
        else:
            lab.ec2.set_route(None, 1)
        look(lab, lab.secondary, lab.primary)

        serves(lab, lab.primary)
        assert called(lab, lab.secondary) == []
        assert called(lab, lab.primary, since) == (
            ['AssociateAddress'] if what == 'the address is released' else ['ReplaceRoute', 'CreateRoute'])


def test_the_parts_of_a_claim_reach_ec2_before_any_of_them_is_answered(python: str) -> None:
    with serving_pair(python, tables=5) as lab:
        with lab.ec2.injected('silent', 'ReplaceRoute'), lab.ec2.injected('silent', 'AssociateAddress'):
            lab.primary.crash()

            lab.wait_until(lambda: lab.ec2.calls('AssociateAddress', 'secondary'), 'the address is claimed')
            tables = {call.parameters['RouteTableId'] for call in lab.ec2.calls('ReplaceRoute', 'secondary')}
            assert tables == set(lab.ec2.tables)

        serves(lab, lab.secondary)


def test_fifty_tables_share_connections_and_each_is_claimed_once_and_the_address_after_them(python: str) -> None:
    with serving_pair(python, tables=50) as lab:
        opened, since = len(lab.ec2.connections), time.monotonic()

        lab.primary.crash()

        serves(lab, lab.secondary)
        claims = [call for call in lab.ec2.calls(instance='secondary', since=since)
                  if call.action in ('ReplaceRoute', 'AssociateAddress')]
        assert sorted(call.parameters.get('RouteTableId', '') for call in claims) == ['', *sorted(lab.ec2.tables)]
        assert max(claims, key=lambda call: call.at).action == 'AssociateAddress'
        looks = len(lab.ec2.calls('Describe*', since=since))
        assert len(lab.ec2.connections) - opened <= looks + CONNECTIONS


def test_connections_on_which_the_private_host_sends_survive_a_crash(python: str) -> None:
    with serving_pair(python) as lab, Connections(lab.network, 20) as connections:
        since = time.monotonic()
        lab.wait_until(lambda: connections.alive(since) == 20, 'all connections are alive')

        lab.primary.crash()

        serves(lab, lab.secondary)
        since = time.monotonic()
        lab.wait_until(lambda: connections.alive(since) == 20, 'all connections are alive again')


# What is no use

def test_why_a_start_failed_is_told_once(python: str) -> None:
    with serving_pair(python) as lab:
        lab.primary.life.start_fails = True
        lab.ec2.stop('primary')

        serves(lab, lab.secondary)
        lab.wait_until(lambda: len(lab.ec2.calls('StartInstances')) == 2, 'it is tried again')
        assert lab.secondary.log.count('Client error on launch') == 1
        assert sorted(called(lab, lab.secondary)) == ['AssociateAddress', 'ReplaceRoute', *['StartInstances'] * 2]
        assert lab.holds(lab.secondary)


def test_a_clock_that_is_off_is_told_and_refused_claims_are_tried_again(python: str) -> None:
    with serving_pair(python) as lab:
        lab.ec2.clock_ahead = 600.0
        lab.ec2.inject('RequestExpired')
        for instance in lab.instances.values():
            instance.kill_monitor(signal.SIGHUP)
            lab.wait_until(lambda: re.search(r'off by -\d+ s, .* see to chrony', instance.log), 'it is said')

        lab.primary.crash()

        lab.wait_until(lambda: len(lab.ec2.calls('ReplaceRoute', 'secondary')) >= 2, 'it is tried again')
        assert nobody_was_stopped(lab)
