"""The loop in virtual time: pings, looks, claims, steps, rehearsals, probes."""
from __future__ import annotations

from typing import Any, List, Tuple

import pytest

from nat_monitor import CALL_DEADLINE, OTHER, PEER, SELF, NoAnswer, OwnFault
from tests.unit.scene import (ADDRESS, CLAIMS, LOST, OUTSIDE, PRIMARY, SECOND, SECONDARY, START, TABLE, TARGET, Cloud,
                              Ending, Scene, at_rest, forwards_not, gaps, probing, refusal, silent, through)

BUSY = refusal('RequestLimitExceeded')


def test_while_all_is_well_it_pings_asks_now_and_then_and_says_who_holds() -> None:
    scene = Scene().run(400.0)
    assert {round(later - earlier, 3) for earlier, later in zip(scene.pings, scene.pings[1:])} == {0.251}
    assert [round(gap) for gap in gaps(scene.questions())] == [120] * 3
    assert {*scene.questions()[1:]} <= {*scene.cloud.closed}  # connections that may be dead
    assert scene.side_by_side.count(2) == 3
    assert [message for _, message in scene.lines] == [f'{TABLE} and {ADDRESS} at {PRIMARY}', f'{PRIMARY} answers']
    assert not scene.claims() and not scene.steps()


# Silence and judgement

@pytest.mark.parametrize('latency', [0.1, 1.4, 4.0])
@pytest.mark.parametrize('num_pings', [2, 3])
def test_the_ping_that_decides_is_sent_after_ec2_has_answered(latency: float, num_pings: int) -> None:
    scene = silent(num_pings=num_pings)
    scene.latency, begins = latency, scene.now
    claimed = scene.run(15.0).claims()[0]
    decisive = max(sent for sent in scene.pings if sent < claimed)
    answered = max(asked + latency for asked in scene.questions() if asked + latency <= claimed)
    assert decisive >= answered - 1e-6
    assert claimed - begins < 2.0 + max(num_pings - 2.0, latency) + 0.3
    assert scene.said(f'{PRIMARY} missed {num_pings} pings in a row') == 1


def test_a_start_that_claims_later_looks_when_it_is_time() -> None:
    scene = Scene(primary=True, holder=SECONDARY, fail_back=200).run(300.0)
    assert [round(at - START) for at in scene.claims()] == [200, 200]


@pytest.mark.parametrize('error', [LOST, NoAnswer('a page of a proxy')])
def test_who_is_cut_off_from_ec2_decides_nothing(error: Exception) -> None:
    scene = silent()
    scene.cloud.errors['*'] = error
    scene.run(100.0)
    assert not scene.claims() and not scene.steps()
    assert scene.levels(f'EC2 does not answer {SECONDARY} (') == ['INFO']
    assert (1.0, 3.0) in scene.jitter and max(gaps(scene.questions())) < 3.5


@pytest.mark.parametrize('primary, misses', [(False, 3), (True, 6)])
def test_the_primary_waits_for_twice_as_many_misses(primary: bool, misses: int) -> None:
    scene = silent(primary, SECONDARY if primary else PRIMARY, fail_back=False)
    begins = scene.now
    assert misses - 0.1 < scene.run(20.0).claims()[0] - begins < misses + 0.4
    assert scene.said(f'missed {misses} pings in a row') == 1


@pytest.mark.parametrize('num_pings, asked', [(3, [1]), (4, [1]), (12, [1, 7])])
def test_ec2_is_asked_at_the_first_miss_and_soon_again(num_pings: int, asked: List[int]) -> None:
    scene = silent(num_pings=num_pings)
    begins = scene.now
    assert [round(at - begins) for at in scene.run(num_pings + 0.3).questions()] == asked


def test_a_question_just_before_the_silence_puts_off_the_next_one_but_not_beyond_the_last_ping() -> None:
    scene = at_rest()
    scene.monitor.look_now()
    begins = scene.run(0.2).silence()
    assert [round(at - begins) for at in scene.run(3.5).questions()] == [0, 2]


@pytest.mark.parametrize('lost', ['every other', 'two of three'])
def test_ec2_is_asked_once_in_three_seconds_however_many_pings_are_lost(lost: str) -> None:
    scene, sent = at_rest(), [0]
    begin, every = {'every other': (1, 2), 'two of three': (2, 3)}[lost]

    def flapping(now: float) -> bool:
        sent[0] += 1
        return sent[0] % every >= begin
    scene.outcome = flapping
    assert 12 <= len(scene.run(60.0).questions()) <= 20 and not scene.claims()


