"""Maintenance by a tag, and a primary that leaves what a working peer holds, with real packets."""
from __future__ import annotations

import contextlib
import signal
import time
from typing import Any, Dict, Iterator

import pytest

from nat_monitor import MAINTENANCE
from tests.lab.lab import Instance, Lab
from tests.lab.network import ELASTIC_IP
from tests.lab.traffic import LATE, Connections
from tests.test_failover import called, serves

pytestmark = pytest.mark.lab

SETTINGS: Dict[str, Any] = {'PING_TIMEOUT': 0.4, 'WAIT_BETWEEN_PINGS': 0.4, 'WAIT_FOR_INSTANCE_STOP': 20,
                            'WAIT_FOR_INSTANCE_START': 30}
HAND_OVER = 2.0  # s of packets that a planned move loses at most, on a machine that is busy with other things


@contextlib.contextmanager
def pair(python: str, holder: str = 'primary', fail_back: bool = True, **how: Any) -> Iterator[Lab]:
    """Open a lab in which both monitors run, hear each other, and that instance serves."""
    with Lab({**SETTINGS, 'FAIL_BACK': fail_back}, python=python, holder=holder, **how) as lab:
        for instance in lab.instances.values():
            lab.wait_until(lambda: ' answers' in instance.log, f'the {instance.name} hears its peer')
        lab.wait_until(lambda: ELASTIC_IP == lab.traffic.egress(), 'the private host has its egress address')
        yield lab


def look(instance: Instance) -> None:
    """Let its monitor ask EC2 now."""
    instance.kill_monitor(signal.SIGHUP)


def has_looked(lab: Lab, instance: Instance, words: str) -> None:
    """Let a monitor ask EC2 now, and wait until it says so much."""
    look(instance)
    lab.wait_until(lambda: words in instance.log, f'the {instance.name} says {words!r}')


def restarted_nobody(lab: Lab) -> bool:
    return not lab.ec2.calls('StopInstances') + lab.ec2.calls('StartInstances')


@pytest.mark.core
def test_tag_stop_start_untag_is_a_maintenance_of_the_primary_without_an_outage(python: str) -> None:
    with pair(python) as lab, Connections(lab.network, 20, every=1.0) as connections:
        lab.wait_until(lambda: connections.alive(0.0) == 20, 'all connections are alive')
        since = time.monotonic()
        lab.ec2.tag('primary', MAINTENANCE)
        look(lab.secondary)
        serves(lab, lab.secondary)
        served_at = time.monotonic()
        lab.wait_until(lambda: connections.alive(served_at) == 20, 'all connections have survived the move')
        has_looked(lab, lab.primary, 'it claims nothing')

        lab.ec2.stop('primary')
        lab.wait_until(lambda: lab.primary.state == 'stopped', 'it is stopped')
        lab.stays(lambda: restarted_nobody(lab), 6, 'nobody starts it')
        before = len(lab.primary.log)
        lab.ec2.start('primary')
        lab.wait_until(lambda: 'it claims nothing' in lab.primary.log[before:], 'it boots, and claims nothing')
        assert called(lab, lab.primary, since) == []

        lab.ec2.untag('primary', MAINTENANCE)
        look(lab.primary)

        serves(lab, lab.primary)
        time.sleep(LATE)
        assert lab.traffic.outage(since) <= HAND_OVER
        assert restarted_nobody(lab)


def test_the_primary_takes_over_from_a_secondary_under_maintenance(python: str) -> None:
    with pair(python, 'secondary', fail_back=False) as lab:
        since = time.monotonic()

        lab.ec2.tag('secondary', MAINTENANCE, 'until noon')
        look(lab.primary)

        serves(lab, lab.primary)
        lab.ec2.untag('secondary', MAINTENANCE)
        look(lab.secondary)
        lab.stays(lambda: lab.holds(lab.primary), 3, 'the secondary does not take it back')
        assert lab.traffic.outage(since) <= HAND_OVER
        assert called(lab, lab.secondary, since) == [] and restarted_nobody(lab)


def test_a_crash_under_maintenance_is_taken_over_and_restarted_by_nobody(python: str) -> None:
    with pair(python, impaired=1.0) as lab:
        lab.ec2.tag('primary', MAINTENANCE)
        lab.primary.crash(ignores_stop=True)

        serves(lab, lab.secondary)
        lab.wait_until(lambda: 'under maintenance' in lab.secondary.log, 'the secondary says why')
        lab.stays(lambda: restarted_nobody(lab), 5, 'nobody stops it')
        assert 'to be stopped' not in lab.secondary.log and lab.secondary.log.count('under maintenance') == 1


def test_the_silence_of_a_stand_by_under_maintenance_is_nothing(python: str) -> None:
    with pair(python) as lab:
        lab.ec2.tag('secondary', MAINTENANCE)
        since = time.monotonic()

        lab.secondary.crash()

        lab.wait_until(lambda: 'under maintenance' in lab.primary.log, 'the primary says so')
        lab.stays(lambda: lab.holds(lab.primary) and restarted_nobody(lab), 5, 'nothing moves')
        assert called(lab, lab.primary, since) == []
        assert lab.primary.log.count('under maintenance') == 1
        assert lab.traffic.lost(since) == 0


def test_an_instance_under_maintenance_takes_over_from_a_dead_peer_all_the_same(python: str) -> None:
    with pair(python) as lab:
        lab.ec2.tag('secondary', MAINTENANCE)
        has_looked(lab, lab.secondary, 'it claims nothing')

        lab.primary.crash()

        serves(lab, lab.secondary)


def test_with_both_under_maintenance_nothing_moves_and_nobody_is_restarted(python: str) -> None:
    with pair(python) as lab:
        lab.ec2.tag('primary', MAINTENANCE)
        lab.ec2.tag('secondary', MAINTENANCE)
        since = time.monotonic()
        for instance in lab.instances.values():
            has_looked(lab, instance, 'under maintenance')
        lab.primary.kill_monitor()
        lab.primary.start_monitor()
        lab.stays(lambda: lab.holds(lab.primary), 3, 'nothing moves')

        lab.primary.crash()

        lab.wait_until(lambda: 'missed' in lab.secondary.log, 'the secondary notices')
        lab.stays(lambda: lab.holds(lab.primary) and restarted_nobody(lab), 5, 'nothing moves')
        assert called(lab, lab.primary, since) + called(lab, lab.secondary, since) == []


def test_without_fail_back_a_primary_that_starts_leaves_what_a_working_secondary_holds(python: str) -> None:
    with pair(python, 'secondary', fail_back=False) as lab:
        since = time.monotonic()
        lab.ec2.stop('primary')
        lab.wait_until(lambda: lab.ec2.calls('StartInstances', 'secondary'), 'the secondary starts it')
        lab.wait_until(lambda: lab.primary.log.count(' answers') == 2, 'it is back')

        lab.stays(lambda: lab.holds(lab.secondary), 4, 'it claims nothing')
        assert called(lab, lab.primary, since) == [] and lab.traffic.lost(since) == 0


def test_without_fail_back_a_primary_that_starts_claims_what_nobody_has(python: str) -> None:
    with Lab({**SETTINGS, 'FAIL_BACK': False}, python=python, holder=None, start=False) as lab:
        lab.ec2.set_address('primary')
        for instance in lab.instances.values():
            instance.start_monitor()

        serves(lab, lab.primary)

        assert called(lab, lab.secondary) == []
