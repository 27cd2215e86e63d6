"""Maintenance by a tag, with real packets."""
from __future__ import annotations

import time

import pytest

from nat_monitor import MAINTENANCE
from tests.lab.lab import Lab
from tests.lab.network import ELASTIC_IP
from tests.lab.traffic import LATE, Connections
from tests.test_failover import called, loud, serves, serving_pair

pytestmark = pytest.mark.lab

HAND_OVER = 10.0  # s: ten times for how long the lab's EC2 leaves who loses the address without one


def restarted_nobody(lab: Lab) -> bool:
    return not lab.ec2.calls('StopInstances') + lab.ec2.calls('StartInstances')


@pytest.mark.core
def test_tag_stop_start_untag_is_a_maintenance_of_the_primary_with_a_loud_line_on_each_move(python: str) -> None:
    with serving_pair(python, holder='primary') as lab, Connections(lab.network, 20, every=10.0) as connections:
        # The next lines come long after the move: what is sent while route and address are apart is lost.
        lab.wait_until(lambda: connections.alive(0.0) == 20, 'all connections are alive')
        assert loud(lab.primary) == loud(lab.secondary) == []  # a start by which nothing moves is routine
        since = time.monotonic()
        lab.ec2.tag('primary', MAINTENANCE)
        lab.secondary.look()
        serves(lab, lab.secondary)
        served_at = time.monotonic()
        lab.wait_until(lambda: connections.alive(served_at) == 20, 'all connections have survived the move')
        lab.primary.look()
        lab.wait_until(lambda: 'it claims nothing' in lab.primary.log, 'it says that it claims nothing')
        assert len(loud(lab.primary)) == len(loud(lab.secondary)) == 1

        lab.ec2.stop('primary')
        lab.wait_until(lambda: lab.primary.state == 'stopped', 'it is stopped')
        lab.stays(lambda: restarted_nobody(lab), 6, 'nobody starts it')
        before = len(lab.primary.log)
        lab.ec2.start('primary')
        lab.wait_until(lambda: 'it claims nothing' in lab.primary.log[before:], 'it boots, and claims nothing')
        assert called(lab, lab.primary, since) == []
        told, read = [len(loud(instance)) for instance in lab.instances.values()], len(lab.secondary.log)

        lab.ec2.untag('primary', MAINTENANCE)
        lab.primary.look()

        serves(lab, lab.primary)
        time.sleep(LATE)
        assert lab.traffic.outage(since) <= HAND_OVER
        assert restarted_nobody(lab)
        lab.secondary.look()
        lab.wait_until(lambda: f'{ELASTIC_IP} at {lab.primary.id}' in lab.secondary.log[read:],
                       'the secondary has seen it')
        assert all(len(loud(instance)) - before <= 1 for before, instance in zip(told, lab.instances.values()))


def test_a_crash_under_maintenance_is_taken_over_and_restarted_by_nobody(python: str) -> None:
    with serving_pair(python, holder='primary', impaired=1.0) as lab:
        lab.ec2.tag('primary', MAINTENANCE)
        lab.primary.crash()

        serves(lab, lab.secondary)
        lab.wait_until(lambda: 'under maintenance: nobody restarts it' in lab.secondary.log, 'the secondary says why')
        lab.stays(lambda: restarted_nobody(lab), 40, 'nobody stops it, though its checks fail')
        assert len(loud(lab.secondary)) == 1
