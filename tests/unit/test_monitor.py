"""Steps of the monitor that no row of a table shows, with scripted pings and a scripted EC2."""
from __future__ import annotations

import math
from typing import Any, Callable, Dict, List

import pytest
from botocore.exceptions import ClientError

from nat_monitor import (LOOK_AFTER_CHANGE, NOBODY, PEER, SELF, SOON, Monitor, NoAnswer, OwnFault, Settings,
                         Situation)

OWN, PEER_ID, TABLE = 'i-0fedcba9876543210', 'i-0123456789abcdef0', 'rtb-0123456789abcdef0'
ADDRESS = '198.51.100.7'


class Clock:
    """A clock that stands still; a process that is suspended finds that it has jumped."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def refusal() -> ClientError:
    return ClientError({'Error': {'Code': 'RequestLimitExceeded', 'Message': ''}}, 'ReplaceRoute')


class Ec2:
    """The door to EC2, and its client: answers by the name of a call, in order, then with {}."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.takes = clock, 0.0
        self.calls: List[str] = []
        self.closed_after: List[str] = []
        self.answers: Dict[str, List[Any]] = {}

    def run_together(self, calls: Dict[str, Callable[[], Any]], timeout: float, meanwhile: Any = None
                     ) -> Dict[str, Any]:
        self.calls.extend(calls)
        self.clock.now += self.takes
        return {name: self.answers[name].pop(0) if self.answers.get(name) else {} for name in calls}

    def close(self) -> None:
        self.closed_after = list(self.calls)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ec2(clock: Clock) -> Ec2:
    return Ec2(clock)


@pytest.fixture
def monitor(clock: Clock, ec2: Ec2) -> Monitor:
    """Return the monitor of a secondary that knows its peer."""
    monitor = Monitor(Settings(PEER_ID, OWN, (TABLE,)), clock=clock, run_together=ec2.run_together)
    monitor.client = ec2
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


def test_results_that_a_suspension_has_delayed_are_no_answers(monitor: Monitor, ec2: Ec2) -> None:
    ec2.takes, monitor.known.taking_over = 60.0, True

    result = monitor.call({'tables': lambda client: {}})['tables']

    assert isinstance(result, NoAnswer)
    assert not monitor.known.taking_over


@pytest.mark.parametrize('age, starts', [(5.0, True), (30.0, False)])
def test_a_start_that_a_suspension_has_delayed_is_not_made(
        monitor: Monitor, clock: Clock, ec2: Ec2, age: float, starts: bool) -> None:
    monitor.known.asked_at = clock.now - age

    monitor.start()

    assert ec2.calls == [TABLE] + ['started'] * starts


