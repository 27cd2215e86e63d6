"""The judgement: each row of both tables, and what is remembered for them, just before and after each threshold."""
from __future__ import annotations

import logging
import math
from typing import Any, List, Tuple

import pytest

from nat_monitor import (ABSENT, CLAIM_RETRY, CLAIMED, FORCE, LOOK_AFTER_CHANGE, LOOK_INTERVAL, MINUTE, NOBODY, OTHER,
                         PEER, SELF, SOON, START, STOP, Decision, Memory)
from tests.unit.story import (ADDRESS, BOTH, DAY, ERROR, FAILED, NO_DATA, NOW, TABLE, UNKNOWN, Holders, Story, at_peace,
                              fell_silent, just_started, lets_none_through, robbed)

HOUR = 3600.0
CANNOT_NAT: Any = {'nat_fault': 'net.ipv4.ip_forward is 0'}


def serving(story: Story) -> Tuple[Tuple[str, ...], float]:
    decisions = story.judged()
    return decisions[0].claims, min(each.again for each in decisions)


def restarting(story: Story) -> Tuple[str, float]:
    return story.judged()[1].step, story.judged()[1].again


def words(story: Story) -> str:
    return ' | '.join(each.why for each in story.judged())


# S1 to S4
@pytest.mark.parametrize('state', ['stopping', 'stopped', 'pending', 'shutting-down', 'terminated', 'gone'])
@pytest.mark.parametrize('told', [{}, {'peer_state': 'stopped'}, {'peer_tag': True}, CANNOT_NAT])
def test_s1_one_that_ec2_calls_anything_but_running_does_nothing(state: str, told: Any) -> None:
    story = fell_silent(own_state=state, **told)
    assert (serving(story), story.step) == (((), SOON), '')
    assert f'EC2 calls {{self}} {state}' in words(story)


@pytest.mark.parametrize('story, again', [
    (fell_silent(peer_state='gone', **CANNOT_NAT), LOOK_AFTER_CHANGE), (at_peace(PEER, **CANNOT_NAT), LOOK_INTERVAL),
    (at_peace(PEER, peer_tag=True, **CANNOT_NAT), LOOK_INTERVAL),
    (fell_silent(**CANNOT_NAT).is_refused(-5.0), LOOK_AFTER_CHANGE)])
def test_s2_one_that_cannot_nat_claims_nothing(story: Story, again: float) -> None:
    assert serving(story) == ((), again)


def test_s2_it_claims_nothing_before_the_time_when_ec2_has_refused_a_claim() -> None:
    assert serving(fell_silent().is_refused(4.0)) == ((), 4.0)
    assert serving(fell_silent().is_refused(1.0, 9.0)) == ((), 9.0)
    assert serving(at_peace((SELF, NOBODY)).is_refused(300.0)) == ((), LOOK_INTERVAL)
    assert fell_silent().is_refused(-9.0, 0.0).claims == BOTH


@pytest.mark.parametrize('story', [
    at_peace(PEER, peer_tag=True), fell_silent(peer_tag=True), Story().misses(10.0).sees(0.0, PEER, peer_tag=True)])
def test_s3_all_is_taken_from_one_that_is_under_maintenance(story: Story) -> None:
    assert serving(story) == (BOTH, SOON)
    assert serving(at_peace(SELF, peer_tag=True)) == ((), LOOK_INTERVAL)
    for how in {'own_tag': True}, {'tells_tags': False}:  # that was told earlier
        assert serving(at_peace(PEER, peer_tag=True, **how)) == ((), LOOK_INTERVAL)


@pytest.mark.parametrize('story, claims', [
    (at_peace(PEER, own_tag=True, peer_source_check=True), ()),
    (at_peace((SELF, NOBODY), own_tag=True), ()),
    (Story().misses(10.0).sees(0.0, PEER, own_tag=True), ()),    # the peer may live
    (robbed(200.0, (SELF, PEER)).watches(15.0, (SELF, PEER), own_tag=True), ()), (fell_silent(own_tag=True), BOTH)])
def test_s4_who_is_under_maintenance_takes_over_only_from_a_silent_peer(story: Story, claims: Any) -> None:
    assert story.claims == claims and (serving(story)[1] == CLAIM_RETRY) is bool(claims)


# S5

