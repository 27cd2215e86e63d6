"""The judgement: each row of README.adoc, "What the monitor does", and what a monitor remembers for it.

A story tells what a monitor has been through, in the order of time, in seconds before now.
"""
from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, Optional, Tuple, Union

import pytest

from nat_monitor import (ABSENT, CLAIM_RETRY, FORCE, LATER, LOOK_AFTER_CHANGE, LOOK_INTERVAL, NOBODY, OTHER, PEER, SELF,
                         SOON, START, STOP, UNKNOWN, Decision, Memory, Observation, Settings, Step, decide)

NOW = 100000.0
TABLE, ADDRESS = 'rtb-0123456789abcdef0', '198.51.100.7'
BOTH = (TABLE, ADDRESS)
HOUR = 3600.0
SETTINGS = Settings('i-0123456789abcdef0', 'i-0fedcba9876543210', (TABLE,), ADDRESS)
WELL = {'own_state': 'running', 'own_checks': 'ok', 'peer_state': 'running', 'peer_checks': 'ok'}
ERROR = {'peer_state': '', 'peer_checks': '', 'error': 'Unavailable'}
Holders = Union[str, Tuple[str, str]]  # of both parts, or of the table and of the address


class Story:
    def __init__(self, primary: bool = False, **changed: Any) -> None:
        self.settings = dataclasses.replace(SETTINGS, **changed)
        self.memory = Memory(primary)

    def starts(self) -> Story:
        self.memory.owe(self.settings)
        return self

    def sees(self, ago: float, holders: Holders, **told: Any) -> Story:
        by_part = dict(zip(BOTH, (holders, holders) if isinstance(holders, str) else holders))
        self.seen = Observation(**{'asked_at': NOW - ago, 'holders': by_part, **WELL, **told})
        self.memory.note(self.seen, self.settings)
        return self

    def watches(self, since: float, holders: Holders, until: float = 0.0, **told: Any) -> Story:
        while since > until:
            self.sees(since, holders, **told)
            since -= 10.0
        return self.sees(until, holders, **told)

    def hears(self, ago: float) -> Story:
        self.memory.note_answer(NOW - ago, self.settings)
        return self

    def misses(self, ago: float) -> Story:
        self.memory.note_silence(NOW - ago)
        return self

    def claims(self, ago: float, *parts: str) -> Story:
        for part in parts or BOTH:
            self.memory.note_here(part, NOW - ago)
        return self

    def is_refused(self, times: int, pause: float = 0.0, ago: float = 0.0) -> Story:
        for _ in range(times):
            self.memory.note_refusal(pause, NOW - ago)
        return self

    def asks_for(self, step: str, *ago: float, accepted: bool = True, refused: bool = False) -> Story:
        for each in ago:
            self.memory.note_step(Step(step, NOW - each, refused), accepted)
        return self

    def probes(self, ago: float, through: Optional[bool], own_way: bool = False) -> Story:
        self.memory.note_probe(through, own_way, NOW - ago)
        return self

    def judged(self) -> Decision:
        return decide(self.memory, self.seen, self.settings, NOW)


def fell_silent(since: float = 10.0, holders: Holders = PEER, primary: bool = False, until: float = 0.0,
                **told: Any) -> Story:
    """Let a monitor's peer, which ran and answered, have fallen silent; it has watched before and since."""
    watching = Story(primary).watches(since + 100.0, holders, until=since + 1.0).hears(since + 0.5).misses(since)
    return watching.watches(since - 1.0, holders, until, **told)


def never_answered(holders: Holders = PEER, since: float = 600.0, primary: bool = False, **told: Any) -> Story:
    """Let a peer have been started, and be silent since then."""
    starting = Story(primary).sees(since, holders, peer_state='pending').misses(since - 1.0)
    return starting.watches(200.0, holders, **told)


def test_the_rows_stand_in_the_order_of_their_numbers() -> None:
    code = inspect.getsource(decide)

    numbers = [int(number) for number in re.findall(r'\n    # (\d+)\n', code)]
    assert numbers == list(range(1, 19))
    assert all('return' in row for row in re.split(r'\n    # \d+\n', code)[1:])


@pytest.mark.parametrize('state', ['stopping', 'stopped', 'pending', 'shutting-down', 'terminated', 'gone'])
@pytest.mark.parametrize('told', [{}, {'peer_state': 'stopped'}, {'peer_maintenance': True}])
def test_row_1_an_instance_that_does_not_run_in_ec2s_eyes_does_nothing(state: str, told: Any) -> None:
    decision = fell_silent(own_state=state, **told).judged()

    assert (decision.claims, decision.step, decision.again) == ((), '', SOON)
    assert f'{{self}} is called {state} by EC2' in decision.why


@pytest.mark.parametrize('silence', [True, False])
def test_row_2_a_peer_under_maintenance_is_relieved_and_never_restarted(silence: bool) -> None:
    story = fell_silent(peer_maintenance=True) if silence else Story().hears(5.0).sees(0.0, PEER, peer_maintenance=True)

    assert story.judged()[1:4] == (SOON, BOTH, '')
    decision = fell_silent(900.0, SELF, peer_maintenance=True, peer_state='stopped').judged()
    assert decision[1:4] == (LOOK_INTERVAL, (), '')
    assert 'maintenance' in decision.why