def test_a_stop_that_is_forced_counts_as_no_further_one(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    monitor.stop(force=False)
    clock.now += 60.0
    monitor.stop(force=True)

    assert (monitor.known.stops, monitor.known.stopping_at) == ([clock.now - 60.0], clock.now)


def taking_over(monitor: Monitor) -> None:
    """Let the monitor have decided to take over the table and the address, and know their holder."""
    monitor.settings = Settings(PEER_ID, OWN, (TABLE,), ADDRESS)
    monitor.allocation_id, monitor.known.heard = 'eipalloc-0123456789abcdef0', True
    monitor.known.taking_over, monitor.known.holders = True, {TABLE: PEER, ADDRESS: PEER}


@pytest.mark.parametrize('tables, calls', [
    ([{}], [TABLE, ADDRESS]),
    ([refusal(), {}], [TABLE, ADDRESS, TABLE]),
    ([refusal(), refusal()], [TABLE, ADDRESS, TABLE]),
    ([NoAnswer('no answer')], [TABLE]),  # where it is must be asked first, and so must whether the peer is dead
])
def test_what_ec2_refuses_is_tried_again_at_once_and_without_an_answer_nothing_is(
        monitor: Monitor, ec2: Ec2, tables: List[Any], calls: List[str]) -> None:
    taking_over(monitor)
    ec2.answers[TABLE] = tables

    monitor.go_on()

    assert ec2.calls == calls
    assert monitor.known.taking_over is (calls != [TABLE])


def test_what_ec2_goes_on_to_refuse_is_tried_again_with_the_next_judgement_only(monitor: Monitor, ec2: Ec2) -> None:
    taking_over(monitor)
    ec2.answers[TABLE] = [refusal()] * 9
    monitor.go_on()
    ec2.calls.clear()

    monitor.go_on()

    assert ec2.calls == [TABLE]


def test_connections_are_dropped_after_the_address_has_moved(monitor: Monitor, ec2: Ec2) -> None:
    taking_over(monitor)

    monitor.go_on()

    assert ec2.closed_after == ec2.calls == [TABLE, ADDRESS]


@pytest.mark.parametrize('changed', [
    {'own_state': 'stopping'}, {'heard': False, 'checks': 'ok'}, {'heard': False, 'checks': 'insufficient-data'}])
def test_a_take_over_is_over_where_nothing_may_be_done(monitor: Monitor, changed: Any) -> None:
    monitor.known = Situation(**{'own_state': 'running', 'peer_state': 'running', 'heard': True, 'taking_over': True,
                                 'holders': {TABLE: SELF}, **changed})

    monitor.judge()

    assert not monitor.known.taking_over


def test_a_look_during_a_take_over_asks_nothing(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    monitor.known.taking_over = True

    monitor.look()

    assert ec2.calls == []
    assert monitor.look_at == clock.now + LOOK_AFTER_CHANGE


@pytest.mark.parametrize('starting, again', [(False, LOOK_AFTER_CHANGE), (True, SOON)])
@pytest.mark.parametrize('forwards, states', [(False, {OWN: ('running', 'ok')}), (True, NoAnswer('no answer'))])
def test_what_may_not_be_claimed_now_is_looked_at_again_soon(
        monitor: Monitor, clock: Clock, ec2: Ec2, forwards: bool, states: Any, starting: bool, again: float) -> None:
    ec2.answers.update(tables=[{TABLE: NOBODY}] * 2, states=[states] * 2)
    monitor.forwards, monitor.known.primary, monitor.known.starting = lambda: forwards, True, starting
    monitor.look_at = clock.now

    monitor.look()

    assert again <= monitor.look_at - clock.now <= 2 * again
    assert TABLE not in ec2.calls


def test_the_secondary_claims_what_lies_apart_if_a_second_look_agrees(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    ec2.answers.update(tables=[{TABLE: NOBODY}] * 3, states=[{OWN: ('running', 'ok')}] * 3)
    monitor.forwards, monitor.look_at = lambda: True, clock.now

    monitor.look()
    assert TABLE not in ec2.calls

    monitor.look()
    assert TABLE in ec2.calls


def test_a_claim_at_the_start_is_given_up_when_the_peer_has_taken_back(
        monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    taking_over(monitor)
    ec2.answers.update(tables=[{TABLE: PEER}], address=[(PEER, '')], states=[{OWN: ('running', 'ok')}])
    monitor.known = Situation(primary=True, starting=True, moved={TABLE}, claimed_at=clock.now - 10.0)
    monitor.forwards, monitor.look_at = lambda: True, clock.now

    monitor.look()

    assert (monitor.known.starting, monitor.known.remembered) == (False, PEER)
    assert not {TABLE, ADDRESS} & set(ec2.calls)


def test_the_first_look_of_a_primary_claims_whatever_it_sees(monitor: Monitor, ec2: Ec2) -> None:
    """A read may lag behind the take-over that the peer has just made."""
    ec2.answers.update(tables=[{TABLE: SELF}], states=[{OWN: ('running', 'ok')}])
    monitor.known = Situation(primary=True, starting=True)
    monitor.forwards = lambda: True

    monitor.look()

    assert TABLE in ec2.calls


def test_a_part_whose_answer_was_lost_counts_as_moved_when_it_is_seen_here(monitor: Monitor, ec2: Ec2) -> None:
    taking_over(monitor)
    ec2.answers.update({TABLE: [NoAnswer('no answer')], 'tables': [{TABLE: SELF}], 'address': [(PEER, '')]})
    monitor.go_on()
    assert monitor.known.moved == set()

    monitor.ask(states=False)

    assert monitor.known.moved == {TABLE}
