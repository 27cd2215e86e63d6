"""Steps of the monitor that no row of a table shows, with scripted pings and without EC2."""
from __future__ import annotations

import math
from typing import Any

import pytest

from nat_monitor import Monitor, OwnFault, Settings

OWN, PEER_ID, TABLE = 'i-0fedcba9876543210', 'i-0123456789abcdef0', 'rtb-0123456789abcdef0'


@pytest.fixture
def monitor() -> Monitor:
    """Return the monitor of a secondary that knows its peer, and asks EC2 nothing."""
    monitor = Monitor(Settings(PEER_ID, OWN, (TABLE,)))
    monitor.own_id, monitor.peer_id, monitor.peer_address = OWN, PEER_ID, '10.0.0.11'
    monitor.judge_at = math.inf
    return monitor


def script(*outcomes: Any) -> Any:
    """Return a ping with these outcomes: an answer, a miss, or what it raises."""
    left = iter(outcomes)

    def ping(address: str) -> bool:
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return bool(outcome)
    return ping


def test_a_silence_that_a_fault_of_our_own_interrupts_ends_with_the_next_answer(monitor: Monitor) -> None:
    monitor.ping = script(False, False, False, OwnFault('no buffer space'), True)
    monitor.known.taking_over = True

    for _ in range(5):
        monitor.ping_once()

    assert (monitor.misses, monitor.silence, monitor.known.taking_over) == (0, 0, False)


def test_an_answer_discards_what_ec2_has_told_before(monitor: Monitor) -> None:
    monitor.note_states({OWN: ('running', 'ok'), PEER_ID: ('running', 'ok')}, asked_at=monitor.clock.monotonic())
    assert monitor.is_fresh()
    monitor.ping = script(True)

    monitor.ping_once()

    assert not monitor.is_fresh()


@pytest.mark.parametrize('state, goes_on', [('running', True), ('stopping', False), ('stopped', False)])
def test_a_take_over_ends_when_ec2_calls_this_instance_anything_but_running(
        monitor: Monitor, state: str, goes_on: bool) -> None:
    monitor.known.taking_over = True

    monitor.note_states({OWN: (state, ''), PEER_ID: ('running', 'ok')}, asked_at=0.0)

    assert monitor.known.taking_over is goes_on
