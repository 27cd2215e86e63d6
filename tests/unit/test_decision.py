"""The judgement: every sentence of README.adoc, "Operation", and every row of its table of restarts."""
from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nat_monitor import (ABSENT, ASIDE, BACK, FORCE, GIVE_UP, LATER, NOBODY, NOTHING, OTHER, PEER, SELF,
                         SETTLE_BEFORE_STOP, SOON, START, STOP, TAKE_OVER, WAIT, Decision, Settings, Situation, decide)

NOW = 10000.0
TABLE, ADDRESS = 'rtb-0123456789abcdef0', '198.51.100.7'
SETTINGS = Settings('i-0123456789abcdef0', 'i-0fedcba9876543210', (TABLE,), ADDRESS)
HERE, THERE, NOWHERE = ({TABLE: holder, ADDRESS: holder} for holder in (SELF, PEER, NOBODY))
# A secondary whose running peer, the holder, fell silent.
SILENT = Situation(own_state='running', peer_state='running', checks='ok', asked_at=NOW, seen_at=NOW, received_at=NOW,
                   holders=THERE, heard=True, remembered=PEER)
# The same, after it has taken over and the claim has settled.
TAKEN = dataclasses.replace(SILENT, holders=HERE, taking_over=True, moved={TABLE, ADDRESS}, claimed_at=NOW - 30.0)
# A primary that serves, whose peer fell silent.
PRIMARY = dataclasses.replace(SILENT, primary=True, remembered=SELF, holders=HERE, claimed_at=NOW - 3600.0)
# The same, but EC2 says that all is at the peer since ten seconds ago.
BEREFT = dataclasses.replace(PRIMARY, holders=THERE, kept_at=NOW - 10.0)


def judged(situation: Situation, **changed: Any) -> Decision:
    return decide(dataclasses.replace(situation, **changed), SETTINGS, NOW)


@pytest.mark.parametrize('state', ['stopping', 'stopped', 'pending', 'shutting-down', 'terminated', 'gone'])
@pytest.mark.parametrize('situation', [SILENT, TAKEN, PRIMARY])
def test_an_instance_that_does_not_run_in_ec2s_eyes_does_nothing(situation: Situation, state: str) -> None:
    decision = judged(situation, own_state=state)

    assert (decision.act, decision.again) == (NOTHING, SOON)


@pytest.mark.parametrize('situation', [SILENT, TAKEN, PRIMARY])
def test_a_peer_never_heard_that_ec2_calls_well_is_left_alone(situation: Situation) -> None:
    decision = judged(situation, heard=False)

    assert decision.act == NOTHING
    assert 'security groups' in decision.why


def test_a_peer_never_heard_is_not_judged_on_an_error() -> None:
    assert judged(SILENT, heard=False, peer_state=None, error='Unavailable').act == NOTHING


def test_a_peer_never_heard_is_not_judged_on_insufficient_data() -> None:
    assert judged(SILENT, heard=False, checks='insufficient-data and ok').act == NOTHING


@pytest.mark.parametrize('changed', [
    {'heard': True},
    {'heard': True, 'checks': 'impaired'},
    {'heard': True, 'peer_state': None, 'error': 'RequestLimitExceeded'},
    {'heard': False, 'checks': 'impaired'},
    {'heard': False, 'checks': 'initializing'},
    {'heard': False, 'peer_state': 'pending', 'checks': 'not-applicable'},
    {'heard': False, 'peer_state': 'stopping'},
    {'heard': False, 'peer_state': 'stopped'},
    {'heard': False, 'peer_state': 'terminated'},
    {'heard': False, 'peer_state': 'gone'},
    {'remembered': None},
    {'remembered': SELF},
    {'holders': None},
    {'holders': NOWHERE},
    {'holders': {TABLE: SELF, ADDRESS: PEER}},
])
def test_the_secondary_takes_over_from_a_failed_peer(changed: Any) -> None:
    assert judged(SILENT, **changed).act == TAKE_OVER


@pytest.mark.parametrize('changed', [
    {'holders': {TABLE: OTHER, ADDRESS: OTHER}, 'foreign': {TABLE, ADDRESS}},
    {'holders': {TABLE: ABSENT, ADDRESS: SELF}},
])
def test_what_is_outside_the_pair_or_does_not_exist_is_not_taken_over(changed: Any) -> None:
    assert judged(SILENT, **changed).act != TAKE_OVER