def test_s5_all_is_taken_from_a_peer_that_answers_with_its_source_check_on() -> None:
    assert serving(at_peace(PEER, peer_source_check=True)) == (BOTH, SOON)
    assert serving(at_peace((SELF, PEER), 5.0, peer_source_check=True)) == ((ADDRESS,), SOON)
    assert not at_peace(PEER, peer_source_check=True).judged()[0].relief
    assert Story().sees(0.0, PEER, peer_source_check=True).claims == ()  # it has not answered yet
    assert serving(at_peace(SELF, peer_source_check=True)) == ((), LOOK_INTERVAL)
    assert serving(at_peace((NOBODY, OTHER), 5.0, peer_source_check=True)) == ((), LOOK_AFTER_CHANGE)
    assert Story().misses(9.0).sees(0.0, PEER, peer_source_check=True).claims == BOTH  # it serves nobody, deaf or not


def test_s5_a_peer_that_lets_no_probe_through_is_relieved_and_not_restarted() -> None:
    story = lets_none_through()
    assert serving(story) == (BOTH, SOON)
    assert story.judged()[0].relief and story.step == ''
    assert 'lets no packet through' in words(story) and ' and '.join(BOTH) in words(story)
    assert lets_none_through(9).claims == BOTH


@pytest.mark.parametrize('story', [
    lets_none_through(misses=2),
    lets_none_through(decisive=2.0),                      # sent before EC2 was asked, or with that
    lets_none_through().sees(0.5, PEER), lets_none_through().probes(0.5, True),
    lets_none_through().sees(1.5, SELF),
    Story().hears(DAY).sees(9.0, PEER).probes(8.0, False).probes(7.0, False).probes(6.0, False)], ids=range(6))
def test_s5_needs_every_one_of_its_reasons(story: Story) -> None:
    assert not story.judged()[0].relief


@pytest.mark.parametrize('primary, ago, relieves', [
    (True, [60.0], False), (True, [59.9], True), (True, [HOUR - 1.0], False), (True, [HOUR], True),
    (True, [3 * HOUR, 2 * HOUR - 1.0], False), (True, [3 * HOUR, 2 * HOUR], True), (False, [61.0], True),
    (True, [9 * HOUR, 8 * HOUR, 4 * HOUR - 1.0], False), (False, [9 * HOUR, 8 * HOUR, 4 * HOUR], True),
    (False, [3 * HOUR, 2 * HOUR - 1.0], False), (False, [3 * HOUR, 2 * HOUR], True)])
def test_s5_a_peer_is_relieved_once_an_hour_then_later_and_later_by_the_secondary_the_second_time_at_once(
        primary: bool, ago: List[float], relieves: bool) -> None:
    story = lets_none_through(primary=primary)
    story.memory.reliefs = [NOW - each for each in ago]
    assert story.judged()[0].relief is relieves


# S6

@pytest.mark.parametrize('holders, claims', [
    (NOBODY, BOTH), ((SELF, PEER), (ADDRESS,)), ((OTHER, PEER), (ADDRESS,)), ((PEER, ABSENT), (TABLE,)), (OTHER, ()),
    (SELF, ())])
def test_s6_what_is_here_outside_the_pair_or_absent_is_not(holders: Holders, claims: Any) -> None:
    assert serving(fell_silent(3.0, holders)) == (claims, CLAIM_RETRY if claims else LOOK_AFTER_CHANGE)


def test_s6_where_ec2_does_not_tell_who_holds_what_was_told_last_counts() -> None:
    assert Story().hears(99.0).misses(9.0).sees(0.0, UNKNOWN).claims == BOTH
    assert fell_silent(30.0, (SELF, PEER)).sees(0.0, UNKNOWN).claims == (ADDRESS,)
    assert fell_silent(30.0, (OTHER, ABSENT)).sees(0.0, UNKNOWN).claims == ()
    assert fell_silent(30.0).gets(20.0).sees(0.0, UNKNOWN).claims == ()


def test_s6_a_claim_without_an_answer_is_made_anew_but_for_a_while_not_while_ec2_throttles() -> None:
    story = fell_silent(30.0, (SELF, PEER))
    story.memory.holders[ADDRESS] = CLAIMED
    assert story.sees(0.0, UNKNOWN).claims == (ADDRESS,)
    assert story.sees(0.0, UNKNOWN, is_throttled=True).claims == ()
    for since, claims in ((149.9, ()), (150.0, (ADDRESS,))):
        story = fell_silent(900.0, (SELF, PEER)).sees(since, UNKNOWN, is_throttled=True)
        story.memory.holders[ADDRESS] = CLAIMED
        assert story.sees(0.0, UNKNOWN, is_throttled=True).claims == claims
    assert fell_silent(3.0, is_throttled=True).claims == fell_silent(3.0, NOBODY, is_throttled=True).claims == BOTH
    assert Story().hears(99.0).misses(9.0).sees(0.0, UNKNOWN, is_throttled=True).claims == BOTH


