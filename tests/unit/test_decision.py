"""The judgement: every sentence of README.adoc, "Operation", and every row of its table of restarts."""
from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nat_monitor import (BACK, FORCE, LATER, NOBODY, PEER, SELF, SETTLE_BEFORE_STOP, SOON, STAND_ASIDE, START, STOP,
                         TAKE_OVER, WAIT, WATCH, Decision, Settings, Situation, decide)

SETTINGS = Settings('i-0123456789abcdef0', 'i-0fedcba9876543210', ('rtb-0123456789abcdef0',), '198.51.100.7')
# A secondary whose running peer, the holder, fell silent.
SILENT = Situation(primary=False, own_state='running', peer_state='running', checks='ok', error='', answers=False,
                   heard=True, remembered=PEER, holder=None, complete=False, lost=False)
# The same, after it has taken over and the claim has settled.
TAKEN = dataclasses.replace(SILENT, remembered=SELF, holder=SELF, complete=True, since_claim=30.0)
# A primary that serves, whose peer fell silent.
PRIMARY = dataclasses.replace(SILENT, primary=True, remembered=SELF, holder=SELF, complete=True, since_claim=3600.0)


def judged(situation: Situation, **changed: Any) -> Decision:
    return decide(dataclasses.replace(situation, **changed), SETTINGS)


@pytest.mark.parametrize('state', ['stopping', 'stopped', 'pending', 'shutting-down', 'terminated', 'gone'])
@pytest.mark.parametrize('situation', [SILENT, TAKEN, PRIMARY])
def test_an_instance_that_does_not_run_in_ec2s_eyes_does_nothing(situation: Situation, state: str) -> None:
    decision = judged(situation, own_state=state)

    assert (decision.act, decision.again) == (WAIT, SOON)


@pytest.mark.parametrize('situation', [SILENT, TAKEN, PRIMARY])
def test_a_peer_never_heard_that_ec2_calls_well_is_left_alone(situation: Situation) -> None:
    decision = judged(situation, heard=False)

    assert decision.act == WAIT
    assert 'security groups' in decision.why


def test_a_peer_never_heard_is_not_judged_on_an_error() -> None:
    assert judged(SILENT, heard=False, peer_state=None, error='Unavailable').act == WAIT


def test_a_peer_never_heard_is_not_judged_on_insufficient_data() -> None:
    assert judged(SILENT, heard=False, checks='insufficient-data and ok').act == WAIT


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
])
def test_the_secondary_takes_over_from_a_failed_peer(changed: Any) -> None:
    assert judged(SILENT, **changed).act == TAKE_OVER


def test_a_primary_that_holds_restarts_the_peer_and_moves_nothing() -> None:
    assert judged(PRIMARY).act == STOP


def test_a_primary_that_holds_claims_a_missing_part() -> None:
    assert judged(PRIMARY, complete=False).act == TAKE_OVER


def test_a_primary_does_not_claim_anew_what_it_is_claiming() -> None:
    assert judged(PRIMARY, complete=False, claiming=True).act == STOP


def test_a_primary_whose_take_over_is_not_complete_restarts_the_peer_beside_it() -> None:
    taking = dataclasses.replace(PRIMARY, holder=PEER, complete=False, claiming=True)

    assert judged(taking, kept_for=59.0).act == WAIT
    assert judged(taking, kept_for=60.0).act == STOP


def test_a_primary_whose_peer_has_just_taken_over_stands_aside() -> None:
    assert judged(PRIMARY, holder=PEER, complete=False).act == STAND_ASIDE
    assert judged(PRIMARY, holder=PEER, complete=False, since_aside=59.0).act == STAND_ASIDE


def test_a_primary_that_stood_aside_in_vain_takes_over() -> None:
    assert judged(PRIMARY, holder=PEER, complete=False, since_aside=60.0).act == TAKE_OVER


def test_a_primary_does_not_stand_aside_for_a_peer_that_does_not_run() -> None:
    assert judged(PRIMARY, holder=PEER, complete=False, peer_state='stopped').act == TAKE_OVER


def test_a_primary_takes_over_at_once_from_a_peer_that_held_before() -> None:
    assert judged(PRIMARY, remembered=PEER, holder=PEER, complete=False).act == TAKE_OVER


@pytest.mark.parametrize('situation', [TAKEN, PRIMARY])
@pytest.mark.parametrize('changed, act, again', [
    # running
    ({}, STOP, SOON),
    ({'heard': False, 'checks': 'impaired'}, STOP, SOON),
    ({'heard': False, 'checks': 'initializing'}, WAIT, LATER),
    # stopping
    ({'peer_state': 'stopping', 'heard': False, 'stopping_for': 59.0}, WAIT, SOON),
    ({'peer_state': 'stopping', 'heard': False, 'stopping_for': 60.0}, FORCE, SOON),
    # stopped
    ({'peer_state': 'stopped', 'heard': False}, START, SOON),
    # pending, or just started
    ({'peer_state': 'pending', 'heard': False}, WAIT, SOON),
    ({'heard': False, 'since_start': 299.0}, WAIT, SOON),
    ({'heard': False, 'checks': 'impaired', 'since_start': 299.0}, WAIT, SOON),
    ({'heard': False, 'checks': 'impaired', 'since_start': 300.0}, STOP, SOON),
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
    assert judged(TAKEN, since_claim=4.0)[::2] == (WAIT, SETTLE_BEFORE_STOP - 4.0)


def test_nobody_is_stopped_while_it_is_not_known_who_holds() -> None:
    assert judged(TAKEN, holder=None).act == WAIT


def test_nobody_is_stopped_who_has_taken_a_table_back() -> None:
    assert judged(TAKEN, holder=PEER, lost=True, kept_for=600.0).act == WATCH


def test_a_peer_that_keeps_a_table_which_never_came_is_stopped_only_after_a_while() -> None:
    kept = dataclasses.replace(TAKEN, holder=PEER, complete=False, claiming=True)

    assert judged(kept, kept_for=59.0).act == WAIT
    assert judged(kept, kept_for=60.0).act == STOP


def test_where_neither_holds_anything_only_a_peer_whose_checks_fail_is_stopped() -> None:
    assert judged(PRIMARY, holder=NOBODY).act == WAIT
    assert judged(PRIMARY, holder=NOBODY, checks='impaired').act == STOP


def test_stops_are_spaced() -> None:
    assert judged(TAKEN, until_next_stop=7.0)[::2] == (WAIT, 7.0)
    assert judged(TAKEN, until_next_stop=700.0)[::2] == (WAIT, LATER)


@pytest.mark.parametrize('state', ['running', 'stopped', 'pending', 'terminated', None])
@pytest.mark.parametrize('since_stop', [0.0, 61.0])
def test_nobody_stops_a_peer_that_answers(state: Any, since_stop: float) -> None:
    decision = judged(TAKEN, answers=True, peer_state=state, since_stop=since_stop, stopping_for=600.0)

    assert decision.act not in (STOP, FORCE, TAKE_OVER)


def test_a_stop_that_hangs_is_forced_even_if_the_peer_answers() -> None:
    assert judged(TAKEN, answers=True, peer_state='stopping', stopping_for=59.0).act == WAIT
    assert judged(TAKEN, answers=True, peer_state='stopping', stopping_for=60.0).act == FORCE


def test_a_restart_is_over_when_the_peer_runs_and_answers() -> None:
    back = dataclasses.replace(TAKEN, answers=True, since_stop=50.0)

    assert judged(back, since_start=30.0).act == BACK
    assert judged(back).act == WAIT  # EC2 lags: it is about to stop
    assert judged(back, since_stop=61.0).act == BACK