def test_a_read_that_lags_behind_a_claim_is_no_reason_to_claim_again() -> None:
    just_claimed = dataclasses.replace(SILENT, moved={TABLE, ADDRESS}, claimed_at=NOW - 4.0)

    assert just_claimed.left_to_claim(SETTINGS) == []
    assert dataclasses.replace(just_claimed, claimed_at=NOW - SETTLE_BEFORE_STOP).left_to_claim(SETTINGS) == [
        TABLE, ADDRESS]


def test_what_was_claimed_counts_as_here_while_ec2_does_not_tell() -> None:
    taking = dataclasses.replace(SILENT, moved={TABLE}, holders=None, taking_over=True)

    assert taking.left_to_claim(SETTINGS) == [ADDRESS]
    assert dataclasses.replace(taking, taking_over=False).left_to_claim(SETTINGS) == [TABLE, ADDRESS]


def test_a_claim_at_the_start_takes_each_part_from_whoever_has_it_but_once() -> None:
    starting = dataclasses.replace(SILENT, primary=True, starting=True, foreign={TABLE, ADDRESS}, moved={TABLE},
                                   holders={TABLE: OTHER, ADDRESS: OTHER})

    assert starting.left_to_claim(SETTINGS) == [ADDRESS]


def test_a_primary_that_holds_restarts_the_peer_and_moves_nothing() -> None:
    assert judged(PRIMARY).act == STOP


def test_a_primary_that_holds_claims_a_missing_part() -> None:
    assert judged(PRIMARY, holders={TABLE: SELF, ADDRESS: NOBODY}).act == TAKE_OVER


def test_a_primary_that_does_not_know_who_holds_moves_nothing() -> None:
    assert judged(PRIMARY, holders=None).act == WAIT


def test_a_primary_whose_take_over_is_not_complete_restarts_the_peer_beside_it() -> None:
    taking = dataclasses.replace(BEREFT, taking_over=True, moved=set())

    assert judged(taking, kept_at=NOW - 59.0).act == WAIT
    assert judged(taking, kept_at=NOW - 60.0).act == STOP


def test_a_primary_whose_peer_has_just_taken_over_stands_aside() -> None:
    decision = judged(BEREFT, kept_at=NOW - 59.0)

    assert decision.act == ASIDE
    assert 'standing aside' in decision.why


@pytest.mark.parametrize('table, act', [(OTHER, ASIDE), (NOBODY, ASIDE), (SELF, TAKE_OVER)])
def test_the_address_alone_tells_that_the_peer_has_taken_over_only_if_nothing_is_here(table: str, act: str) -> None:
    foreign = {TABLE} if table == OTHER else set()

    assert judged(BEREFT, holders={TABLE: table, ADDRESS: PEER}, foreign=foreign).act == act


def test_a_primary_that_stood_aside_in_vain_takes_over() -> None:
    assert judged(BEREFT, kept_at=NOW - 60.0).act == TAKE_OVER


def test_a_primary_does_not_stand_aside_for_an_address_that_is_apart() -> None:
    assert judged(BEREFT, holders={TABLE: SELF, ADDRESS: PEER}).act == TAKE_OVER


def test_a_primary_does_not_stand_aside_for_a_peer_that_does_not_run() -> None:
    assert judged(BEREFT, peer_state='stopped').act == TAKE_OVER


@pytest.mark.parametrize('holders', [THERE, None])
def test_a_primary_takes_over_at_once_from_a_peer_that_held_before(holders: Any) -> None:
    assert judged(BEREFT, remembered=PEER, holders=holders).act == TAKE_OVER


@pytest.mark.parametrize('situation', [TAKEN, PRIMARY])
@pytest.mark.parametrize('changed, act, again', [
    # running
    ({}, STOP, SOON),
    ({'heard': False, 'checks': 'impaired'}, STOP, SOON),
    ({'heard': False, 'checks': 'initializing'}, WAIT, LATER),
    # stopping
    ({'peer_state': 'stopping', 'heard': False, 'stopping_at': NOW - 59.0}, WAIT, SOON),
    ({'peer_state': 'stopping', 'heard': False, 'stopping_at': NOW - 60.0}, FORCE, SOON),
    # stopped
    ({'peer_state': 'stopped', 'heard': False}, START, SOON),
    # pending, or just started
    ({'peer_state': 'pending', 'heard': False}, WAIT, SOON),
    ({'heard': False, 'checks': 'initializing', 'started_at': NOW - 299.0}, WAIT, SOON),
    ({'heard': False, 'checks': 'impaired', 'started_at': NOW - 299.0}, WAIT, SOON),
    ({'heard': False, 'checks': 'impaired', 'started_at': NOW - 300.0}, STOP, SOON),
    # gone
    ({'peer_state': 'shutting-down', 'heard': False}, WAIT, LATER),
    ({'peer_state': 'terminated', 'heard': False}, WAIT, LATER),
    ({'peer_state': 'gone', 'heard': False}, WAIT, LATER),
    # an error
    ({'peer_state': None, 'error': 'Unavailable'}, WAIT, SOON),
])
def test_the_table_of_restarts(situation: Situation, changed: Any, act: str, again: float) -> None:
    decision = judged(situation, **changed)

    assert (decision.act, decision.again) == (act, again)