def test_row_2_a_tag_seen_before_it_is_clear_who_holds_is_looked_at_again_soon() -> None:
    """EC2 tells that the peer has what has come here a moment ago."""
    story = Story().hears(9.0).claims(8.0).hears(1.0).sees(0.0, PEER, peer_maintenance=True)
    assert story.judged()[1:4] == (SOON, (), '')


def test_row_2_what_has_come_here_is_not_taken_again_where_ec2_does_not_tell_who_holds() -> None:
    story = Story().hears(90.0).sees(80.0, UNKNOWN, peer_maintenance=True)
    assert story.judged().claims == BOTH

    assert story.claims(70.0).sees(0.0, UNKNOWN, peer_maintenance=True).judged().claims == ()


def test_row_2_who_is_under_maintenance_too_takes_nothing() -> None:
    assert fell_silent(peer_maintenance=True, own_maintenance=True).judged()[1:4] == (LOOK_INTERVAL, (), '')


def test_row_3_who_is_under_maintenance_claims_nothing() -> None:
    decision = Story(primary=True).starts().hears(5.0).sees(0.0, NOBODY, own_maintenance=True).judged()

    assert decision[1:4] == (LOOK_INTERVAL, (), '')
    assert 'maintenance' in decision.why


def test_row_3_who_is_under_maintenance_takes_over_from_a_silent_peer() -> None:
    assert fell_silent(own_maintenance=True).judged().claims == BOTH


@pytest.mark.parametrize('fail_back, claims', [(True, BOTH), (False, ())])
def test_a_primary_whose_maintenance_is_over_starts_anew(fail_back: bool, claims: Any) -> None:
    story = Story(primary=True, fail_back=fail_back).hears(90.0).sees(80.0, PEER, own_maintenance=True).sees(0.0, PEER)

    assert story.judged().claims == claims


# Row 4

def deaf_to_probes(misses: int = 3, well: float = 300.0, changed: float = 400.0, own_way: bool = True) -> Story:
    """Let a peer that answers pings, and let a probe through before, let none through any more."""
    story = Story().sees(changed + 20.0, SELF).hears(changed).sees(changed, PEER).probes(well, True)
    for _ in range(misses - 1):
        story.probes(20.0, False)
    return story.sees(2.0, PEER).probes(1.0, False, own_way)


def test_row_4_a_peer_that_lets_no_probe_through_is_relieved_and_not_restarted() -> None:
    decision = deaf_to_probes().judged()

    assert decision[1:] == (SOON, BOTH, '', True)
    assert 'lost 3 probes in a row' in decision.why and ' and '.join(BOTH) in decision.why


@pytest.mark.parametrize('story', [
    deaf_to_probes(misses=2),
    deaf_to_probes(own_way=False),
    deaf_to_probes(well=401.0),                         # never since the heir changed
    deaf_to_probes().sees(0.0, PEER),                   # the deciding probe was sent before EC2 was asked
    deaf_to_probes().sees(2.0, PEER, nat_fault='net.ipv4.ip_forward is 0'),
    deaf_to_probes().sees(2.0, SELF),
    deaf_to_probes().is_refused(1, 60.0),
    deaf_to_probes().probes(1.0, True),
    deaf_to_probes().asks_for(STOP, 100.0).hears(50.0),  # never since the peer was restarted
], ids=range(9))
def test_row_4_needs_every_one_of_its_reasons(story: Story) -> None:
    assert (story.judged().claims, story.judged().relief) == ((), False)


@pytest.mark.parametrize('primary', [True, False])
@pytest.mark.parametrize('holders, taken', [(PEER, BOTH), ((PEER, SELF), (TABLE,)), ((SELF, PEER), (ADDRESS,)),
                                            ((OTHER, PEER), (ADDRESS,))])
def test_row_4_a_peer_whose_source_check_is_on_is_relieved_as_often_as_it_is(primary: bool, holders: Holders,
                                                                             taken: Any) -> None:
    story = Story(primary).sees(100.0, holders).hears(1.0)
    story.memory.reliefs = [NOW - 60.0]

    decision = story.sees(0.0, holders, peer_source_check=True).judged()

    assert decision[1:] == (SOON, taken, '', False)
    assert 'restarting nobody' in decision.why


@pytest.mark.parametrize('story', [
    Story().sees(0.0, SELF, peer_source_check=True),
    Story().sees(0.0, (SELF, OTHER), peer_source_check=True),
    Story().sees(0.0, PEER, peer_source_check=True, nat_fault='its own check is on, too'),
    Story().sees(0.0, PEER, peer_source_check=True, own_checks='impaired'),
    Story().sees(0.0, PEER, peer_source_check=True, own_maintenance=True),
    Story().sees(0.0, PEER, peer_source_check=True).is_refused(1, 60.0)], ids=range(6))