def test_where_many_pings_are_lost_silence_and_answer_are_told_once_until_ten_seconds_without_a_miss() -> None:
    scene, sent = at_rest(holder=SECONDARY), [0]

    def flapping(now: float) -> bool:
        sent[0] += 1
        return sent[0] % 7 > 2
    scene.outcome = flapping
    assert len(scene.run(120.0).pings) > 180
    assert scene.said('missed 3 pings in a row') == scene.said(f'{PRIMARY} answers') == 1
    scene.outcome = lambda now: True
    scene.run(11.0).silence(lasts=4.0)
    assert scene.run(20.0).said('missed 3 pings in a row') == scene.said(f'{PRIMARY} answers') == 2


@pytest.mark.parametrize('num_pings, errors, in_flight', [(3, 9, True), (10, 4, False)])
def test_an_observation_from_before_the_silence_or_that_is_too_old_judges_nobody(
        num_pings: int, errors: int, in_flight: bool) -> None:
    scene = at_rest(num_pings=num_pings)
    scene.cloud.errors['describe_instance_status'] = [None] + [LOST] * errors
    if in_flight:
        scene.latency = 1.0
        scene.monitor.look_now()
    scene.silence(0.5)
    assert not scene.run(12.0).claims()
    assert scene.run(40.0).claims()


@pytest.mark.parametrize('between', [OwnFault('the way to it is by wg0'), 60.0])
def test_a_ping_that_could_not_leave_or_a_suspension_starts_the_run_of_misses_anew(between: Any) -> None:
    scene, outcomes = at_rest(), [False, False, between, False, False]
    scene.outcome = lambda now: outcomes.pop(0) if outcomes else True
    scene.run(70.0)
    assert not scene.said('missed') and not scene.claims()
    words = f'a ping to {PRIMARY} cannot leave {SECONDARY} (the way to it is by wg0)'
    assert scene.said(words) == 2 * (between != 60.0)


def test_a_ping_that_could_not_leave_is_tried_again_a_second_later_and_is_an_error_after_two_minutes() -> None:
    scene = at_rest()
    scene.outcome = lambda now: OwnFault('the way to it is by wg0')
    assert 100 < len(scene.run(119.0).pings) < 122 and not scene.claims()
    assert scene.levels('by wg0') == ['INFO']
    assert scene.run(62.0).levels(f'; run on {SECONDARY}: ip route get 10.0.0.1') == ['ERROR']
    scene.outcome = lambda now: True
    assert scene.run(2.0).levels('over after 18') == ['ERROR']


@pytest.mark.parametrize('takes, jump, counts', [
    (9.9, 0.0, True), (10.1, 0.0, False), (2.0, 7.9, True), (2.0, 8.1, False), (2.0, 55.0, False)])
def test_more_than_a_ping_or_a_call_can_take_was_a_suspension(takes: float, jump: float, counts: bool) -> None:
    scene, outcomes = at_rest(ping_timeout=2.0, num_pings=6), [False, False, takes, False, False, False]
    scene.outcome = lambda now: outcomes.pop(0) if outcomes else True
    scene.run(5.0)
    scene.now += jump
    assert bool(scene.run(30.0).said('missed 6 pings')) is counts


@pytest.mark.parametrize('holder, level, words', [
    (PRIMARY, 'INFO', 'answers'), (SECONDARY, 'WARNING', 'answers again: the pair is redundant')])
def test_that_the_peer_answers_is_told_after_silence_and_loudly_if_that_was(
        holder: str, level: str, words: str) -> None:
    scene = at_rest(primary=True, holder=holder, fail_back=False)
    for lasts in (6.5, 4.5):
        scene.silence(lasts=lasts)
        assert [line for line in scene.run(20.0).lines if f'{SECONDARY} answers' in line[1]] == [
            (level, f'{SECONDARY} {words}')]


# Claims

def test_a_claim_moves_tables_and_address_at_the_same_moment() -> None:
    scene = silent(tables=(TABLE, SECOND)).run(10.0)
    assert len(scene.claims()) == 3 and len(set(scene.claims())) == 1
    assert [each.name for each in scene.cloud.calls if each.name in CLAIMS][-1] == 'associate_address'
    assert (scene.cloud.routes, scene.cloud.owner) == (dict.fromkeys((TABLE, SECOND), SECONDARY), SECONDARY)
    assert scene.said(f'taking over {TABLE} and {SECOND} and {ADDRESS}') == 1
    assert scene.said(f'{TABLE} and {SECOND} and {ADDRESS} at {SECONDARY}') == 1
    claimed, then = scene.claims()[0], scene.questions(since=scene.claims()[0])[0]
    assert any(claimed < at <= then for at in scene.cloud.closed)  # its move kills the connections
    assert 2.5 < then - claimed < 4.1