# May live

def test_one_that_has_taken_in_this_silence_what_was_here_keeps_it() -> None:
    assert 'has taken' not in words(robbed(200.0, silent_for=250.0))  # it may be told late
    story = robbed(200.0, silent_for=250.0).watches(190.0, PEER)
    assert serving(story) == ((), LOOK_AFTER_CHANGE)
    assert 'has taken what was here, so it lives' in words(story) and 'security groups' in words(story)


def test_it_must_fail_since_it_last_took_something() -> None:
    story = Story().hears(9000.0).misses(400.0).gets(200.0, TABLE).watches(60.0, (PEER, NOBODY), until=25.0, **FAILED)
    assert story.claims == BOTH
    assert story.gets(20.0, ADDRESS).watches(15.0, PEER, **FAILED).claims == ()


def test_what_was_lost_before_this_silence_is_no_reason() -> None:
    assert Story().hears(9000.0).gets(401.0).sees(400.5, PEER).misses(400.0).sees(0.0, PEER).claims == BOTH
    assert Story().hears(9000.0).misses(400.0).gets(400.0).sees(0.0, PEER).claims == BOTH


@pytest.mark.parametrize('well, claims', [(9.9, ()), (10.0, BOTH)])
def test_a_silence_goes_on_that_begins_again_before_ten_seconds_without_a_miss(well: float, claims: Any) -> None:
    """A further answer does not begin the ten seconds anew."""
    assert robbed(200.0).hears(50.0).hears(41.0).misses(50.0 - well).sees(0.0, PEER).claims == claims
    assert robbed(200.0).asks_for(START, 90.0).hears(50.0).misses(50.0 - well).sees(0.0, PEER).claims == BOTH


@pytest.mark.parametrize('heard, claims', [([], ()), ([50.0], ()), ([60.0], BOTH)])
def test_pings_that_could_not_leave_end_no_silence(heard: List[float], claims: Any) -> None:
    """Then its misses are counted anew."""
    story = robbed(200.0)
    story.memory.silent_at = math.inf
    for ago in heard:
        story.hears(ago)
    assert story.misses(45.0).sees(0.0, PEER).claims == claims


def test_one_that_was_not_heard_since_it_or_this_monitor_started_keeps_what_it_has() -> None:
    never = Story().misses(100.0).watches(90.0, PEER)
    restarted = Story().hears(900.0).misses(300.0).sees(200.0, PEER, peer_state='pending').watches(90.0, PEER)
    stopped = Story().hears(900.0).misses(300.0).asks_for(START, 200.0).watches(90.0, PEER)
    for story in never, restarted, stopped:
        assert serving(story) == ((), LOOK_AFTER_CHANGE)
    assert 'has taken' not in words(Story().gets(100.0).misses(9.0).sees(0.0, PEER))  # in this silence
    assert Story().hears(900.0).misses(300.0).asks_for(START, 200.0, refused=True).sees(0.0, PEER).claims == BOTH
    assert Story().hears(900.0).misses(300.0).sees(200.0, PEER, **ERROR).sees(0.0, PEER).claims == BOTH
    assert restarted.hears(80.0).misses(9.0).sees(0.0, PEER).claims == BOTH


@pytest.mark.parametrize('failed_for, claims', [(29.9, ()), (30.0, BOTH)])
def test_it_is_taken_over_from_once_ec2_has_failed_it_for_half_a_minute(failed_for: float, claims: Any) -> None:
    never = Story().misses(100.0).sees(90.0, PEER).watches(failed_for, PEER, **FAILED)
    silent_since = Story().watches(100.0, PEER, until=failed_for + 0.1, **FAILED).misses(failed_for + 0.05)
    robbed_since = robbed(failed_for + 0.05).sees(failed_for, PEER, **FAILED).sees(0.0, PEER, **FAILED)
    assert never.claims == silent_since.watches(failed_for, PEER, **FAILED).claims == robbed_since.claims == claims