def test_row_4_nothing_is_taken_for_a_source_check_by_who_may_not_or_need_not(story: Story) -> None:
    assert story.hears(1.0).judged().claims == ()


def test_a_source_check_changes_nothing_for_a_silent_peer() -> None:
    told = fell_silent(200.0, SELF).sees(0.0, SELF, peer_source_check=True).judged()

    assert told == fell_silent(200.0, SELF).judged()


def test_row_4_a_peer_that_falls_silent_meanwhile_is_judged_as_silent() -> None:
    decision = deaf_to_probes().misses(1.0).judged()

    assert (decision.claims, decision.relief) == (BOTH, False)


def test_row_4_a_probe_that_was_not_sent_is_no_miss() -> None:
    assert deaf_to_probes(misses=2).probes(1.0, None, own_way=True).judged().claims == ()


@pytest.mark.parametrize('reliefs, relieves', [
    ([HOUR - 1.0], False), ([HOUR], True), ([3 * HOUR, 2 * HOUR - 1.0], False), ([3 * HOUR, 2 * HOUR], True)])
def test_row_4_a_peer_is_relieved_once_an_hour_and_then_less_and_less(reliefs: Any, relieves: bool) -> None:
    story = deaf_to_probes()
    story.memory.reliefs = [NOW - each for each in reliefs]

    assert story.judged().relief is relieves


def test_row_4_a_relief_that_moved_nothing_is_tried_again() -> None:
    story = deaf_to_probes()
    story.memory.note_relief(NOW - 60.0)
    assert story.judged().relief

    story.memory.note_relief(NOW - 5.0)
    assert story.memory.reliefs == [NOW - 5.0]  # the first one was none


def test_row_4_a_relief_is_forgotten_after_a_day() -> None:
    story = deaf_to_probes()
    story.memory.reliefs = [NOW - 26 * HOUR, NOW - 25 * HOUR, NOW - 23 * HOUR]
    story.memory.note_relief(NOW)

    assert story.memory.reliefs == [NOW - 23 * HOUR, NOW]


# Row 5: keep together

def at_peace(holders: Holders, since: float, primary: bool = False, **told: Any) -> Story:
    """Let the peer answer, and who holds be so since then."""
    return Story(primary).hears(5.0).sees(since + 1.0, OTHER).watches(since, holders, **told)


@pytest.mark.parametrize('primary, holders', [(True, SELF), (False, PEER), (True, PEER), (False, SELF)])
def test_row_5_while_all_is_well_nothing_is_done_or_said(primary: bool, holders: str) -> None:
    assert at_peace(holders, 500.0, primary).judged() == ('', LOOK_INTERVAL, (), '', False)


@pytest.mark.parametrize('primary, holders, after, claims', [
    (False, (SELF, PEER), 10.0, ADDRESS), (False, (SELF, NOBODY), 10.0, ADDRESS),
    (False, (PEER, SELF), 150.0, TABLE), (False, (NOBODY, SELF), 10.0, TABLE),
    (True, (NOBODY, PEER), 150.0, TABLE), (False, (PEER, NOBODY), 150.0, ADDRESS),
    (True, (NOBODY, NOBODY), 10.0, TABLE + ADDRESS), (False, (NOBODY, NOBODY), 150.0, TABLE + ADDRESS),
    (True, (NOBODY, OTHER), 10.0, TABLE), (True, (ABSENT, NOBODY), 10.0, ADDRESS),
    (True, (OTHER, OTHER), None, ''), (True, (OTHER, PEER), None, ''), (True, (ABSENT, SELF), None, '')])
def test_row_5_the_heir_brings_together_what_is_apart_and_the_other_one_only_if_it_does_not(
        primary: bool, holders: Any, after: Any, claims: str) -> None:
    if after:
        assert at_peace(holders, after - 0.1, primary).judged() == ('', LOOK_AFTER_CHANGE, (), '', False)
    decision = at_peace(holders, after or 500.0, primary).judged()
    assert ''.join(decision.claims) == claims
    assert (decision.again == LOOK_AFTER_CHANGE) is bool(claims)
    assert not claims or decision.why == (
        ' and '.join(decision.claims) + ' not at {self}, unlike the rest, or nowhere: claiming')


@pytest.mark.parametrize('story', [
    at_peace((SELF, NOBODY), 500.0, own_checks='ok', nat_fault='net.ipv4.ip_forward is 0'),
    at_peace((SELF, NOBODY), 500.0).is_refused(1, 1.0),
    at_peace((SELF, NOBODY), 500.0).sees(0.0, (UNKNOWN, NOBODY)),
    at_peace((SELF, NOBODY), 500.0).claims(5.0, TABLE).sees(0.0, (PEER, NOBODY)),  # EC2 contradicts what has come
], ids=range(4))
def test_row_5_nothing_is_claimed_that_should_wait(story: Story) -> None:
    assert story.judged().claims == ()