def test_the_address_waits_for_a_table_that_was_refused_and_follows_it_at_once() -> None:
    scene = silent(ping_timeout=0.1)
    scene.cloud.errors.update({'replace_route': [BUSY] * 4, 'associate_address': [BUSY]})
    scene.run(60.0)
    tables, addresses = scene.times('replace_route'), scene.times('associate_address')
    assert addresses[0] == tables[0]
    assert len(tables) == 5 and 0.0 < addresses[1] - tables[4] < 0.6
    assert scene.cloud.owner == SECONDARY
    assert scene.levels(f'{TABLE} is not moved to {SECONDARY} yet (RequestLimitExceeded: said EC2)') == ['INFO'] * 2


def test_an_address_of_which_ec2_tells_nothing_is_asked_about_with_pauses() -> None:
    scene = Scene(ping_timeout=0.1)
    scene.cloud.errors['describe_addresses'] = refusal('UnauthorizedOperation')
    since = scene.run(20.0).silence()
    assert 10 < len(scene.run(60.0).questions(since)) < 30 and scene.cloud.routes[TABLE] == SECONDARY


def test_a_move_of_the_address_without_an_answer_is_asked_about_at_once_and_not_repeated_while_ec2_throttles() -> None:
    scene = silent()
    scene.cloud.errors.update({'associate_address': LOST, 'describe_addresses': [None] + [BUSY] * 5})
    scene.run(20.0)
    assert scene.questions(since=scene.claims()[0])[0] - scene.claims()[0] < 1.1
    assert scene.levels(f'{ADDRESS} is not moved to {SECONDARY} yet (no answer came)') == ['INFO']
    assert scene.cloud.owner == SECONDARY and len(scene.times('associate_address')) == 1
    scene.cloud.errors['describe_addresses'], since = LOST, scene.now
    assert len(scene.run(70.0).times('associate_address', since=since)) > 1


def test_a_move_whose_answer_is_lost_tells_only_who_has_it_then() -> None:
    scene = silent()
    scene.cloud.errors['associate_address'] = [LOST]
    scene.run(20.0)
    told = [message for _, message in scene.lines if ADDRESS in message]
    assert told[1:] == [f'{ADDRESS} at {SECONDARY}'] and f'taking over {TABLE} and {ADDRESS}' in told[0]
    assert not scene.monitor.memory.failures  # it was none: the address goes along with the next claim, too


@pytest.mark.parametrize('call, deadline', [('associate_address', 1.5), ('replace_route', CALL_DEADLINE)])
def test_the_answer_to_a_move_of_the_address_is_not_awaited_for_long(call: str, deadline: float) -> None:
    scene = silent(ping_timeout=0.1, elastic_ip=ADDRESS if deadline == 1.5 else None)
    scene.cloud.slow[call] = 9.0
    claimed = scene.run(10.0).claims()[0]
    assert scene.questions(since=claimed)[0] - claimed == pytest.approx(deadline, abs=0.2)
    assert bool(scene.said(f'EC2 does not answer {SECONDARY}')) is (deadline == CALL_DEADLINE)


def test_the_limit_of_a_claim_counts_from_sending_and_what_was_not_sent_is_looked_for_and_claimed_at_once() -> None:
    scene = silent()
    scene.resolving = 2.0
    assert scene.run(15.0).cloud.owner == SECONDARY and not scene.said('is not moved')
    scene = silent()
    scene.resolving = CALL_DEADLINE + 1.0
    scene.monitor.claim((TABLE, ADDRESS))
    assert not scene.claims() and scene.monitor.memory.holders[TABLE] == PEER  # whatever EC2 tells from then on
    scene.resolving, begins = 0.0, scene.now
    assert scene.run(5.0).claims()[0] - begins < 3.0 and scene.cloud.owner == SECONDARY
    assert scene.levels(f'{ADDRESS} is not moved to {SECONDARY} yet (no answer came)') == ['INFO'] * 2


def refused_for_long(code: str) -> List[float]:
    """Return the pauses between the claims of a table that EC2 refuses with this code."""
    scene = silent(elastic_ip=None, ping_timeout=0.4)
    scene.cloud.state[PRIMARY] = 'pending'
    scene.cloud.errors['replace_route'] = refusal(code)
    if code == 'RequestLimitExceeded':  # claims do not wait where the questions are throttled, too
        scene.cloud.errors['describe_route_tables'] = BUSY
    assert not scene.run(2500.0).times('describe_addresses') and len(scene.monitor.said) < 9
    return gaps(scene.claims())