@pytest.mark.parametrize('told', [NO_DATA, {**FAILED, 'own_checks': 'impaired'}, {'peer_checks': ''}])
def test_it_is_taken_over_from_once_its_checks_have_not_passed_for_as_long_as_a_start_may_take(told: Any) -> None:
    for since, claims in ((299.9, ()), (300.0, BOTH)):
        assert Story().misses(999.0).sees(since + 0.1, PEER).watches(since, PEER, **told).claims == claims
        assert Story().watches(400.0, PEER, until=since + 0.1, **told).misses(since + 0.05).watches(
            since, PEER, **told).claims == claims
    passing = Story().misses(999.0).watches(900.0, PEER, until=100.0, **told).sees(99.0, PEER)
    assert passing.watches(98.0, PEER, **told).claims == ()


# S7

@pytest.mark.parametrize('primary, holders', [(True, SELF), (False, PEER), (True, PEER), (False, SELF)])
def test_s7_while_all_is_well_nothing_is_done_or_said(primary: bool, holders: str) -> None:
    assert at_peace(holders, 500.0, primary).judged() == (Decision(''), Decision(''))
    assert Decision() == ('', LOOK_INTERVAL, logging.INFO, (), '', False)


@pytest.mark.parametrize('primary, holders, after, claims', [
    (False, (SELF, PEER), 10.0, ADDRESS), (False, (SELF, NOBODY), 10.0, ADDRESS),
    (False, (PEER, SELF), 150.0, TABLE), (False, (NOBODY, SELF), 10.0, TABLE),
    (True, (NOBODY, PEER), 150.0, TABLE), (False, (PEER, NOBODY), 150.0, ADDRESS),
    (True, (NOBODY, NOBODY), 10.0, TABLE + ADDRESS), (False, (NOBODY, NOBODY), 150.0, TABLE + ADDRESS),
    (True, (NOBODY, OTHER), 10.0, TABLE), (True, (ABSENT, NOBODY), 10.0, ADDRESS),
    (True, (OTHER, OTHER), None, ''), (True, (OTHER, PEER), None, ''), (True, (ABSENT, SELF), None, '')])
def test_s7_the_heir_brings_together_what_is_apart_or_nowhere_and_the_other_one_only_if_it_does_not(
        primary: bool, holders: Any, after: Any, claims: str) -> None:
    if after:
        assert serving(at_peace(holders, after - 0.1, primary)) == ((), LOOK_AFTER_CHANGE)
    story = at_peace(holders, after or 500.0, primary)
    assert ''.join(story.claims) == claims
    assert (serving(story)[1] == LOOK_AFTER_CHANGE) is bool(claims)
    assert not claims or words(story).startswith(' and '.join(story.claims) + ' not at {self}, unlike the rest')


def test_s7_what_is_apart_waits_for_complete_answers_that_are_all_the_same() -> None:
    assert at_peace((SELF, NOBODY)).sees(0.0, (UNKNOWN, NOBODY)).claims == ()
    assert at_peace((SELF, NOBODY), 100.0).sees(5.0, (SELF, UNKNOWN)).sees(0.0, (SELF, NOBODY)).claims == (ADDRESS,)
    assert at_peace((SELF, NOBODY), 100.0).sees(5.0, (SELF, PEER)).sees(0.0, (SELF, NOBODY)).claims == ()


def test_s7_two_that_are_deaf_bring_together_what_is_apart_too() -> None:
    assert serving(robbed(200.0, (PEER, NOBODY)).watches(150.0, (PEER, NOBODY))) == ((ADDRESS,), LOOK_AFTER_CHANGE)
    assert serving(robbed(200.0, (SELF, PEER)).watches(10.0, (SELF, PEER))) == ((ADDRESS,), LOOK_AFTER_CHANGE)
    assert serving(robbed(200.0, (SELF, PEER)).sees(0.0, (SELF, SELF))) == ((), LOOK_AFTER_CHANGE)


@pytest.mark.parametrize('holders, claims', [
    (PEER, BOTH), (OTHER, BOTH), (UNKNOWN, BOTH), (NOBODY, BOTH), ((ABSENT, PEER), (ADDRESS,)),
    ((PEER, SELF), (TABLE,)), (SELF, ())])
def test_s7_a_primary_that_starts_claims_from_whoever_has_it(holders: Holders, claims: Any) -> None:
    assert serving(just_started(holders)) == (claims, SOON if claims else LOOK_INTERVAL)


@pytest.mark.parametrize('holders, claims', [
    (PEER, ()), ((PEER, NOBODY), ()), ((OTHER, UNKNOWN), ()), ((OTHER, NOBODY), BOTH), (NOBODY, BOTH)])