def test_nobody_is_stopped_before_the_claim_has_settled() -> None:
    assert judged(TAKEN, claimed_at=NOW - 4.0)[::2] == (WAIT, SETTLE_BEFORE_STOP - 4.0)


def test_nobody_is_stopped_while_it_is_not_known_who_holds() -> None:
    assert judged(TAKEN, holders=None).act == WAIT


def test_a_take_over_goes_on_though_ec2_does_not_tell_the_states() -> None:
    begun = dataclasses.replace(TAKEN, holders=THERE, moved=set(), heard=False)

    assert judged(begun, peer_state=None, error='Unavailable').act == WAIT
    assert judged(begun, peer_state=None, error='Unavailable', taking_over=False).act == NOTHING


@pytest.mark.parametrize('part', [TABLE, ADDRESS])
def test_nobody_is_stopped_who_has_taken_a_part_back(part: str) -> None:
    back = dataclasses.replace(TAKEN, holders={TABLE: SELF, ADDRESS: SELF, part: PEER}, kept_at=NOW - 600.0)

    assert judged(back).act == judged(back, heard=False).act == GIVE_UP
    assert judged(back, claimed_at=NOW - 4.0).act == WAIT  # reads lag


def test_a_peer_that_keeps_a_table_which_never_came_is_stopped_only_after_a_while() -> None:
    kept = dataclasses.replace(TAKEN, holders=THERE, moved=set())

    assert judged(kept, kept_at=NOW - 59.0).act == WAIT
    assert judged(kept, kept_at=NOW - 60.0).act == STOP


def test_where_neither_holds_anything_only_a_peer_whose_checks_fail_is_stopped() -> None:
    assert judged(TAKEN, holders=NOWHERE).act == WAIT
    assert judged(TAKEN, holders=NOWHERE, checks='impaired').act == STOP
    assert judged(TAKEN, holders={**NOWHERE, ADDRESS: PEER}, moved=set(), kept_at=NOW - 600.0).act == WAIT


def test_stops_are_spaced() -> None:
    assert judged(TAKEN, stops=[NOW - 293.0])[::2] == (WAIT, 7.0)
    assert judged(TAKEN, stops=[NOW - 200.0])[::2] == (WAIT, LATER)
    assert judged(TAKEN, stops=[NOW - 300.0]).act == STOP
    assert judged(TAKEN, stops=[NOW - 7300.0, NOW - 300.0]).act == STOP


def test_stops_are_spaced_twice_as_far_with_each_further_one_up_to_an_hour() -> None:
    assert judged(TAKEN, stops=[NOW - 4000.0, NOW - 599.0]).act == WAIT
    assert judged(TAKEN, stops=[NOW - 4000.0, NOW - 600.0]).act == STOP
    assert judged(TAKEN, stops=[NOW - 7000.0] * 9 + [NOW - 3599.0]).act == WAIT
    assert judged(TAKEN, stops=[NOW - 7000.0] * 9 + [NOW - 3600.0]).act == STOP


@pytest.mark.parametrize('state', ['running', 'stopped', 'pending', 'terminated', None])
@pytest.mark.parametrize('since_stop', [0.0, 61.0])
def test_nobody_stops_a_peer_that_answers(state: Any, since_stop: float) -> None:
    decision = judged(TAKEN, answers=True, peer_state=state, stops=[NOW - since_stop], stopping_at=NOW - 600.0)

    assert decision.act not in (STOP, FORCE, TAKE_OVER)


def test_a_stop_that_hangs_is_forced_even_if_the_peer_answers() -> None:
    assert judged(TAKEN, answers=True, peer_state='stopping', stopping_at=NOW - 59.0).act == WAIT
    assert judged(TAKEN, answers=True, peer_state='stopping', stopping_at=NOW - 60.0).act == FORCE


def test_a_restart_is_over_when_the_peer_runs_and_answers() -> None:
    back = dataclasses.replace(TAKEN, answers=True, stops=[NOW - 50.0])

    assert judged(back, started_at=NOW - 30.0).act == BACK
    assert judged(back).act == WAIT  # EC2 lags: it is about to stop
    assert judged(back, stops=[NOW - 61.0]).act == BACK