def test_row_5_who_cannot_nat_looks_again_as_seldom_as_ever() -> None:
    assert at_peace(PEER, 500.0, nat_fault='net.ipv4.ip_forward is 0').judged().again == LOOK_INTERVAL


@pytest.mark.parametrize('holders, claims', [
    (PEER, BOTH), (OTHER, BOTH), (UNKNOWN, BOTH), (NOBODY, BOTH), ((ABSENT, PEER), (ADDRESS,)),
    ((PEER, SELF), (TABLE,)), (SELF, ())])
def test_row_5_a_primary_that_starts_claims_from_whoever_has_it(holders: Holders, claims: Any) -> None:
    decision = Story(primary=True).starts().hears(5.0).sees(0.0, holders).judged()

    assert (decision.claims, decision.step) == (claims, '')
    assert decision.again == (SOON if claims else LOOK_INTERVAL)
    assert not claims or f'is the primary and has started: claiming {" and ".join(claims)}' in decision.why


def test_row_5_it_takes_nothing_from_a_peer_that_it_cannot_ping_yet() -> None:
    """EC2 has not told the peer's address."""
    assert Story(primary=True).starts().sees(0.0, PEER).judged().claims == ()
    assert Story(primary=True).starts().sees(0.0, (PEER, NOBODY)).judged().claims == ()
    assert Story(primary=True).starts().sees(0.0, (OTHER, NOBODY)).judged().claims == BOTH


def test_row_5_it_claims_each_part_until_that_has_come_here_once() -> None:
    story = Story(primary=True).starts().hears(5.0).sees(300.0, PEER).claims(299.0, TABLE)

    assert story.sees(200.0, (OTHER, PEER)).judged().claims == (ADDRESS,)
    assert story.sees(100.0, (OTHER, SELF)).judged().claims == ()
    assert story.sees(0.0, OTHER).judged().claims == ()


def test_row_5_it_claims_nothing_any_more_once_the_peer_has_taken_back() -> None:
    story = Story(primary=True).starts().hears(5.0).sees(300.0, PEER).claims(299.0, TABLE).sees(200.0, (SELF, PEER))

    assert story.sees(100.0, PEER).judged().claims == ()


@pytest.mark.parametrize('primary, fail_back', [(False, True), (True, False)])
def test_row_5_a_secondary_and_a_primary_that_does_not_fail_back_claim_nothing_at_their_start(
        primary: bool, fail_back: bool) -> None:
    assert Story(primary, fail_back=fail_back).starts().hears(5.0).sees(0.0, PEER).judged().claims == ()


@pytest.mark.parametrize('table, address, primary, heir', [
    (SELF, PEER, False, SELF), (PEER, SELF, False, PEER), (SELF, PEER, True, SELF), (PEER, SELF, True, PEER),
    (OTHER, SELF, False, SELF), (NOBODY, PEER, True, PEER), (NOBODY, NOBODY, True, SELF), (OTHER, NOBODY, False, PEER)])
def test_the_heir_has_a_table_else_the_address_else_it_is_the_primary(
        table: str, address: str, primary: bool, heir: str) -> None:
    assert Story(primary).sees(0.0, (table, address)).memory.heir == heir


@pytest.mark.parametrize('primary, heir', [(True, SELF), (False, PEER)])
def test_where_both_have_a_table_both_call_the_primary_heir(primary: bool, heir: str) -> None:
    memory = Memory(primary, holders={TABLE: PEER, 'rtb-1': SELF, ADDRESS: PEER})

    assert (memory.heir, memory.address_may_come) == (heir, heir == SELF)


@pytest.mark.parametrize('holders, may', [
    ((SELF, PEER), True), ((PEER, PEER), False), ((PEER, NOBODY), True), ((OTHER, PEER), True), ((PEER, SELF), False)])
def test_the_address_comes_alone_only_to_the_tables_or_from_nowhere(holders: Any, may: bool) -> None:
    assert Story().sees(0.0, holders).memory.address_may_come is may


# Row 6: stand aside

def robbed(lost: float, held: str = 'long', **told: Any) -> Story:
    """Let the silent peer have what was here, `lost` s after it was last seen here, or came."""
    story = Story().hears(2000.0).misses(1000.0 if held != 'before the silence' else lost - 0.2)
    if held == 'came':
        return story.sees(900.0, PEER).claims(lost).sees(0.0, PEER, **told)
    return story.watches(1100.0, SELF, until=lost).sees(0.0, PEER, **told)


@pytest.mark.parametrize('held, patience', [('before the silence', 60.0), ('long', 300.0), ('came', HOUR + 20.0)])
def test_row_6_who_was_robbed_by_a_silent_peer_stands_aside(held: str, patience: float) -> None:
    if held == 'came':
        story = Story().hears(9000.0).sees(8900.0, PEER).misses(8800.0).claims(patience).sees(patience - 15.0, PEER)
        late, early = story.sees(0.0, PEER), Story().hears(9000.0).sees(8900.0, PEER).misses(8800.0).claims(
            patience - 0.1).sees(patience - 15.0, PEER).sees(0.0, PEER)
    else:
        early, late = robbed(patience - 0.1, held), robbed(patience, held)

    assert early.judged()[1:4] == (SOON, (), '')
    assert 'standing aside' in early.judged().why
    assert late.judged().claims == BOTH