def test_claims_that_are_refused_are_made_again_at_once_then_with_jitter_and_slow_down_if_ec2_is_not_busy() -> None:
    pauses = refused_for_long('UnauthorizedOperation')
    assert pauses[0] < 1.3
    assert all(2.0 < pause < 8.0 for pause in pauses[1:19])
    assert all(60.0 <= pause < 67.0 for pause in pauses[20:30])
    assert all(300.0 <= pause < 307.0 for pause in pauses[30:]) and len(pauses) > 32
    assert max(refused_for_long('RequestLimitExceeded')) < 9.0


def test_claims_without_an_answer_that_do_nothing_slow_down_too_and_are_told_once(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cloud, 'on_replace_route', lambda *_, **how: None)
    scene = silent(tables=(TABLE, SECOND), ping_timeout=0.1)
    scene.cloud.state[PRIMARY] = 'pending'
    scene.cloud.errors.update(replace_route=LOST, describe_route_tables=[None] * 30)
    pauses = gaps(scene.run(600.0).times('replace_route')[::2])
    assert pauses[0] < 1.5 and all(2.0 < pause < 8.0 for pause in pauses[2:18]) and max(pauses) >= 60.0
    assert scene.said('taking over') == scene.said(f'{TABLE} is not moved to {SECONDARY} yet (no answer came)') - 1 == 1


def test_what_ec2_refused_before_the_peer_fell_silent_delays_no_take_over() -> None:
    scene = silent()
    scene.monitor.memory.failures, begins = [scene.now + 300.0] * 30, scene.now
    assert scene.run(10.0).claims()[0] - begins < 4.0


def test_the_address_goes_along_where_a_table_is_here_or_none_is_claimed_whatever_was_refused() -> None:
    scene = at_rest(tables=(TABLE, SECOND))
    scene.monitor.memory.holders = {TABLE: SELF, SECOND: PEER, ADDRESS: PEER}
    scene.monitor.memory.failures, scene.cloud.errors['replace_route'] = [0.0], BUSY
    scene.monitor.claim((SECOND, ADDRESS))
    assert scene.cloud.owner == SECONDARY
    scene = at_rest()
    scene.monitor.memory.holders, scene.monitor.memory.failures = {TABLE: OTHER, ADDRESS: PEER}, [0.0]
    scene.monitor.claim((ADDRESS,))
    assert scene.cloud.owner == SECONDARY


def test_an_accepted_claim_ends_the_count_of_refusals() -> None:
    scene = silent(ping_timeout=0.1)
    scene.cloud.errors['replace_route'] = [BUSY] * 3
    scene.cloud.routes[TABLE], since = None, scene.run(40.0).now
    scene.cloud.errors['replace_route'] = [BUSY] * 2
    assert gaps(scene.run(30.0).times('replace_route', since=since))[0] < 0.6


# Restart

def test_a_peer_that_ec2_fails_is_stopped_forced_started_and_awaited() -> None:
    scene = silent()
    begins = scene.now
    assert not scene.run(50.0).steps() and not scene.monitor.left_stopped
    assert scene.said('it is stopped once it fails its status checks') == 1  # a reason is told when it is news

    scene.cloud.checks[PRIMARY] = 'impaired'
    assert scene.run(50.0).steps() == ['stop_instances']
    assert 80.0 <= scene.times('stop_instances')[0] - begins < 100.0
    assert scene.monitor.left_stopped and scene.said(f'{PRIMARY} is being stopped') == 1

    assert scene.run(65.0).steps() == ['stop_instances', 'stop_instances by force']
    stops = [each.how for each in scene.cloud.calls if each.name == 'stop_instances']
    assert [each.get('SkipOsShutdown') for each in stops] == [True, True]
    assert scene.said(f'{PRIMARY} is being forced: starting it once it is stopped') == 1

    scene.cloud.state[PRIMARY] = 'stopped'
    assert scene.run(7.0).steps()[2:] == ['start_instances']
    assert scene.said(f'{PRIMARY} is being started: waiting for its answer') == 1 and scene.monitor.left_stopped

    scene.outcome = lambda now: True
    assert not scene.run(3.0).monitor.left_stopped and scene.lines[-1] == (
        'WARNING', f'{PRIMARY} answers again: the pair is redundant')
    scene.silence()
    scene.cloud.state[PRIMARY] = 'stopped'  # by somebody
    assert not scene.run(10.0).monitor.left_stopped
    assert not [each for each in scene.cloud.calls if each.how.get('DryRun')]  # nothing is rehearsed meanwhile