def test_s7_but_not_before_it_has_heard_a_peer_that_may_serve(holders: Holders, claims: Any) -> None:
    assert just_started(holders, heard=False).claims == claims


def test_s7_each_part_is_owed_until_it_has_come_here_once_or_the_peer_has_taken_back() -> None:
    story = Story(primary=True).starts().hears(900.0).sees(300.0, PEER).gets(299.0, TABLE)
    assert story.sees(200.0, (OTHER, PEER)).claims == (ADDRESS,)
    assert story.sees(100.0, (SELF, OTHER)).claims == (ADDRESS,)
    assert story.sees(50.0, PEER).claims == ()
    assert just_started((SELF, PEER)).sees(0.0, OTHER).claims == (ADDRESS,)


def test_s7_a_secondary_and_a_primary_that_does_not_fail_back_are_owed_nothing() -> None:
    assert Story().starts().hears(5.0).sees(0.0, PEER).claims == ()
    assert just_started(PEER, fail_back=False).claims == just_started(OTHER, fail_back=False).claims == ()


@pytest.mark.parametrize('ago, claims, again', [
    (1.0, (), LOOK_INTERVAL - 1.0), (119.0, (), SOON), (60.0, (), 60.0), (119.9, (), SOON), (120.0, BOTH, SOON)])
def test_s7_fail_back_as_a_number_is_so_many_seconds_after_the_start(ago: float, claims: Any, again: float) -> None:
    assert serving(just_started(PEER, ago=ago, fail_back=120)) == (claims, again)


def test_s7_what_nobody_has_is_claimed_at_once_all_the_same() -> None:
    assert just_started((PEER, NOBODY), fail_back=120).claims == (ADDRESS,)
    assert just_started(OTHER, fail_back=120).claims == ()
    assert just_started(PEER, ago=1.0, fail_back=1).claims == BOTH  # a second is no True
    assert just_started(PEER, ago=0.9, fail_back=1).claims == ()


@pytest.mark.parametrize('fail_back, claims', [(True, BOTH), (False, ()), (120, ()), (20, BOTH)])
def test_s7_a_primary_whose_maintenance_is_over_starts_anew(fail_back: Any, claims: Any) -> None:
    story = Story(primary=True, fail_back=fail_back).hears(900.0).sees(40.0, SELF, own_tag=True)
    assert story.sees(20.0, (UNKNOWN, PEER)).judged() and story.sees(0.0, PEER).claims == claims
    assert Story(primary=True).hears(900.0).sees(40.0, SELF, own_tag=True).sees(20.0, SELF).claims == ()


@pytest.mark.parametrize('table, address, primary, heir', [
    (SELF, PEER, False, SELF), (PEER, SELF, False, PEER), (SELF, PEER, True, SELF), (PEER, SELF, True, PEER),
    (OTHER, SELF, False, SELF), (NOBODY, PEER, True, PEER), (NOBODY, NOBODY, True, SELF), (OTHER, NOBODY, False, PEER)])
def test_the_heir_has_a_table_else_the_address_else_it_is_the_primary(
        table: str, address: str, primary: bool, heir: str) -> None:
    assert Story(primary).sees(0.0, (table, address)).memory.heir == heir


def test_where_both_have_a_table_both_call_the_primary_heir() -> None:
    assert [Memory(it, holders={TABLE: PEER, 'rtb-1': SELF}).heir for it in (False, True)] == [PEER, SELF]


# The restart

@pytest.mark.parametrize('told, step, again, said', [
    (ERROR, '', SOON, 'is not restarted for now, as EC2 answered Unavailable'),
    ({'own_state': ''}, '', SOON, 'is not restarted for now'),
    ({'peer_state': 'stopped'}, START, SOON, 'is stopped: starting it'),
    ({'peer_state': 'stopping'}, FORCE, SOON, 'does not stop: forcing it'),
    ({'peer_state': 'pending'}, '', SOON, 'is pending: waiting for it'),
    *(({'peer_state': state}, '', MINUTE, f'is gone: {{self}} is alone (EC2 calls it {state})')
      for state in ('gone', 'shutting-down', 'terminated')),
    (FAILED, STOP, SOON, 'has failed its status checks for half a minute'),
    ({}, '', LOOK_AFTER_CHANGE, 'look at the security groups'),
    (NO_DATA, '', SOON, 'run: aws ec2 stop-instances')])