@pytest.mark.parametrize('told, aside', [
    ({}, True), (ERROR, True), ({'peer_checks': 'impaired'}, True), ({'peer_checks': 'initializing'}, True),
    ({'peer_state': 'stopping'}, False), ({'peer_state': 'stopped'}, False)])
def test_row_6_only_for_a_peer_that_may_live(told: Any, aside: bool) -> None:
    assert ('standing aside' in robbed(50.0, **told).judged().why) is aside


@pytest.mark.parametrize('since, aside', [(59.9, True), (60.0, False)])
def test_row_6_checks_that_fail_are_believed_when_they_go_on_to(since: float, aside: bool) -> None:
    story = robbed(100.0).watches(since, PEER, peer_checks='impaired')

    assert ('standing aside' in story.judged().why) is aside


def test_row_6_not_for_a_peer_that_was_down_since_the_part_came_here() -> None:
    story = Story().hears(500.0).sees(400.0, SELF).sees(300.0, SELF, peer_state='stopped').hears(200.0).misses(100.0)

    assert story.sees(50.0, SELF).sees(0.0, PEER).judged().claims == BOTH


def test_row_6_an_answer_shortens_it() -> None:
    assert 'standing aside' in robbed(200.0).hears(59.0).misses(58.0).judged().why
    assert robbed(200.0).hears(60.0).misses(59.0).judged().claims == BOTH
    assert robbed(59.0, 'before the silence').hears(58.0).misses(57.0).judged().claims == ()
    assert robbed(60.0, 'before the silence').hears(30.0).misses(29.0).judged().claims == BOTH


# Row 7: never heard

@pytest.mark.parametrize('checks, since, again, words', [
    ('ok', 50.0, LATER, 'security groups'), ('ok', 600.0, LATER, 'security groups'),
    ('initializing', 299.0, SOON, 'asking again'), ('', 299.0, SOON, 'asking again')])
def test_row_7_a_peer_that_never_answered_and_may_be_well_is_left_alone(
        checks: str, since: float, again: float, words: str) -> None:
    story = Story().sees(since + 2.0, PEER).misses(since).sees(0.0, PEER, peer_checks=checks)

    assert story.judged()[1:4] == (again, (), '')
    assert words in story.judged().why


def test_row_7_checks_that_tell_nothing_do_not_protect_it_for_ever_but_an_error_does() -> None:
    story = Story().sees(302.0, PEER)
    assert story.misses(299.9).sees(0.0, PEER, peer_checks='initializing').judged().claims == ()
    assert story.misses(300.0).judged().claims == BOTH
    assert story.misses(300.0).sees(0.0, PEER, **ERROR).judged().claims == ()
    assert never_answered(since=301.0 + 600, peer_checks='impaired').judged().claims == BOTH


def test_row_7_the_wait_begins_when_the_peer_was_last_down() -> None:
    story = Story().misses(600.0).sees(299.9, PEER, peer_state='pending').sees(
        0.0, PEER, peer_checks='initializing')
    assert story.judged().claims == ()
    story = Story().misses(600.0).sees(300.0, PEER, peer_state='pending').sees(
        0.0, PEER, peer_checks='initializing')
    assert story.judged().claims == BOTH


@pytest.mark.parametrize('holders, claims', [
    (PEER, ()), (UNKNOWN, ()), (NOBODY, BOTH), (OTHER, BOTH), ((SELF, PEER), ())])
def test_row_7_a_primary_takes_nothing_from_such_a_peer_that_it_may_serve_with(holders: Holders, claims: Any) -> None:
    story = Story(primary=True).starts().misses(10.0).sees(9.0, UNKNOWN).sees(0.0, holders)

    decision = story.judged()
    assert decision.claims == claims
    assert decision.again == SOON if claims else decision.again <= LATER


def test_row_7_what_is_nowhere_is_kept_together_there_too() -> None:
    story = Story(primary=True).misses(100.0).watches(90.0, (SELF, NOBODY))

    assert story.judged()[1:4] == (LOOK_AFTER_CHANGE, (ADDRESS,), '')


# Row 8: take over

@pytest.mark.parametrize('told', [
    {}, {'peer_checks': 'impaired'}, ERROR, {'peer_state': 'stopping'}, {'peer_state': 'stopped'},
    {'peer_state': 'pending'}, {'peer_state': 'gone'}, {'own_state': '', 'own_checks': '', **ERROR}])
@pytest.mark.parametrize('primary', [True, False])
def test_row_8_what_a_silent_peer_has_is_taken_over(told: Any, primary: bool) -> None:
    decision = fell_silent(3.0, PEER, primary, **told).judged()

    assert decision[1:4] == (CLAIM_RETRY, BOTH, '')
    assert 'EC2 answered Unavailable' in decision.why or f"calls it {told.get('peer_state', 'running')}" in decision.why
    assert f'taking over {TABLE} and {ADDRESS}' in decision.why