@pytest.mark.parametrize('code, pauses', [('UnauthorizedOperation', [60, 120, 240]),
                                          ('RequestLimitExceeded', [90, 90, 90, 90])])
def test_a_step_that_is_refused_is_asked_for_again_later_and_later(code: str, pauses: List[int]) -> None:
    scene = silent()
    scene.cloud.state[PRIMARY] = 'stopped'
    scene.cloud.errors['start_instances'] = refusal(code)
    asked = scene.run(450.0).times('start_instances')
    assert all(due <= pause < due + 8.0 for due, pause in zip(pauses, gaps(asked))) and len(asked) == len(pauses) + 1
    assert scene.said(f'{PRIMARY} could not be started: {code}') >= 1 and not scene.said('is being started')
    assert {*scene.levels(f'{PRIMARY} is stopped again, or still: starting it later and later')} == {'INFO'}


def test_a_step_that_was_not_sent_is_taken_at_the_next_look() -> None:
    scene = silent()
    scene.run(10.0).cloud.state[PRIMARY] = 'stopped'
    step, scene.resolving = scene.monitor.take_step, CALL_DEADLINE + 1.0
    step('start')
    scene.resolving = 0.0
    assert not scene.steps() and scene.run(20.0).steps() == ['start_instances']


def test_a_type_of_instance_without_an_option_is_stopped_without_it_from_then_on() -> None:
    scene = silent()
    scene.cloud.checks[PRIMARY] = 'impaired'
    scene.cloud.errors['stop_instances'] = [refusal('OperationNotPermitted')]
    scene.run(140.0)
    assert [each.how for each in scene.cloud.calls if each.name == 'stop_instances'] == [
        {'InstanceIds': [PRIMARY], 'Force': False, 'SkipOsShutdown': True},
        {'InstanceIds': [PRIMARY], 'Force': False}, {'InstanceIds': [PRIMARY], 'Force': True}]
    assert not scene.said('could not be')


def test_a_step_without_an_answer_may_have_been_taken() -> None:
    scene = silent()
    scene.cloud.checks[PRIMARY] = 'impaired'
    scene.cloud.errors['stop_instances'] = [LOST]
    assert len(scene.run(75.0).steps()) == 1 and scene.monitor.left_stopped


def test_what_ec2_forbids_in_a_silence_is_an_error_at_once_and_leaves_nobody_stopped() -> None:
    scene = silent()
    scene.cloud.checks[PRIMARY] = 'impaired'
    scene.cloud.errors.update(dict.fromkeys(('replace_route', 'stop_instances'), refusal('UnauthorizedOperation')))
    assert scene.run(75.0).steps() and not scene.monitor.left_stopped
    assert scene.levels(f'{TABLE} is not moved to {SECONDARY} yet (Unauth') == ['ERROR']


# Observing

def test_who_gets_no_answer_or_lacks_a_part_of_it_asks_again_after_a_while_if_all_is_calm() -> None:
    scene = at_rest()
    scene.cloud.errors['*'] = LOST
    scene.monitor.look_now()
    assert scene.run(46.0).said(f'EC2 does not answer {SECONDARY}') == 1 and not scene.said('EC2 does not tell')
    assert [round(gap) for gap in gaps(scene.questions())] == [15] * 3
    scene.cloud.errors, since = {'describe_route_tables': LOST}, scene.now
    assert scene.run(61.0).said('over after ') == 1
    assert [round(gap) for gap in gaps(scene.questions(since))] == [15] * 3


def test_an_error_of_ec2_about_the_states_is_an_answer_and_told_as_it_is() -> None:
    scene = silent()
    scene.cloud.errors['describe_instance_status'] = refusal('Unavailable', 'see {x}')
    assert scene.run(10.0).claims()
    assert scene.said(f'{PRIMARY} is silent, and EC2 answered Unavailable: see {{x}}: taking over') == 1


@pytest.mark.parametrize('call, pauses', [('describe_instance_status', (5.0, 15.0)),
                                          ('describe_route_tables', (5.0, 50.0))])
def test_who_has_nothing_to_claim_asks_a_throttling_ec2_later(call: str, pauses: Tuple[float, float]) -> None:
    scene = silent().run(10.0)
    since, scene.cloud.errors[call] = scene.now, BUSY
    asked = gaps(scene.run(300.0).questions(since=since))[1:]
    assert pauses in scene.jitter and not scene.steps() and min(asked) >= sum(pauses) / 2
    scene.monitor.memory.failures, since = [0.0], scene.now + 60.0  # what is refused is claimed all the same
    assert max(gaps(scene.run(200.0).questions(since=since))) < sum(pauses) / 2


