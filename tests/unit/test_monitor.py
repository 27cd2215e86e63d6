"""Steps of the monitor that no row of a table shows, with scripted pings and without EC2."""
from __future__ import annotations

import math
from typing import Any, Callable, Dict, List

import pytest
from botocore.exceptions import ClientError

from nat_monitor import LOOK_AFTER_CHANGE, NOBODY, PEER, SELF, Monitor, NoAnswer, OwnFault, Settings, Situation

OWN, PEER_ID, TABLE = 'i-0fedcba9876543210', 'i-0123456789abcdef0', 'rtb-0123456789abcdef0'


class Clock:
    """A clock that stands still; a process that is suspended finds that it has jumped."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def refusal() -> ClientError:
    return ClientError({'Error': {'Code': 'RequestLimitExceeded', 'Message': ''}}, 'ReplaceRoute')


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(clock: Clock) -> Monitor:
    """Return the monitor of a secondary that knows its peer, and asks EC2 nothing."""
    monitor = Monitor(Settings(PEER_ID, OWN, (TABLE,)), clock=clock)
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


def test_a_suspension_during_a_ping_ends_a_take_over(monitor: Monitor, clock: Clock) -> None:
    def suspended(address: str) -> bool:
        clock.now += 60.0
        return False
    monitor.ping, monitor.misses, monitor.known.taking_over = suspended, 5, True

    monitor.ping_once()

    assert (monitor.replied, monitor.misses, monitor.known.taking_over) == (None, 0, False)


def test_results_that_a_suspension_has_delayed_are_no_answers(monitor: Monitor, clock: Clock) -> None:
    def suspended(calls: Dict[str, Callable[[], Any]], timeout: float, meanwhile: Any = None) -> Dict[str, Any]:
        clock.now += 60.0
        return dict.fromkeys(calls, {})
    monitor.run_together, monitor.client, monitor.known.taking_over = suspended, FakeClient(), True

    result = monitor.call({'tables': lambda client: {}})['tables']

    assert isinstance(result, NoAnswer)
    assert not monitor.known.taking_over


class FakeClient:
    def close(self) -> None:
        pass


@pytest.mark.parametrize('age, starts', [(5.0, True), (30.0, False)])
def test_a_start_that_a_suspension_has_delayed_is_not_made(
        monitor: Monitor, clock: Clock, age: float, starts: bool) -> None:
    made: List[str] = []

    def run_together(calls: Dict[str, Callable[[], Any]], timeout: float, meanwhile: Any = None) -> Dict[str, Any]:
        made.extend(calls)
        return dict.fromkeys(calls, {})
    monitor.run_together, monitor.client, monitor.known.asked_at = run_together, FakeClient(), clock.now - age

    monitor.start()

    assert made == [TABLE] + ['started'] * starts


@pytest.mark.parametrize('results, made', [
    ([refusal(), {}], 2), ([refusal(), refusal()], 2), ([{}], 1), ([NoAnswer('no answer')], 1)])
def test_what_ec2_refuses_is_tried_again_at_once_and_a_lost_answer_is_not(
        monitor: Monitor, results: List[Any], made: int) -> None:
    calls_made: List[str] = []

    def run_together(calls: Dict[str, Callable[[], Any]], timeout: float, meanwhile: Any = None) -> Dict[str, Any]:
        calls_made.extend(calls)
        return {name: results[len(calls_made) - 1] for name in calls}
    monitor.run_together, monitor.client = run_together, FakeClient()
    monitor.known.taking_over, monitor.known.holders = True, {TABLE: PEER}

    monitor.go_on()

    assert calls_made == [TABLE] * made


@pytest.mark.parametrize('changed', [
    {'own_state': 'stopping'}, {'heard': False, 'checks': 'ok'}, {'heard': False, 'checks': 'insufficient-data'}])
def test_a_take_over_is_over_where_nothing_may_be_done(monitor: Monitor, changed: Any) -> None:
    monitor.known = Situation(**{'own_state': 'running', 'peer_state': 'running', 'heard': True, 'taking_over': True,
                                 'holders': {TABLE: SELF}, **changed})

    monitor.judge()

    assert not monitor.known.taking_over


@pytest.mark.parametrize('forwards, states', [(False, {OWN: ('running', 'ok')}), (True, NoAnswer('no answer'))])
def test_a_split_that_may_not_be_claimed_now_is_looked_at_again_soon(
        monitor: Monitor, clock: Clock, forwards: bool, states: Any) -> None:
    answers = {'tables': {TABLE: NOBODY}, 'states': states}
    monitor.run_together = lambda calls, timeout, meanwhile=None: {name: answers.get(name, {}) for name in calls}
    monitor.client, monitor.forwards, monitor.known.primary = FakeClient(), lambda: forwards, True
    monitor.look_at = clock.now

    monitor.look()

    assert monitor.look_at == clock.now + LOOK_AFTER_CHANGE