@pytest.mark.parametrize('holders, claims', [
    (NOBODY, BOTH), ((SELF, PEER), (ADDRESS,)), ((OTHER, PEER), (ADDRESS,)), ((PEER, ABSENT), (TABLE,)), (OTHER, ())])
def test_row_8_what_is_here_outside_the_pair_or_absent_is_not(holders: Holders, claims: Any) -> None:
    assert fell_silent(3.0, holders).judged().claims == claims


@pytest.mark.parametrize('told, claims', [
    ({'nat_fault': 'net.ipv4.ip_forward is 0'}, ()), ({'own_checks': 'impaired'}, ()),
    ({'own_checks': 'impaired', 'peer_checks': 'impaired'}, BOTH),
    ({'own_checks': 'impaired', 'peer_checks': 'initializing'}, BOTH)])
def test_row_8_who_could_serve_no_better_claims_nothing(told: Any, claims: Any) -> None:
    assert fell_silent(3.0, **told).judged().claims == claims


def test_row_8_a_claim_waits_for_its_time_and_nothing_else_is_done_meanwhile() -> None:
    assert fell_silent(100.0, (SELF, PEER)).is_refused(1, 5.0).judged()[1:4] == (CLAIM_RETRY, (), '')
    assert fell_silent(100.0, (SELF, PEER)).is_refused(1, 5.0, ago=5.0).judged().claims == (ADDRESS,)


def test_row_8_after_as_many_refusals_as_fit_into_a_stop_the_restart_goes_on_beside_the_claims() -> None:
    assert fell_silent(100.0, (SELF, PEER)).is_refused(19).judged().claims == (ADDRESS,)
    assert fell_silent(100.0, (SELF, PEER)).is_refused(20).judged().step == STOP
    assert fell_silent(30.0, (SELF, PEER)).is_refused(20).judged()[1:4] == (SOON, (ADDRESS,), '')


def test_row_8_a_new_silence_forgets_what_was_refused_before() -> None:
    assert fell_silent(100.0).is_refused(20, 60.0).misses(90.0).judged().claims == BOTH


@pytest.mark.parametrize('ago, claims', [(9.9, ()), (10.0, BOTH)])
def test_row_8_what_came_a_moment_ago_is_believed_to_be_here(ago: float, claims: Any) -> None:
    """Reads lag; and where EC2 contradicts, nothing else is claimed either."""
    for parts in (BOTH, (TABLE,)):
        assert fell_silent(30.0).claims(ago, *parts).sees(0.0, PEER, peer_state='stopped').judged().claims == claims


def test_row_8_what_is_seen_here_for_a_moment_is_believed_too_each_time_that_it_comes() -> None:
    for ago, claims in ((9.9, ()), (10.0, BOTH)):
        story = fell_silent(60.0).claims(50.0).sees(30.0, OTHER).sees(ago, SELF)
        assert story.sees(0.0, PEER, peer_state='stopped').judged().claims == claims


def test_row_8_where_ec2_does_not_tell_all_the_part_that_came_in_this_silence_is_here() -> None:
    taking = fell_silent(60.0).claims(30.0, TABLE)

    assert taking.sees(0.0, (UNKNOWN, PEER)).judged().claims == (ADDRESS,)
    assert taking.sees(0.0, (SELF, UNKNOWN)).judged().claims == (ADDRESS,)
    assert taking.misses(20.0).sees(0.0, (UNKNOWN, PEER)).judged().claims == BOTH
    assert fell_silent(60.0, (OTHER, PEER)).sees(0.0, UNKNOWN).judged().claims == (ADDRESS,)
    assert fell_silent(60.0, (ABSENT, PEER)).sees(0.0, UNKNOWN).judged().claims == (ADDRESS,)


# Rows 9 to 18: the restart, beside which claims go on

LEFT = (SELF, PEER)  # the address, which EC2 goes on refusing


@pytest.mark.parametrize('told, again, step, words', [
    ({**ERROR}, SOON, '', 'does not tell the states of both (Unavailable)'),                            # 9
    ({'own_state': '', 'error': 'nothing about it'}, SOON, '', 'nothing about it'),
    ({'peer_state': 'stopped'}, SOON, START, 'is stopped: starting it'),                                # 10
    ({'peer_state': 'stopping'}, SOON, FORCE, 'has been stopping for 60 s'),                            # 11
    ({'peer_state': 'pending'}, SOON, '', 'is starting'),                                               # 12
    *(({'peer_state': state}, LATER, '', f'is gone (EC2 calls it {state}): {{self}} serves on alone')   # 13
      for state in ('gone', 'shutting-down', 'terminated')),
    ({}, SOON, STOP, 'EC2 calls it running (checks: ok): stopping it'),                                 # 18
])
def test_rows_9_to_18_restart_the_peer_or_wait_and_go_on_claiming(
        told: Any, again: float, step: str, words: str) -> None:
    decision = fell_silent(900.0, LEFT, **told).is_refused(20).judged()

    assert (decision.step, decision.again) == (step, again)
    assert decision.claims == (() if step else (ADDRESS,))  # never both
    assert words in decision.why