def test_a_silent_peer_is_restarted_by_what_ec2_calls_it(told: Any, step: str, again: float, said: str) -> None:
    story = fell_silent(900.0, SELF, **told)
    assert restarting(story) == (step, again)
    assert said in words(story)
    assert story.hears(1.0).judged()[1] == Decision('')
    assert fell_silent(900.0, SELF, peer_tag=True, **told).judged()[1] == Decision('')


@pytest.mark.parametrize('tries, due', [
    ([59.9], False), ([60.0], True), ([400.0, 119.9], False), ([400.0, 120.0], True), ([1000.0] * 4 + [479.9], False),
    ([1000.0] * 4 + [599.9], False), ([2000.0] * 9 + [599.9], False), ([2000.0] * 9 + [600.0], True)])
@pytest.mark.parametrize('step, state', [(START, 'stopped'), (FORCE, 'stopping')])
def test_a_step_is_tried_later_and_later_up_to_ten_minutes(tries: Any, due: bool, step: str, state: str) -> None:
    story = Story(wait_for_instance_start=7200.0).hears(9000.0).misses(3000.0).sees(
        2500.0, SELF, peer_state=state).asks_for(step, *tries).sees(0.0, SELF, peer_state=state, reason='no capacity')
    assert (story.step == step) is due
    assert due or step == FORCE or '(no capacity)' in words(story)


def test_a_start_that_failed_before_the_peer_last_answered_counts_no_more() -> None:
    restarted = Story().asks_for(START, 90.0, refused=True).hears(50.0).misses(20.0)
    assert restarted.sees(0.0, SELF, peer_state='stopped').step == START
    assert fell_silent(90.0, SELF).asks_for(STOP, 40.0).sees(0.0, SELF, peer_state='stopped').step == START
    once_more = fell_silent(90.0, SELF).asks_for(START, 1.0).sees(0.0, SELF, peer_state='stopped')
    assert restarting(once_more) == ('', SOON) and 'EC2 tells no reason' in words(once_more)


@pytest.mark.parametrize('story', [
    at_peace(SELF, own_tag=True), robbed(100.0, silent_for=200.0).sees(94.0, PEER), fell_silent(90.0, SELF, **FAILED),
    fell_silent(9.0, SELF, peer_state='gone'), fell_silent(900.0, SELF, peer_state='stopping'),
    fell_silent(90.0, SELF).asks_for(START, 1.0).sees(0.0, SELF, peer_state='stopped')], ids=range(6))
def test_what_happens_to_an_instance_is_a_warning(story: Story) -> None:
    assert max(each.level for each in story.judged()) == logging.WARNING


@pytest.mark.parametrize('since, step', [(59.9, ''), (60.0, FORCE)])
def test_a_stop_that_takes_long_is_forced(since: float, step: str) -> None:
    story = fell_silent(300.0, SELF).sees(since, SELF, peer_state='stopping').sees(since / 2, SELF, **ERROR)
    assert restarting(story.sees(0.0, SELF, peer_state='stopping')) == (step, SOON)


def test_history_reaches_as_far_back_as_the_longest_setting_and_no_further() -> None:
    for name in ('wait_for_instance_stop', 'wait_for_instance_start'):
        changed: Any = {name: 3600.0}
        story = Story(**changed).hears(9000.0).misses(8000.0).watches(7000.0, SELF, peer_state='stopping')
        assert 240 < len(story.memory.history) < 250
        assert story.step == FORCE
    assert len(Story(wait_for_instance_start=30.0).watches(900.0, PEER).memory.history) == 15  # what lies apart: 150 s


@pytest.mark.parametrize('ago, due', [([89.9], False), ([90.0], True), ([200.0, 89.9], False), ([200.0, 90.0], True)])
@pytest.mark.parametrize('step, told', [(STOP, FAILED), (START, {'peer_state': 'stopped'})])
def test_a_step_that_ec2_refuses_is_tried_again_after_its_pause(ago: Any, due: bool, step: str, told: Any) -> None:
    story = Story().hears(9000.0).misses(900.0).asks_for(step, *ago, refused=True, pause=90.0)
    assert (story.watches(45.0, SELF, **told).step == step) is due


def test_what_ec2_has_refused_makes_no_later_step_wait_for_longer() -> None:
    story = Story().misses(900.0).asks_for(START, 500.0, 300.0, refused=True).asks_for(START, 61.0)
    assert story.sees(0.0, SELF, peer_state='stopped').step == START