def test_a_signal_while_ec2_is_asked_has_it_asked_again_at_once() -> None:
    scene = at_rest()

    def hup(networks: Any) -> str:
        if not scene.questions():
            scene.monitor.look_now()
        return ''
    scene.monitor.ec2.nat_fault = hup
    scene.monitor.look_now()
    assert len(scene.run(5.0).questions()) == 2


def test_a_client_without_credentials_is_made_anew_and_one_that_cannot_be_made_or_comes_late_is_told() -> None:
    scene = at_rest()
    scene.cloud.errors['describe_instance_status'] = [refusal('AuthFailure')]
    scene.connections = [OSError('no memory')]
    assert scene.run(250.0).made == 3
    assert scene.levels(f'{SECONDARY} cannot make an EC2 client (client: OSError: no memory)') == ['INFO'] * 2
    assert scene.levels(f'EC2 does not tell {SECONDARY} states: AuthFailure: said EC2') == ['INFO'] * 2

    scene.monitor.ec2.client, scene.latency = None, 7.0  # the making takes longer than a call may
    scene.monitor.look_now()
    scene.run(8.0).latency = 0.1
    assert scene.run(60.0).made == 4


def test_what_ec2_does_not_know_is_told() -> None:
    scene = at_rest()
    scene.cloud.hidden = PRIMARY  # left out of one answer, it is pinged as before
    assert scene.run(300.0).said('EC2 does not know') == scene.said('missed') == 0
    assert not scene.monitor.memory.history[-1].tells_tags
    scene.cloud.hidden, scene.cloud.calls, scene.cloud.allocated = '', [], False
    del scene.cloud.state[PRIMARY]
    scene.monitor.look_now()
    assert scene.run(40.0).levels(f'EC2 does not know {ADDRESS} and {PRIMARY}') == ['INFO']
    assert scene.said(f'{PRIMARY} missed 3 pings in a row') == 1 and scene.cloud.routes[TABLE] == SECONDARY


def test_a_part_outside_the_pair_is_told_and_left_there_but_by_the_primarys_start() -> None:
    assert Scene(primary=True, holder=OUTSIDE).run(60.0).cloud.owner == PRIMARY
    scene = Scene(holder=OUTSIDE).run(300.0)
    assert scene.levels('outside the pair') == ['WARNING'] and not scene.claims()


@pytest.mark.parametrize('start', [True, False])
def test_who_has_its_source_check_on_claims_nothing_until_it_is_off(start: bool) -> None:
    scene = Scene(True, SECONDARY) if start else silent(True, SECONDARY, fail_back=False)
    scene.cloud.checked.add(PRIMARY)
    assert not scene.run(300.0).claims() and not scene.steps()
    assert scene.said(f'{PRIMARY} cannot NAT (its') and scene.said(f'--instance-id {PRIMARY} --no-source-dest-check')
    scene.cloud.checked.clear()
    assert scene.run(130.0).cloud.owner == PRIMARY and scene.said('over after')


def test_one_that_holds_with_its_source_check_on_is_relieved_but_not_by_one_that_has_the_same() -> None:
    scene = at_rest()
    for _ in range(3):
        scene.cloud.checked, since = {PRIMARY}, scene.now
        assert len(scene.run(130.0).claims(since=since)) == 2
        scene.cloud.checked = set()
        scene.run(130.0).cloud.routes, scene.cloud.owner = {TABLE: PRIMARY}, PRIMARY
        scene.run(130.0)
    assert [level for level, message in scene.lines if f'{PRIMARY} --no-source-dest-check' in message][0] == 'ERROR'
    scene.cloud.checked, since = {PRIMARY, SECONDARY}, scene.now
    assert not scene.run(600.0).claims(since=since)
    assert scene.said(f'{PRIMARY} cannot NAT (') and scene.said(f'{SECONDARY} cannot NAT (')


def test_this_host_is_judged_by_the_way_to_the_peer_until_the_private_networks_are_told() -> None:
    scene = Scene(tables=(TABLE, SECOND))
    scene.cloud.errors['describe_subnets'] = [LOST]
    assert scene.run(130.0).judged == ['10.0.0.1/32']
    assert scene.run(130.0).judged == ['10.0.1.0/24', '10.0.2.0/24'] and len(scene.times('describe_subnets')) == 2