@pytest.mark.parametrize('tries, due', [
    ([59.9], False), ([60.0], True), ([400.0, 119.9], False), ([400.0, 120.0], True), ([1000.0] * 4 + [599.9], False),
    ([2000.0] * 9 + [599.9], False), ([2000.0] * 9 + [600.0], True)])
@pytest.mark.parametrize('step, state', [(START, 'stopped'), (FORCE, 'stopping')])
def test_rows_10_and_11_a_step_is_tried_later_and_later_up_to_ten_minutes(
        tries: Any, due: bool, step: str, state: str) -> None:
    decision = fell_silent(3000.0, LEFT, peer_state=state, reason='no capacity').asks_for(
        step, *tries).is_refused(20).judged()

    assert (decision.step == step, decision.claims) == (due, () if due else (ADDRESS,))
    assert due or step == FORCE or '(no capacity)' in decision.why


def test_row_10_a_start_that_failed_before_the_peer_last_answered_counts_no_more() -> None:
    assert fell_silent(20.0, SELF, peer_state='stopped').asks_for(START, 21.0).judged().step == START
    assert fell_silent(90.0, SELF, peer_state='stopped').asks_for(STOP, 1.0).judged().step == START
    assert 'EC2 tells no reason' in fell_silent(90.0, SELF, peer_state='stopped').asks_for(START, 1.0).judged().why


@pytest.mark.parametrize('since, step', [(59.9, ''), (60.0, FORCE)])
def test_row_11_a_stop_that_takes_long_is_forced(since: float, step: str) -> None:
    story = fell_silent(300.0, LEFT).is_refused(20).watches(since, LEFT, peer_state='stopping')

    assert (story.judged().step, story.judged().claims) == (step, () if step else (ADDRESS,))


def test_row_11_a_stop_that_was_forced_before_this_one_counts_no_more() -> None:
    story = fell_silent(300.0, SELF).watches(100.0, SELF, peer_state='stopping').asks_for(FORCE, 101.0, 100.5, 100.2)

    assert story.judged().step == FORCE


@pytest.mark.parametrize('since, checks, step', [
    (299.9, 'impaired', ''), (300.0, 'impaired', STOP), (900.0, 'initializing', ''), (900.0, '', '')])
def test_row_14_a_started_peer_has_time_to_answer(since: float, checks: str, step: str) -> None:
    story = fell_silent(999.0, LEFT).is_refused(20).sees(since, LEFT, peer_state='pending').asks_for(
        START, since).watches(since - 0.001, LEFT, peer_checks=checks)

    assert (story.judged().step, story.judged().claims) == (step, () if step else (ADDRESS,))
    assert step or 'waiting for its answer' in story.judged().why


@pytest.mark.parametrize('failing, step', [(119.9, ''), (120.0, STOP)])
def test_row_14_the_checks_of_a_peer_that_never_answered_must_fail_for_a_while(failing: float, step: str) -> None:
    story = never_answered(SELF, 900.0).watches(failing, SELF, peer_checks='impaired')

    assert story.judged().step == step


@pytest.mark.parametrize('stops, due', [
    ([299.9], False), ([300.0], True), ([9000.0, 599.9], False), ([9000.0, 600.0], True),
    ([9000.0] * 9 + [HOUR - 0.1], False), ([9000.0] * 9 + [HOUR], True),
    ([4 * HOUR + 300.0, 300.0], True), ([4 * HOUR + 299.9, 300.0], False)])
def test_row_15_stops_are_twice_as_far_apart_with_each_further_one(stops: Any, due: bool) -> None:
    """Up to an hour, and those of four hours count."""
    story = fell_silent(100.0, LEFT).asks_for(STOP, *stops, accepted=False).is_refused(20)

    assert (story.judged().step, story.judged().claims) == ((STOP, ()) if due else ('', (ADDRESS,)))
    assert due or 'not long ago' in story.judged().why


@pytest.mark.parametrize('ago, due', [([59.9], False), ([60.0], True), ([200.0, 119.9], False), ([200.0, 120.0], True),
                                      ([301.0], True)])
def test_row_15_a_refused_stop_is_tried_later_and_later_too(ago: Any, due: bool) -> None:
    story = fell_silent(300.0, SELF).asks_for(STOP, *ago, accepted=False, refused=True)

    assert (story.judged().step == STOP) is due


@pytest.mark.parametrize('refused, forced, step', [(59.9, 200.0, ''), (60.0, 200.0, STOP), (60.0, 1.0, STOP)])
def test_row_15_a_stop_waits_for_both_and_one_that_was_forced_is_no_further_one(
        refused: float, forced: float, step: str) -> None:
    story = fell_silent(500.0, SELF).asks_for(STOP, 400.0, accepted=False).asks_for(FORCE, forced, accepted=False)

    assert story.asks_for(STOP, refused, accepted=False, refused=True).judged().step == step


