"""Steps of the monitor that no row of a table shows, with scripted pings and without EC2."""
from __future__ import annotations

import math
from typing import Any

import pytest

from nat_monitor import PEER, SETTLE_BEFORE_STOP, SOON, Claim, Monitor, OwnFault, Settings

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
    monitor.moved = {TABLE}

    for _ in range(5):
        monitor.ping_once()

    assert (monitor.misses, monitor.silence, monitor.moved) == (0, 0, set())


def test_an_answer_discards_what_ec2_has_told_before(monitor: Monitor) -> None:
    monitor.note_states({OWN: ('running', 'ok'), PEER_ID: ('running', 'ok')}, asked_at=monitor.clock.monotonic())
    assert monitor.is_fresh()
    monitor.ping = script(True)

    monitor.ping_once()

    assert not monitor.is_fresh()


@pytest.mark.parametrize('at_start', [True, False])
def test_a_take_over_ends_when_ec2_calls_this_instance_stopping(monitor: Monitor, at_start: bool) -> None:
    monitor.claim = Claim(at_start, [TABLE], due_at=0.0)

    monitor.note_states({OWN: ('stopping', ''), PEER_ID: ('running', 'ok')}, asked_at=0.0)

    assert (monitor.claim is None) is not at_start


def test_a_read_that_lags_does_not_end_a_claim(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor.misses, monitor.holders = 3, {TABLE: PEER}
    monkeypatch.setattr(monitor, 'ask', lambda *topics: {})
    claim = monitor.claim = Claim(False, ['198.51.100.7'], due_at=0.0, attempts=1, moved={TABLE})

    monitor.claimed_at = monitor.clock.monotonic()
    assert not monitor.goes_on(claim) and monitor.claim is claim

    monitor.claimed_at -= SOON
    assert not monitor.goes_on(claim) and monitor.claim is None


def test_a_table_counts_as_taken_back_only_when_the_claim_has_settled(monitor: Monitor) -> None:
    monitor.note_states({OWN: ('running', 'ok'), PEER_ID: ('running', 'ok')}, asked_at=0.0)
    monitor.holders, monitor.moved = {TABLE: PEER}, {TABLE}

    monitor.claimed_at = monitor.clock.monotonic()
    assert not monitor.situation().lost

    monitor.claimed_at -= SETTLE_BEFORE_STOP
    assert monitor.situation().lost