def test_who_this_is_is_asked_for_as_long_as_it_takes() -> None:
    scene = Scene()
    scene.metadata['instance-id'] = [OSError('no route'), OSError('no route'), SECONDARY]
    scene.until = START + 30.0
    with pytest.raises(Ending):
        scene.monitor.run()
    assert scene.levels('the metadata service does not tell instance-id: OSError: no route') == ['INFO'] * 2
    assert scene.jitter[:2] == [(0.5, 3.0)] * 2 and scene.said('over after ') == 1
    assert scene.said(f'watching {PRIMARY} from {SECONDARY}, the secondary') == 1


def test_what_is_unforeseen_is_logged_with_its_traceback_and_the_loop_goes_on() -> None:
    scene, outcomes = Scene(), [True, RuntimeError('odd'), True]
    scene.outcome = lambda now: outcomes.pop(0) if outcomes else True
    scene.until = START + 30.0
    with pytest.raises(Ending):
        scene.monitor.run()
    [error, _] = [message for level, message in scene.lines if level == 'ERROR']  # and its end
    assert 'something unforeseen (RuntimeError: odd) and goes on; run on' in error
    assert scene.said('Traceback') == 1
    assert scene.pings[2] - scene.pings[1] == pytest.approx(5.0, abs=0.01) and len(scene.pings) > 50


def test_an_error_in_the_middle_of_a_look_does_not_end_all_looking() -> None:
    scene = at_rest()
    scene.outcome = lambda now: MemoryError('no memory') if scene.cloud.calls else True
    scene.monitor.look_now()
    scene.cloud.slow['describe_instances'] = 1.0
    with pytest.raises(MemoryError):
        scene.run(10.0)
    scene.outcome = lambda now: True
    assert len(scene.run(20.0).questions()) > 1


# Rehearsals

def test_all_calls_of_a_failover_are_rehearsed_once() -> None:
    scene = Scene(tables=tuple(f'rtb-0000000{n}' for n in range(6))).run(600.0)
    rehearsed = [(each.at, each.name) for each in scene.cloud.calls if each.how.get('DryRun')]
    assert len({at for at, _ in rehearsed}) == 1 and len(rehearsed) == 15
    assert {name for _, name in rehearsed} == {*CLAIMS, 'stop_instances', 'start_instances'}


@pytest.mark.parametrize('code', ['UnauthorizedOperation', 'RequestLimitExceeded', ''])
def test_what_is_not_allowed_is_an_error_and_is_rehearsed_until_it_is(code: str) -> None:
    scene = Scene()
    scene.cloud.errors['start_instances'] = refusal(code) if code else LOST
    asked = scene.run(300.0).times('start_instances', dry=True)

    assert gaps(asked) == pytest.approx([120.0] * (len(asked) - 1), abs=1.0) and len(asked) > 2
    assert len(scene.times('stop_instances', dry=True)) == 1
    told = [(level, message) for level, message in scene.lines if 'does not allow' in message]
    assert told[:1] == (code == 'UnauthorizedOperation') * [('ERROR', (
        f'the role of {SECONDARY} does not allow StartInstances on {PRIMARY}: a failover would fail; run on '
        f'{SECONDARY}: nat_monitor.py --check'))]
    del scene.cloud.errors['start_instances']
    rehearsed = len(scene.run(140.0).times('start_instances', dry=True))
    assert scene.levels('s: the role of') == ['ERROR'] * len(told[:1])  # its end
    assert len(scene.run(300.0).times('start_instances', dry=True)) == rehearsed


def test_what_credentials_kept_ec2_from_telling_is_rehearsed_again_and_all_with_other_ones() -> None:
    scene = Scene()
    scene.cloud.errors.update(
        stop_instances=[refusal('AuthFailure')], describe_instance_status=[None, None, refusal('AuthFailure')])
    scene.run(400.0)
    assert (len(scene.times('start_instances', dry=True)), len(scene.times('stop_instances', dry=True))) == (2, 3)


# Probes

def test_who_does_not_hold_probes_the_peer_every_five_seconds_and_delays_no_ping() -> None:
    scene = probing().run(60.0)
    assert {scene.probes.count((at, False)) for at in through(scene)} == {1}  # one by the own route beside each
    assert len(scene.probes) in (22, 24, 26) and all(4.9 <= gap <= 5.3 for gap in gaps(through(scene)))
    assert all(b - a < 0.27 for a, b in zip(scene.pings, scene.pings[1:]) if a not in scene.questions())
    assert max(gaps(through(probing(wait_between_pings=60.0).run(90.0)))) < 5.3