def test_row_15_a_stop_without_an_answer_may_have_been_taken() -> None:
    story = fell_silent(400.0, SELF).asks_for(STOP, 299.0, accepted=False)

    assert 'not long ago' in story.judged().why


@pytest.mark.parametrize('checks', ['ok', 'impaired'])
def test_row_16_nobody_is_stopped_for_a_hiccup_or_a_reboot(checks: str) -> None:
    decision = fell_silent(59.9, LEFT, peer_checks=checks).is_refused(20).judged()

    assert (decision.step, decision.claims) == ('', (ADDRESS,))
    assert 'waiting until that lasts 60 s and all else stayed as it is for 29 s' in decision.why
    assert fell_silent(60.0, LEFT, peer_checks=checks).is_refused(20).judged().step == STOP


@pytest.mark.parametrize('watching', [
    lambda story, since: story.sees(since + 0.1, OTHER),                               # who holds has changed
    lambda story, since: story.watches(90.0, SELF, until=since + 18.1),                # nobody looked
    lambda story, since: story.watches(90.0, SELF, until=since + 18.1).sees(since + 9.0, UNKNOWN)])
def test_row_16_nobody_is_stopped_before_both_must_have_seen_what_either_does(watching: Any) -> None:
    for since, step in ((28.9, ''), (29.0, STOP)):
        assert watching(fell_silent(200.0, SELF, until=100.0), since).watches(since, SELF).judged().step == step


@pytest.mark.parametrize('ping_timeout, apart', [(1.0, 18.0), (2.0, 21.0)])
def test_row_16_observations_fifteen_seconds_and_three_pings_apart_have_no_gap(
        ping_timeout: float, apart: float) -> None:
    story = fell_silent(200.0, SELF, until=100.0)
    story.settings = dataclasses.replace(SETTINGS, ping_timeout=ping_timeout)

    assert story.watches(90.0, SELF, until=20.0 + apart).watches(20.0, SELF).judged().step == STOP


def test_row_16_a_claim_changes_who_holds_and_one_of_what_is_here_does_not() -> None:
    assert fell_silent(200.0, PEER).claims(20.0).watches(19.0, SELF).judged().step == ''
    assert fell_silent(200.0, SELF).claims(20.0).watches(19.0, SELF).judged().step == STOP


def test_row_16_nobody_is_stopped_while_ec2_does_not_tell_its_address() -> None:
    """It may have a new one, and answer there."""
    assert fell_silent(200.0, SELF, tells_addresses=False).judged().step == ''


def test_row_16_nobody_is_stopped_while_it_is_not_known_who_holds() -> None:
    assert fell_silent(200.0, SELF).sees(0.0, (SELF, UNKNOWN)).is_refused(20, 9.0).judged().step == ''


@pytest.mark.parametrize('silence, checks, step', [
    (900.0, 'ok', ''), (900.0, 'initializing', ''), (359.9, 'impaired', ''), (360.0, 'impaired', STOP)])
@pytest.mark.parametrize('holders, told', [
    (PEER, {}), (SELF, {'nat_fault': 'net.ipv4.ip_forward is 0'}), (SELF, {'own_maintenance': True})])
def test_row_17_who_holds_nothing_or_is_not_fit_stops_only_a_peer_whose_checks_fail_for_long(
        silence: float, checks: str, step: str, holders: str, told: Any) -> None:
    story = fell_silent(silence + 99.0, holders, until=silence + 0.1, **told)
    decision = story.is_refused(20).watches(silence, holders, peer_checks=checks, **told).judged()

    assert (decision.step, decision.claims) == (step, () if step or holders == SELF else BOTH)
    assert step or 'EC2 cannot arbitrate' in decision.why


def test_row_17_who_fails_its_checks_does_not_stop_a_peer_that_passes_them() -> None:
    assert fell_silent(900.0, SELF, own_checks='impaired').judged().step == ''
    assert fell_silent(900.0, SELF, own_checks='impaired', peer_checks='impaired').judged().step == STOP


def test_row_18_a_peer_is_heard_again_only_by_an_answer_after_its_restart() -> None:
    restarted = fell_silent(900.0, SELF).asks_for(START, 400.0)

    assert restarted.watches(200.0, SELF).judged().step == ''
    assert restarted.hears(399.0).misses(390.0).judged().step == STOP


def test_what_is_lost_later_does_not_shorten_standing_aside() -> None:
    story = Story().hears(900.0).sees(899.0, (PEER, SELF)).misses(400.0).claims(200.0, TABLE)
    story.sees(180.0, SELF).sees(0.0, PEER)

    assert story.memory.aside_until - NOW > HOUR - 200.0


def test_what_the_peer_has_taken_puts_in_doubt_what_ec2_does_not_tell() -> None:
    story = Story().hears(900.0).sees(899.0, PEER).misses(800.0).claims(700.0).sees(600.0, (UNKNOWN, PEER))

    assert story.memory.left(story.seen) == BOTH
