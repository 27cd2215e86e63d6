"""Steps of the monitor that no row of a table shows, with scripted pings and a scripted EC2."""
from __future__ import annotations

import dataclasses
import math
import random
from typing import Any, Callable, Dict, List

import pytest
from botocore.exceptions import ClientError

from nat_monitor import (ABSENT, LOOK_AFTER_CHANGE, NOBODY, OTHER, PEER, SELF, SOON, Monitor, NoAnswer, OwnFault,
                         Settings, Situation)

OWN, PEER_ID, TABLE = 'i-0fedcba9876543210', 'i-0123456789abcdef0', 'rtb-0123456789abcdef0'
OTHER_TABLE, ADDRESS = 'rtb-0123456789abcdef1', '198.51.100.7'


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
    ([refusal(), {}], [TABLE, TABLE, ADDRESS]),
    ([refusal(), refusal()], [TABLE, TABLE]),  # alone the address would part from the route
    ([NoAnswer('no answer')], [TABLE]),  # where it is must be asked first, and so must whether the peer is dead
])
def test_what_ec2_refuses_is_tried_again_at_once_and_without_an_answer_nothing_is(
        monitor: Monitor, ec2: Ec2, tables: List[Any], calls: List[str]) -> None:
    taking_over(monitor)
    ec2.answers[TABLE] = tables

    monitor.go_on()

    assert ec2.calls == calls
    assert monitor.known.taking_over is (calls != [TABLE])


@pytest.mark.parametrize('begun, calls', [(True, [OTHER_TABLE, ADDRESS]), (False, [OTHER_TABLE])])
def test_the_address_comes_without_a_route_that_is_refused_only_in_a_take_over_that_has_moved_another(
        monitor: Monitor, ec2: Ec2, begun: bool, calls: List[str]) -> None:
    """Two that live would take it from each other for as long as the route is refused to both."""
    taking_over(monitor)
    monitor.known.taking_over, monitor.known.holders = begun, {TABLE: SELF, OTHER_TABLE: PEER, ADDRESS: PEER}
    ec2.answers[OTHER_TABLE] = [refusal()]

    monitor.claim([OTHER_TABLE, ADDRESS])

    assert ec2.calls == calls


def test_no_address_is_moved_while_ec2_does_not_answer(monitor: Monitor, ec2: Ec2) -> None:
    taking_over(monitor)
    monitor.known.holders = {TABLE: SELF, OTHER_TABLE: PEER, ADDRESS: PEER}
    ec2.answers[OTHER_TABLE] = [NoAnswer('no answer')]

    monitor.claim([OTHER_TABLE, ADDRESS])

    assert ec2.calls == [OTHER_TABLE]


def test_a_table_whose_answer_was_lost_is_not_tried_again_at_once(monitor: Monitor, ec2: Ec2) -> None:
    taking_over(monitor)
    monitor.settings = Settings(PEER_ID, OWN, (TABLE, OTHER_TABLE), ADDRESS)
    monitor.known.holders = {TABLE: PEER, OTHER_TABLE: PEER, ADDRESS: PEER}
    ec2.answers.update({TABLE: [refusal()], OTHER_TABLE: [NoAnswer('no answer')]})

    monitor.go_on()

    assert ec2.calls == [TABLE, OTHER_TABLE, TABLE, ADDRESS]


@pytest.mark.parametrize('table, since', [(OTHER, 0.0), (PEER, 0.0), (SELF, math.inf)])
def test_the_peer_serves_since_it_was_first_seen_with_a_table_or_with_all_there_is(
        monitor: Monitor, clock: Clock, ec2: Ec2, table: str, since: float) -> None:
    taking_over(monitor)
    ec2.answers.update(tables=[{TABLE: table}], address=[(PEER, '')])

    monitor.ask(states=False)

    assert monitor.known.kept_at == clock.now + since


def test_an_answer_ends_standing_aside(monitor: Monitor) -> None:
    monitor.aside, monitor.ping = True, script(True)

    monitor.ping_once()

    assert not monitor.aside