@pytest.mark.parametrize('how', ['holder', 'no address', 'misses pings', 'never answered'])
def test_nobody_is_probed_who_does_not_serve_or_misses_pings_or_has_not_answered(how: str) -> None:
    scene = probing(primary=how == 'holder', num_pings=100, probe_address=None if how == 'no address' else TARGET)
    if how == 'misses pings':
        scene.silence()
        scene.run(1.5).probes.clear()
    elif how == 'never answered':
        scene = Scene(probe_address=TARGET)
        scene.outcome = lambda now: OwnFault('no route')
    assert scene.run(30.0).probes == []


def test_a_peer_that_forwards_no_more_is_relieved_after_probes_beside_it_and_ec2s_answer() -> None:
    scene = probing(forwards_not)
    memory, scene.cloud.errors['associate_address'] = scene.monitor.memory, [BUSY]
    memory.reliefs, memory.here_at[TABLE] = [scene.now - 90000.0, old := scene.now - 80000.0], scene.now  # a day: 86400
    claimed = scene.run(60.0).claims()[0]
    lost = [at for at in through(scene) if at <= claimed]
    assert len(lost) == 4 and lost[1] - lost[0] == pytest.approx(1.0, abs=0.3)  # at once after a miss
    asked = max(at for at in scene.questions() if at < claimed)
    assert lost[2] < asked and asked + scene.latency <= lost[3] + 1e-6
    assert (scene.cloud.routes[TABLE], scene.cloud.owner) == (SECONDARY, SECONDARY)
    assert scene.said(f'{PRIMARY} answers pings, but it lets no packet through') == 1
    assert scene.levels(words := f'a packet through {PRIMARY} to {TARGET} did not come back') == ['INFO']
    assert scene.run(200.0).levels(words) == ['INFO', 'ERROR'] and words in scene.status['troubles'][0]
    assert 3 <= len(scene.questions(since=scene.now - 200.0)) <= 6
    assert not scene.steps() and max(b - a for a, b in zip(scene.pings, scene.pings[1:])) < 0.27
    scene.probed = lambda now, by_peer: True
    assert not scene.run(60.0).status['troubles'] and scene.run(20.0).probes[-1][0] < scene.now - 30.0
    assert memory.reliefs == pytest.approx([old, claimed], abs=0.2)


@pytest.mark.parametrize('error', [BUSY, ConnectionResetError('on its way')])
def test_a_relief_by_which_no_table_comes_here_is_none(error: Any) -> None:
    scene = at_rest(True, SECONDARY, probe_address=TARGET, fail_back=False)
    scene.probed, scene.cloud.errors = forwards_not, {'replace_route': error, 'associate_address': error}
    assert scene.run(90.0).cloud.routes[TABLE] == SECONDARY
    scene.cloud.errors.clear()
    assert scene.run(90.0).cloud.routes[TABLE] == PRIMARY


def test_where_ec2_did_not_answer_a_probe_follows_its_first_answer() -> None:
    """Else the relief comes a minute late."""
    scene = probing(forwards_not)
    scene.cloud.errors['*'] = LOST
    since = scene.run(40.0).now
    scene.cloud.errors.clear()
    claimed = scene.run(20.0).claims()[0]
    answered = scene.questions(since=since)[0] + scene.latency
    assert min(at for at in through(scene) if at >= answered - 1e-6) - answered < 0.3
    assert claimed - answered < 2.0


@pytest.mark.parametrize('outcome', [
    lambda now, by_peer: False,
    lambda now, by_peer: False if by_peer else OwnFault('no route'),
    lambda now, by_peer: OwnFault('no buffer') if by_peer else True,
    lambda now, by_peer: NoAnswer('not in this subnet') if by_peer else True,
    lambda now, by_peer: now > START + 125.5], ids=range(5))
def test_a_probe_lost_alone_or_by_the_own_route_too_or_that_could_not_be_sent_decides_nothing(outcome: Any) -> None:
    scene = probing(outcome).run(119.0)
    assert not scene.claims() and len(scene.questions()) < 3


def test_misses_count_only_once_a_probe_was_answered() -> None:
    scene = Scene(probe_address=TARGET)
    scene.probed = forwards_not
    scene.run(300.0)
    assert not scene.claims() and len(scene.questions()) < 5 and min(gaps(through(scene))) > 4.8
    words = f'a packet through {PRIMARY} to {TARGET} did not come back; none did yet, so nothing is decided by that'
    assert scene.levels(words) == ['INFO', 'ERROR']