def test_the_log_tells_when_the_parts_are_together_again(
        monitor: Monitor, clock: Clock, ec2: Ec2, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level('INFO')
    ec2.answers.update(tables=[{TABLE: NOBODY}] * 2 + [{TABLE: SELF}], states=[{OWN: ('running', 'ok')}] * 2)
    monitor.forwards, monitor.split_seen, monitor.look_at = lambda: True, True, clock.now
    monitor.look()

    clock.now += LOOK_AFTER_CHANGE
    monitor.look()

    assert f'over after 15 s: {TABLE} not at {OWN}, unlike the rest, or nowhere' in caplog.text


def test_who_held_before_a_silence_is_not_forgotten_in_it(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    """A primary whose take-over was taken back stands aside next, though it has begun to count misses anew."""
    ec2.answers['tables'] = [{TABLE: PEER}]
    monitor.known = Situation(primary=True, own_state='running', peer_state='running', heard=True, taking_over=True,
                              moved={TABLE}, holders={TABLE: PEER}, seen_at=clock.now)
    monitor.misses = monitor.silence = 6
    monitor.judge()
    assert not monitor.known.taking_over
    monitor.look_at = clock.now

    monitor.look()

    assert monitor.known.remembered == SELF


def test_what_ec2_goes_on_to_refuse_is_tried_again_with_the_next_judgement_only(monitor: Monitor, ec2: Ec2) -> None:
    taking_over(monitor)
    ec2.answers[TABLE] = [refusal()] * 9
    monitor.go_on()
    ec2.calls.clear()

    monitor.go_on()

    assert ec2.calls == [TABLE]


@pytest.mark.parametrize('state, step', [('running', 'stopped'), ('stopped', 'started')])
def test_a_refused_step_of_a_restart_holds_up_no_claim(
        monitor: Monitor, clock: Clock, ec2: Ec2, state: str, step: str) -> None:
    taking_over(monitor)
    monitor.known = dataclasses.replace(monitor.known, primary=True, own_state='running', peer_state=state, checks='ok',
                                        holders={TABLE: SELF, ADDRESS: PEER}, moved={TABLE},
                                        claimed_at=clock.now - 10.0)
    known = monitor.known
    ec2.answers.update({step: [refusal()] * 9, ADDRESS: [refusal()] * 9})
    known.asked_at = known.seen_at = clock.now
    monitor.judge()
    assert ec2.calls == [step]
    assert monitor.judge_at == clock.now + SOON

    clock.now = known.asked_at = known.seen_at = monitor.judge_at
    monitor.chance = random.Random(1)
    monitor.judge()
    assert set(ec2.calls[1:]) == {ADDRESS}
    assert monitor.judge_at <= clock.now + SOON

    clock.now = known.asked_at = known.seen_at = monitor.step_at
    monitor.judge()
    assert ec2.calls[-1] == step


def test_a_refused_stop_is_not_asked_about_before_it_is_tried_again(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    monitor.known = Situation(own_state='running', peer_state='running', checks='ok', heard=True, taking_over=True,
                              holders={TABLE: SELF}, seen_at=clock.now)
    ec2.answers['stopped'] = [refusal()]

    monitor.judge()

    assert ec2.calls == ['stopped']
    assert monitor.judge_at == monitor.step_at >= clock.now + SOON


def test_a_table_that_does_not_exist_is_not_claimed_before_a_start(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    taking_over(monitor)
    monitor.known.holders, monitor.known.asked_at = {TABLE: ABSENT, ADDRESS: SELF}, clock.now

    monitor.start()

    assert ec2.calls == [ADDRESS, 'started']


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


@pytest.mark.parametrize('holder, again', [(SELF, LOOK_AFTER_CHANGE), (PEER, SOON)])
@pytest.mark.parametrize('changed', [
    {'judge_at': 995.1}, {'asked_at': 999.0, 'replied': False}, {'troubles': {'EC2': ()}}])
def test_a_look_during_a_take_over_asks_nothing_as_each_judgement_does(
        monitor: Monitor, clock: Clock, ec2: Ec2, changed: Dict[str, Any], holder: str, again: float) -> None:
    monitor.known.taking_over, monitor.known.holders, monitor.judge_at = True, {TABLE: holder}, 0.0
    for name, value in changed.items():
        setattr(monitor.known if name == 'asked_at' else monitor, name, value)

    monitor.look()

    assert ec2.calls == []
    assert monitor.look_at == clock.now + again


@pytest.mark.parametrize('misses, moved, claims', [(3, set(), True), (0, {ADDRESS}, True), (0, set(), False)])
def test_a_look_goes_on_with_a_take_over_when_no_judgement_comes(
        monitor: Monitor, clock: Clock, ec2: Ec2, misses: int, moved: Any, claims: bool) -> None:
    """EC2 does not tell the states, or no ping can leave this host; then who has begun only finishes."""
    taking_over(monitor)
    ec2.answers.update(tables=[{TABLE: PEER}], address=[(SELF if moved else PEER, '')])
    monitor.judge_at, monitor.misses, monitor.known.moved = clock.now - SOON, misses, moved

    monitor.look()

    assert (TABLE in ec2.calls) is claims


def test_a_look_gives_up_no_less_than_a_judgement(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    taking_over(monitor)
    ec2.answers.update(tables=[{TABLE: PEER}], address=[(PEER, '')])
    monitor.judge_at, monitor.misses, monitor.known.moved = clock.now - SOON, 3, {TABLE}
    monitor.known.claimed_at = clock.now - 10.0

    monitor.look()

    assert TABLE not in ec2.calls


def test_a_take_over_that_has_moved_nothing_is_over_when_the_peer_answers(monitor: Monitor, clock: Clock) -> None:
    taking_over(monitor)
    monitor.ping, monitor.look_at = script(True), clock.now + 15.0

    monitor.ping_once()

    assert not monitor.known.taking_over and not monitor.split_seen
    assert monitor.look_at == clock.now + 15.0


def test_a_take_over_that_is_half_done_when_the_peer_answers_is_finished_at_once(
        monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    taking_over(monitor)
    ec2.answers.update(tables=[{TABLE: SELF}] * 2, address=[(PEER, '')] * 2, states=[{OWN: ('running', 'ok')}])
    monitor.known.moved, monitor.known.holders = {TABLE}, {TABLE: SELF, ADDRESS: PEER}
    monitor.forwards, monitor.ping, monitor.look_at = lambda: True, script(True), clock.now + 15.0
    monitor.ping_once()
    assert not monitor.known.taking_over
    assert monitor.look_at == clock.now

    monitor.look()

    assert ec2.calls[-1] == ADDRESS


def test_what_a_look_could_not_claim_is_tried_again_soon(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    ec2.answers.update({TABLE: [refusal()], 'tables': [{TABLE: NOBODY}] * 4, 'states': [{OWN: ('running', 'ok')}] * 2})
    monitor.forwards, monitor.split_seen, monitor.look_at = lambda: True, True, clock.now

    monitor.look()
    assert monitor.look_at == clock.now + SOON

    monitor.look()
    assert ec2.calls.count(TABLE) == 2


def test_the_end_of_a_silence_ends_a_long_wait_for_the_next_judgement(monitor: Monitor, clock: Clock) -> None:
    monitor.left_stopped, monitor.silence, monitor.judge_at = True, 3, clock.now + 60.0
    monitor.ping = script(True)

    monitor.ping_once()

    assert monitor.judge_at < clock.now


def test_a_take_over_takes_the_place_of_the_claim_at_the_start(monitor: Monitor, ec2: Ec2) -> None:
    """That claim takes from whoever has a part, and what it has taken is not this one's."""
    taking_over(monitor)
    monitor.known = Situation(primary=True, starting=True, own_state='running', peer_state='stopping', remembered=PEER,
                              holders={TABLE: OTHER, ADDRESS: PEER}, foreign={TABLE}, heard=True)
    monitor.forwards = lambda: True

    monitor.judge()

    assert ec2.calls == [ADDRESS]


def test_a_claim_at_the_start_that_ec2_refuses_is_tried_again_at_once_the_first_time(
        monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    ec2.answers.update({TABLE: [refusal()] * 2, 'tables': [{TABLE: PEER}] * 9,
                        'states': [{OWN: ('running', 'ok')}] * 9})
    monitor.known, monitor.forwards = Situation(primary=True, starting=True), lambda: True

    monitor.look()
    assert monitor.look_at == clock.now

    monitor.chance = random.Random(1)
    monitor.look()
    assert clock.now < monitor.look_at < clock.now + SOON


@pytest.mark.parametrize('moved, warns', [({TABLE}, True), (set(), False)])
def test_a_primary_that_still_claims_warns_only_of_what_it_will_not_claim(
        monitor: Monitor, ec2: Ec2, caplog: pytest.LogCaptureFixture, moved: Any, warns: bool) -> None:
    ec2.answers['tables'] = [{TABLE: OTHER}]
    monitor.known = Situation(primary=True, starting=True, moved=moved)

    monitor.ask(states=False)

    assert ('outside the pair' in caplog.text) is warns
    assert monitor.known.foreign == {TABLE}


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


def test_what_the_peer_has_is_claimed_only_if_a_part_is_here(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    """Two that live, and may not move the address that nobody has, would take the table from each other for ever."""
    taking_over(monitor)
    monitor.known = Situation(own_state='running')
    ec2.answers.update({'tables': [{TABLE: PEER}] * 4, 'address': [(NOBODY, '')] * 2 + [(SELF, '')] * 2,
                        'states': [{OWN: ('running', 'ok')}] * 2})
    monitor.forwards, monitor.split_seen, monitor.look_at = lambda: True, True, clock.now

    monitor.look()
    assert ec2.calls[-1] == ADDRESS and TABLE not in ec2.calls
    assert monitor.look_at == clock.now + SOON

    clock.now += SOON
    monitor.look()
    assert ec2.calls[-1] == TABLE


@pytest.mark.parametrize('aside', [True, False])
def test_a_primary_that_stands_aside_claims_nothing_by_a_look_either(
        monitor: Monitor, clock: Clock, ec2: Ec2, aside: bool) -> None:
    taking_over(monitor)
    monitor.known = Situation(primary=True, heard=True, remembered=SELF, own_state='running', peer_state='running',
                              holders={TABLE: PEER, ADDRESS: SELF}, kept_at=clock.now)
    monitor.forwards = lambda: True
    if aside:
        monitor.judge()
    ec2.answers.update(tables=[{TABLE: PEER}] * 2, address=[(SELF, '')] * 2, states=[{OWN: ('running', 'ok')}])
    monitor.look_at = clock.now

    monitor.look()

    assert (TABLE in ec2.calls) is not aside


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


def test_a_claim_of_long_ago_does_not_count_as_this_one(monitor: Monitor, clock: Clock, ec2: Ec2) -> None:
    taking_over(monitor)
    ec2.answers.update({TABLE: [refusal()], 'tables': [{TABLE: PEER}], 'address': [(NOBODY, '')]})
    monitor.known = Situation(primary=True, moved={TABLE, ADDRESS}, claimed_at=clock.now - 1000.0, remembered=PEER,
                              own_state='running', asked_at=clock.now)
    monitor.forwards, monitor.look_at = lambda: True, clock.now

    monitor.look()

    assert (monitor.known.moved, monitor.known.remembered) == ({ADDRESS}, PEER)


def test_what_a_take_over_needs_is_learned_though_another_question_fails(monitor: Monitor, ec2: Ec2) -> None:
    taking_over(monitor)
    monitor.allocation_id = ''
    ec2.answers.update(tables=[refusal()], address=[(PEER, 'eipalloc-1')])

    monitor.ask(states=False)

    assert (monitor.known.holders, monitor.allocation_id) == (None, 'eipalloc-1')


def test_a_part_whose_answer_was_lost_counts_as_moved_when_it_is_seen_here(monitor: Monitor, ec2: Ec2) -> None:
    taking_over(monitor)
    ec2.answers.update({TABLE: [NoAnswer('no answer')], 'tables': [{TABLE: SELF}], 'address': [(PEER, '')]})
    monitor.go_on()
    assert monitor.known.moved == set()

    monitor.ask(states=False)

    assert monitor.known.moved == {TABLE}
