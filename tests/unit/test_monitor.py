"""The loop in virtual time: pings, looks, claims, steps, probes, rehearsals, and what is told of them."""
from __future__ import annotations

import email.utils
import time
import types
from typing import Any, List, Tuple

import pytest
from botocore.exceptions import ClientError

from nat_monitor import CALL_DEADLINE, NoAnswer, NoNeighbour, OwnFault
from tests.unit.scene import (ADDRESS, CLAIMS, LOST, OUTSIDE, PRIMARY, SECOND, SECONDARY, START, TABLE, TARGET, Ending,
                              Scene, at_rest, refusal)

BUSY, DENIED = refusal('RequestLimitExceeded'), refusal('UnauthorizedOperation')


def gaps(times: List[float]) -> List[float]:
    return [round(later - earlier, 1) for earlier, later in zip(times, times[1:])]


def test_while_all_is_well_it_pings_asks_now_and_then_and_says_who_holds() -> None:
    scene = Scene().run(400.0)

    assert {round(later - earlier, 3) for earlier, later in zip(scene.pings, scene.pings[1:])} == {0.251}
    assert [round(gap) for gap in gaps(scene.questions())] == [120, 120, 120]
    assert [message for _, message in scene.lines] == [f'{TABLE} and {ADDRESS} at {PRIMARY}', f'{PRIMARY} answers']
    assert not scene.claims() and not scene.steps()


# Silence and judgement

@pytest.mark.parametrize('latency', [0.1, 1.4, 4.0])
@pytest.mark.parametrize('num_pings', [2, 3])
def test_the_ping_that_decides_is_sent_after_ec2_has_answered(latency: float, num_pings: int) -> None:
    scene = at_rest(num_pings=num_pings)
    scene.latency, begins = latency, scene.silence()

    scene.run(15.0)

    claimed = scene.claims()[0]
    decisive = max(sent for sent in scene.pings if sent < claimed)
    answered = max(asked + latency for asked in scene.questions() if asked + latency <= claimed)
    assert decisive >= answered - 1e-6
    assert claimed - begins < 2.0 + max(num_pings - 2.0, latency) + 0.3
    assert scene.said(f'{PRIMARY} missed {num_pings} pings in a row') == 1


def test_a_start_pings_before_it_judges_what_ec2_tells_at_last() -> None:
    """Until then the peer's address was not known; the next look would be two minutes later."""
    scene = Scene(primary=True, holder=SECONDARY)
    scene.monitor.chance = types.SimpleNamespace(uniform=lambda low, high: 1.5)  # no ping is due when EC2 answers
    scene.cloud.errors['describe_instance_status'] = [LOST] * 3
    scene.cloud.errors['describe_instances'] = [LOST] * 3
    scene.run(60.0)

    assert set(scene.claims()) and scene.said('is the primary and has started: claiming') == 1


def test_a_start_that_claims_later_looks_when_it_is_time() -> None:
    scene = Scene(primary=True, holder=SECONDARY, fail_back=200).run(300.0)

    assert [round(at - START) for at in scene.claims()] == [200, 200]


@pytest.mark.parametrize('error', [LOST, NoAnswer('a page of a proxy')])
def test_who_is_cut_off_from_ec2_decides_nothing(error: Exception) -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['*'] = error

    scene.run(100.0)

    assert not scene.claims() and not scene.steps()
    assert scene.said('EC2 does not answer this monitor') == 2  # once a minute
    assert (1.0, 3.0) in scene.jitter and max(gaps(scene.questions())) < 3.5


@pytest.mark.parametrize('primary, misses', [(False, 3), (True, 6)])
def test_the_primary_waits_for_twice_as_many_misses(primary: bool, misses: int) -> None:
    scene = at_rest(primary, SECONDARY if primary else PRIMARY, fail_back=False)
    begins = scene.silence()

    scene.run(20.0)

    assert misses - 0.1 < scene.claims()[0] - begins < misses + 0.4
    assert scene.said(f'missed {misses} pings in a row') == 1


@pytest.mark.parametrize('num_pings, asked', [(3, [1]), (4, [1]), (12, [1, 7])])
def test_ec2_is_asked_at_the_first_miss_and_soon_again(num_pings: int, asked: List[int]) -> None:
    scene = at_rest(num_pings=num_pings)
    begins = scene.silence()

    scene.run(num_pings + 0.3)

    assert [round(at - begins) for at in scene.questions()] == asked


def test_a_question_just_before_the_silence_puts_off_the_next_one_but_not_beyond_the_last_ping() -> None:
    scene = at_rest()
    scene.monitor.look_now()
    scene.run(0.2)
    begins = scene.silence()

    scene.run(3.5)

    assert [round(at - begins) for at in scene.questions()] == [0, 2]


@pytest.mark.parametrize('heard', [1, 3])
def test_ec2_is_asked_once_in_three_seconds_however_many_pings_are_lost(heard: int) -> None:
    """One miss after another, or two in a row, each of which might decide with the next one."""
    scene, sent = at_rest(), [0]

    def flapping(now: float) -> bool:
        sent[0] += 1
        return sent[0] % (heard + 2 if heard > 1 else 2) >= (2 if heard > 1 else 1)
    scene.outcome = flapping

    scene.run(60.0)

    assert 12 <= len(scene.questions()) <= 22 and not scene.claims()


@pytest.mark.parametrize('num_pings, errors, no_claim_for', [(3, 9, 12.0), (10, 4, 13.0)])
def test_an_observation_from_before_the_silence_or_that_is_too_old_judges_nobody(
        num_pings: int, errors: int, no_claim_for: float) -> None:
    scene = at_rest(num_pings=num_pings)
    scene.cloud.errors['describe_instance_status'] = [None] + [LOST] * errors
    if num_pings == 3:  # it is in flight when the path is cut
        scene.latency = 1.0
        scene.monitor.look_now()
    scene.silence(0.5)

    scene.run(no_claim_for)
    assert not scene.claims()

    scene.run(40.0)
    assert scene.claims()


def test_an_observation_serves_once() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['replace_route'] = DENIED

    scene.run(60.0)

    claims, questions = scene.times('replace_route'), scene.questions()
    assert len(claims) > 5
    assert all(any(before <= asked < after for asked in questions) for before, after in zip(claims, claims[1:]))


@pytest.mark.parametrize('between', [OwnFault('the way to it is by wg0'), 60.0])
def test_a_ping_that_could_not_leave_or_a_suspension_starts_the_run_of_misses_anew(between: Any) -> None:
    scene = at_rest()
    outcomes = [False, False, between, False, False]
    scene.outcome = lambda now: outcomes.pop(0) if outcomes else True

    scene.run(70.0)

    assert not scene.said('missed') and not scene.claims()
    assert scene.said('could not leave this host (the way to it is by wg0): trying again') == isinstance(between, OwnFault)


def test_a_ping_that_could_not_leave_is_tried_again_a_second_later_and_an_error_after_two_minutes() -> None:
    scene = at_rest()
    scene.outcome = lambda now: OwnFault('the way to it is by wg0')

    scene.run(119.0)
    assert 100 < len(scene.pings) < 122
    assert not [message for level, message in scene.lines if level == 'ERROR'] and not scene.claims()
    assert scene.said('by wg0') == 2  # once a minute

    scene.run(62.0)
    assert [level for level, message in scene.lines if 'by wg0' in message][-1] == 'ERROR'
    scene.outcome = lambda now: True
    scene.run(2.0)
    assert scene.said('over after 18') == 1


@pytest.mark.parametrize('takes, counts', [(2.9, True), (3.1, False)])
def test_a_ping_that_took_a_second_longer_than_it_can_was_suspended(takes: float, counts: bool) -> None:
    scene = at_rest(ping_timeout=2.0)
    outcomes = [False, False, takes]
    scene.outcome = lambda now: outcomes.pop(0) if outcomes else True

    assert bool(scene.run(20.0).said('missed 3 pings')) is counts


@pytest.mark.parametrize('jump, counts', [(6.9, True), (7.1, False), (55.0, False)])
def test_a_suspension_between_two_pings_starts_the_run_anew_too(jump: float, counts: bool) -> None:
    """A late call does not: the two are told apart by the time that a call may take."""
    scene = at_rest(num_pings=6)
    scene.silence(lasts=jump + 7.0)
    scene.run(3.5)

    scene.now += jump

    assert bool(scene.run(10.0).said('missed 6 pings')) is counts


def test_that_the_peer_answers_again_is_told_after_as_many_misses_as_are_silence() -> None:
    scene = at_rest(primary=True)
    scene.silence(lasts=2.5)
    assert scene.run(20.0).said(f'{SECONDARY} answers again after 3 missed pings') == 1

    scene.silence(lasts=1.5)
    assert scene.run(20.0).said('answers again') == 1
    assert all(message for _, message in scene.lines)


# Claims

def test_a_claim_moves_tables_and_address_at_the_same_moment() -> None:
    scene = at_rest(tables=(TABLE, SECOND))
    scene.silence()

    scene.run(10.0)

    assert len(scene.claims()) == 3 and len(set(scene.claims())) == 1
    assert [each.name for each in scene.cloud.calls if each.name in CLAIMS][-1] == 'associate_address'
    assert (scene.cloud.routes, scene.cloud.owner) == (dict.fromkeys((TABLE, SECOND), SECONDARY), SECONDARY)
    assert scene.said(f'taking over {TABLE} and {SECOND} and {ADDRESS}') == 1
    assert scene.said(f'{TABLE} and {SECOND} and {ADDRESS} at {SECONDARY}') == 1
    claimed, then = scene.claims()[0], scene.questions(since=scene.claims()[0])[0]
    assert any(claimed < at < then for at in scene.cloud.closed)  # its move kills the connections
    assert 2.5 < then - claimed < 4.1


def test_the_address_waits_for_a_table_that_was_refused_and_follows_it_without_another_question() -> None:
    scene = at_rest(ping_timeout=0.1)
    scene.silence()
    scene.cloud.errors['replace_route'] = [BUSY] * 4
    scene.cloud.errors['associate_address'] = [BUSY]

    scene.run(60.0)

    tables, addresses = scene.times('replace_route'), scene.times('associate_address')
    assert addresses[0] == tables[0]
    assert len(tables) == 5 and 0.0 < addresses[1] - tables[4] < 0.6
    assert not [at for at in scene.questions() if tables[4] <= at <= addresses[1]]
    assert scene.cloud.owner == SECONDARY
    assert scene.said(f'{TABLE} could not be moved to {SECONDARY} (RequestLimitExceeded: said EC2): trying again') == 1


@pytest.mark.parametrize('table, comes', [(OUTSIDE, True), (SECONDARY, False), (None, True)])
def test_the_address_comes_alone_only_where_the_peer_does_not_keep_the_route(table: Any, comes: bool) -> None:
    scene = at_rest(primary=True, holder=SECONDARY, fail_back=False)
    scene.cloud.routes[TABLE] = table
    scene.cloud.errors.update(dict.fromkeys(('replace_route', 'create_route'), DENIED))
    scene.run(130.0).silence()

    scene.run(60.0)

    assert len(scene.times('associate_address')) == 1 + (not comes) * 0
    assert scene.cloud.owner == PRIMARY


def test_a_move_of_the_address_without_an_answer_is_asked_about_at_once_and_not_repeated_while_ec2_throttles() -> None:
    scene = at_rest()
    begins = scene.silence()
    scene.cloud.errors['associate_address'] = LOST
    scene.cloud.errors['describe_addresses'] = [None, BUSY, BUSY, BUSY, BUSY, BUSY]

    scene.run(20.0)

    assert scene.questions(since=scene.claims()[0])[0] - scene.claims()[0] < 1.1
    assert scene.said('asking EC2 where it is') == 1
    assert scene.cloud.owner == SECONDARY and len(scene.times('associate_address')) == 1
    scene.cloud.errors['describe_addresses'] = LOST
    scene.run(70.0)
    assert len(scene.times('associate_address', since=begins + 20.0)) > 1


@pytest.mark.parametrize('call, deadline', [('associate_address', 1.5), ('replace_route', CALL_DEADLINE)])
def test_the_answer_to_a_move_of_the_address_is_not_awaited_for_long(call: str, deadline: float) -> None:
    scene = at_rest(ping_timeout=0.1, elastic_ip=ADDRESS if deadline == 1.5 else None)
    scene.silence()
    scene.cloud.slow[call] = 9.0

    scene.run(10.0)

    claimed = scene.claims()[0]
    assert scene.questions(since=claimed)[0] - claimed == pytest.approx(deadline, abs=0.2)
    assert bool(scene.said('EC2 does not answer this monitor')) is (deadline == CALL_DEADLINE)


def refused_for_long(code: str) -> List[float]:
    """Return the pauses between the claims of a table that EC2 refuses with this code."""
    scene = at_rest(elastic_ip=None, ping_timeout=0.4)
    scene.silence()
    scene.cloud.state[PRIMARY] = 'pending'
    scene.cloud.errors['replace_route'] = refusal(code)
    scene.run(2500.0)
    assert not scene.times('describe_addresses')
    return gaps(scene.claims())


def test_claims_that_are_refused_are_made_again_at_once_then_with_jitter_then_slow_down() -> None:
    pauses = refused_for_long('UnauthorizedOperation')

    assert pauses[0] < 1.3
    assert all(2.0 < pause < 8.0 for pause in pauses[1:19])
    assert all(60.0 <= pause < 67.0 for pause in pauses[20:30])
    assert all(300.0 <= pause < 307.0 for pause in pauses[30:]) and len(pauses) > 32


def test_claims_do_not_slow_down_where_ec2_is_only_busy_but_at_once_where_it_refuses_the_credentials() -> None:
    assert max(refused_for_long('RequestLimitExceeded')) < 9.0
    assert min(refused_for_long('AuthFailure')[1:]) > 59.0


def test_an_accepted_claim_ends_the_count_of_refusals() -> None:
    scene = at_rest(ping_timeout=0.1)
    scene.silence()
    scene.cloud.errors['replace_route'] = [BUSY] * 3
    scene.run(40.0)
    scene.cloud.routes[TABLE], since = None, scene.now
    scene.cloud.errors['replace_route'] = [BUSY] * 2

    scene.run(30.0)

    assert gaps(scene.times('replace_route', since=since))[0] < 0.6


def test_a_start_that_ec2_refuses_asks_no_more_often_than_it_claims() -> None:
    scene = Scene(primary=True, holder=SECONDARY)
    scene.cloud.errors.update(dict.fromkeys(('replace_route', 'create_route'), DENIED))
    scene.run(600.0).cloud.calls.clear()

    scene.run(1200.0)

    assert len(scene.questions()) < 60 and len(scene.claims()) > 2


# Restart

def test_a_peer_that_ec2_fails_is_stopped_forced_started_and_awaited() -> None:
    scene = at_rest()
    begins = scene.silence()
    scene.run(50.0)
    assert not scene.steps() and not scene.monitor.left_stopped
    assert scene.said('it is stopped once it fails its status checks') == 1  # a reason is told when it is news

    scene.cloud.checks[PRIMARY] = 'impaired'
    scene.run(50.0)
    assert scene.steps() == ['stop_instances']
    assert 80.0 <= scene.times('stop_instances')[0] - begins < 100.0
    assert scene.monitor.left_stopped and scene.said(f'{PRIMARY} is being stopped') == 1

    scene.run(65.0)
    assert scene.steps() == ['stop_instances', 'stop_instances by force']
    stops = [each.how for each in scene.cloud.calls if each.name == 'stop_instances']
    assert [each.get('SkipOsShutdown') for each in stops] == [True, True]
    assert scene.said(f'{PRIMARY} is being forced: starting it once it is stopped') == 1

    scene.cloud.state[PRIMARY] = 'stopped'
    scene.run(7.0)
    assert scene.steps()[2:] == ['start_instances']
    assert scene.said(f'{PRIMARY} is being started: waiting for its answer') == 1 and scene.monitor.left_stopped

    scene.outcome = lambda now: True
    scene.run(3.0)
    assert not scene.monitor.left_stopped and scene.lines[-1] == ('INFO', f'{PRIMARY} answers')
    scene.silence()
    scene.cloud.state[PRIMARY] = 'stopped'  # by somebody
    assert not scene.run(10.0).monitor.left_stopped


@pytest.mark.parametrize('code, pauses', [('UnauthorizedOperation', [60, 120, 240]),
                                          ('RequestLimitExceeded', [90, 90, 90, 90])])
def test_a_step_that_is_refused_is_asked_for_again_later_and_later(code: str, pauses: List[int]) -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.state[PRIMARY] = 'stopped'
    scene.cloud.errors['start_instances'] = refusal(code)

    scene.run(450.0)

    asked = scene.times('start_instances')
    assert all(due <= pause < due + 8.0 for due, pause in zip(pauses, gaps(asked)))
    assert len(asked) == len(pauses) + 1
    assert scene.said(f'{PRIMARY} could not be started: {code}') >= 1 and not scene.said('is being started')
    assert not scene.monitor.left_stopped


def test_a_step_without_an_answer_may_have_been_taken() -> None:
    scene = at_rest()
    scene.cloud.checks[PRIMARY] = 'impaired'
    scene.silence()
    scene.cloud.errors['stop_instances'] = [LOST]

    scene.run(75.0)

    assert scene.monitor.left_stopped and len(scene.steps()) == 1
    assert any(0.0 <= at - scene.times('stop_instances')[0] < 1.2 for at in scene.cloud.closed)


# Observing

def test_sighup_asks_ec2_at_once() -> None:
    scene = at_rest()

    scene.monitor.look_now()

    assert len(scene.run(0.5).questions()) == 1


def test_a_question_that_gets_no_answer_is_asked_again_after_a_while() -> None:
    scene = at_rest()
    scene.cloud.errors['*'] = LOST
    scene.monitor.look_now()

    scene.run(46.0)
    assert [round(gap) for gap in gaps(scene.questions())] == [15, 15, 15]
    assert scene.said('EC2 does not answer this monitor') == 1

    scene.cloud.errors = {'describe_route_tables': LOST}
    scene.run(46.0)
    assert scene.said('over after ') == 1
    assert [round(gap) for gap in gaps(scene.questions())] == [15, 15, 15, 15, 15, 15]


def test_a_miss_while_ec2_is_asked_lets_it_be_asked_again_soon() -> None:
    scene = at_rest(num_pings=10)
    scene.latency = 4.0
    scene.monitor.look_now()
    scene.silence(0.3)

    assert 4.0 <= gaps(scene.run(8.0).questions())[0] < 6.5


def test_an_error_of_ec2_about_the_states_is_an_answer_and_told_as_it_is() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['describe_instance_status'] = refusal('Unavailable', 'see {x}')

    scene.run(10.0)

    assert scene.claims()
    assert scene.said(f'{PRIMARY} is silent, and EC2 answered Unavailable: see {{x}}: taking over') == 1


@pytest.mark.parametrize('call, pauses', [('describe_instance_status', (5.0, 15.0)),
                                          ('describe_route_tables', (5.0, 50.0))])
def test_who_has_nothing_to_claim_asks_a_throttling_ec2_later(call: str, pauses: Tuple[float, float]) -> None:
    scene = at_rest()
    scene.silence()
    scene.run(10.0)
    assert scene.cloud.owner == SECONDARY
    since, scene.cloud.errors[call] = scene.now, BUSY

    scene.run(300.0)

    asked = gaps(scene.questions(since=since))[1:]
    assert pauses in scene.jitter and not scene.steps()
    assert all(sum(pauses) / 2 <= gap < sum(pauses) / 2 + 4.0 or gap >= 15.0 for gap in asked)


def test_claims_do_not_wait_for_an_ec2_that_throttles_the_questions() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors.update(dict.fromkeys(
        ('describe_instance_status', 'describe_route_tables', 'describe_addresses', 'replace_route'), BUSY))

    claims = scene.run(100.0).times('replace_route')

    assert len(claims) > 10 and max(gaps(claims)) < 9.0


def test_nobody_is_pinged_before_ec2_has_told_its_address() -> None:
    scene = Scene()
    scene.cloud.errors['*'] = LOST

    assert scene.run(60.0).pings == [] and not scene.said('missed')


def test_a_clock_that_is_wrong_is_told() -> None:
    scene, date = at_rest(), email.utils.formatdate(time.time() + 3600.0)
    answer: Any = {'Error': {'Code': 'RequestExpired'}, 'ResponseMetadata': {'HTTPHeaders': {'date': date}}}
    scene.cloud.errors['describe_instance_status'] = [ClientError(answer, 'Call')]

    scene.run(250.0)

    assert [scene.said(f'{words}the clock of this host is off by ') for words in ('', 'over after 120 s: ')] == [2, 1]


def test_each_look_has_connections_of_its_own() -> None:
    scene = at_rest()
    scene.cloud.closed.clear()

    assert scene.run(250.0).cloud.closed == scene.questions() and len(scene.questions()) == 2


def test_a_client_without_credentials_is_made_anew_and_one_that_cannot_be_made_is_told() -> None:
    scene = at_rest()
    scene.cloud.errors['describe_instance_status'] = [refusal('AuthFailure')]
    scene.connections = [OSError('no memory')]

    scene.run(250.0)

    assert scene.made == 3
    assert scene.said('no EC2 client could be made (client: OSError: no memory): trying again') == 1
    assert scene.said('EC2 does not tell states: AuthFailure: said EC2: asking again') == 1


def test_a_client_that_comes_too_late_serves_the_next_time() -> None:
    scene = Scene().run(10.0)
    scene.monitor.ec2.client = None
    scene.latency = 7.0  # the making takes longer than a call may
    made = scene.made
    scene.monitor.look_now()
    scene.run(8.0)
    scene.latency = 0.1

    assert scene.run(60.0).made == made + 1


def test_what_ec2_does_not_know_is_told_and_looked_for_every_fifteen_seconds() -> None:
    scene = at_rest()
    scene.cloud.allocated = False
    scene.monitor.look_now()
    assert len(scene.run(61.0).questions()) == 5

    del scene.cloud.state[PRIMARY]
    scene.run(40.0)
    assert scene.said(f'EC2 does not know {ADDRESS} and {PRIMARY}: looking for it again') == 1
    assert scene.said(f'{PRIMARY} missed 3 pings in a row') == 1
    assert scene.cloud.routes[TABLE] == SECONDARY


def test_a_peer_that_one_answer_leaves_out_is_pinged_as_before() -> None:
    scene = at_rest()
    scene.cloud.hidden = PRIMARY
    scene.monitor.look_now()

    assert scene.run(300.0).said('EC2 does not know') == scene.said('missed') == 0


def test_a_host_that_cannot_nat_says_so_and_claims_nothing() -> None:
    scene = at_rest()
    scene.silence()
    scene.fault = 'net.ipv4.ip_forward is 0'

    scene.run(20.0)
    assert scene.said(f'{SECONDARY} cannot NAT (net.ipv4.ip_forward is 0): it claims nothing until then') == 1
    assert not scene.claims()

    scene.fault = ''
    assert scene.run(20.0).claims()


def test_a_part_outside_the_pair_is_told_and_left_there_but_by_the_primarys_start() -> None:
    scene = Scene(primary=True, holder=OUTSIDE).run(60.0)
    assert scene.cloud.owner == PRIMARY and scene.said(f'{TABLE} and {ADDRESS} at {PRIMARY}') == 1

    scene = Scene(holder=OUTSIDE).run(300.0)
    assert [level for level, message in scene.lines if 'outside the pair' in message] == ['WARNING']
    assert not scene.claims()


def test_who_this_is_is_asked_for_as_long_as_it_takes() -> None:
    scene = Scene()
    scene.metadata['instance-id'] = [OSError('no route'), OSError('no route'), SECONDARY]
    scene.until = START + 30.0

    with pytest.raises(Ending):
        scene.monitor.run()

    assert scene.said('the metadata service does not tell instance-id: OSError: no route: asking again') == 1
    assert scene.jitter[:2] == [(0.5, 3.0)] * 2
    assert scene.said('over after ') == 1
    assert scene.said(f'watching {PRIMARY} from {SECONDARY}, the secondary') == 1


def test_what_is_unforeseen_is_logged_with_its_traceback_and_the_loop_goes_on() -> None:
    scene = Scene()
    outcomes: List[Any] = [True, RuntimeError('odd'), True]
    scene.outcome = lambda now: outcomes.pop(0) if outcomes else True
    scene.until = START + 30.0

    with pytest.raises(Ending):
        scene.monitor.run()

    errors = [message for level, message in scene.lines if level == 'ERROR']
    assert errors[0].startswith('Traceback') and 'RuntimeError: odd' in errors[-1]
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


# The watcher of the watcher

def watched_lines(scene: Scene) -> List[Tuple[str, str]]:
    return [line for line in scene.lines if 'has sent no ping' in line[1]]


def test_a_peer_that_answers_while_its_monitor_sends_no_ping_for_five_minutes_is_an_error() -> None:
    scene = at_rest()
    scene.peer_pings = False
    scene.run(290.0)
    assert not watched_lines(scene)

    scene.run(310.0)
    level, message = watched_lines(scene)[0]
    assert level == 'ERROR' and f'the monitor on {PRIMARY} has sent no ping for 300 s' in message
    assert '/usr/local/sbin/nat_monitor.py >> /var/log/nat_monitor.log' in message
    assert message in scene.status['troubles']

    scene.peer_pings = True
    scene.run(130.0)
    assert 'over after' in watched_lines(scene)[-1][1] and not scene.status['troubles']
    assert not scene.claims() and not scene.steps()


def test_with_long_waits_between_pings_it_is_three_waits() -> None:
    scene = at_rest(wait_between_pings=200.0)
    scene.peer_pings = False

    assert not watched_lines(scene.run(450.0)) and watched_lines(scene.run(450.0))


@pytest.mark.parametrize('spare', ['tag', 'silence', 'start'])
def test_it_is_no_error_under_maintenance_nor_of_a_silent_peer_nor_soon_after_its_start(spare: str) -> None:
    scene = at_rest(holder=SECONDARY)
    scene.peer_pings = False
    if spare == 'tag':
        scene.cloud.tags[PRIMARY] = [{'Key': 'nat_monitor_maintenance', 'Value': ''}]
    elif spare == 'silence':
        scene.silence()
    scene.monitor.look_now()
    scene.run(250.0 if spare == 'start' else 800.0)
    if spare == 'start':
        scene.cloud.state[PRIMARY] = 'stopped'
        scene.silence(lasts=40.0)
        scene.run(300.0)

    assert not watched_lines(scene)


# Rehearsals

def test_all_calls_of_a_failover_are_rehearsed_ten_at_a_time_and_once() -> None:
    scene = Scene(tables=tuple(f'rtb-0000000{n}' for n in range(6))).run(600.0)

    rehearsed = [(each.at, each.name) for each in scene.cloud.calls if each.how.get('DryRun')]
    first = rehearsed[0][0]
    assert [at for at, _ in rehearsed[:10]] == [first] * 10 and len(rehearsed) == 15
    assert 15.0 <= rehearsed[10][0] - first < 16.0
    assert {name for _, name in rehearsed} == {*CLAIMS, 'stop_instances', 'start_instances'}


@pytest.mark.parametrize('code, every', [('UnauthorizedOperation', 120.0), ('RequestLimitExceeded', 120.0), ('', 15.0)])
def test_what_is_not_allowed_is_an_error_and_is_rehearsed_until_it_is(code: str, every: float) -> None:
    scene = Scene()
    scene.cloud.errors['start_instances'] = refusal(code) if code else LOST
    scene.run(300.0)

    asked = scene.times('start_instances', dry=True)
    assert gaps(asked) == pytest.approx([every] * (len(asked) - 1), abs=1.0) and len(asked) > 2
    assert len(scene.times('stop_instances', dry=True)) == 1
    told = [(level, message) for level, message in scene.lines if 'does not allow' in message]
    assert told[:1] == (code == 'UnauthorizedOperation') * [('ERROR', (
        f'the role of {SECONDARY} does not allow StartInstances on {PRIMARY}: a failover would fail; attach the '
        'policy in iam_policy.json'))]

    del scene.cloud.errors['start_instances']
    rehearsed = len(scene.run(140.0).times('start_instances', dry=True))
    assert len(scene.run(300.0).times('start_instances', dry=True)) == rehearsed


def test_many_that_are_denied_keep_none_from_being_rehearsed() -> None:
    scene = Scene(tables=tuple(f'rtb-0000000{n}' for n in range(8)))
    scene.cloud.errors.update(dict.fromkeys(('replace_route', 'create_route'), DENIED))

    scene.run(400.0)

    rehearsed = [each.name for each in scene.cloud.calls if each.how.get('DryRun')]
    assert {'stop_instances', 'start_instances', 'associate_address'} <= set(rehearsed)
    assert len(scene.questions()) < 10
    told = [message for _, message in scene.lines if 'does not allow' in message][-1]
    assert told.count('ReplaceRoute') == told.count('CreateRoute') == 8


def test_nothing_is_rehearsed_while_the_peer_is_silent() -> None:
    scene = Scene()
    scene.cloud.errors['start_instances'] = DENIED
    scene.run(50.0).cloud.calls.clear()
    scene.silence()
    scene.cloud.state[PRIMARY] = 'terminated'

    assert not [each for each in scene.run(200.0).cloud.calls if each.how.get('DryRun')]
    assert scene.said('is gone (EC2 calls it terminated)') == 1


# Probes

def probing(**settings: Any) -> Scene:
    return at_rest(**{'probe_address': TARGET, **settings})


def through(scene: Scene) -> List[float]:
    return [at for at, by_peer in scene.probes if by_peer]


def test_who_does_not_hold_probes_the_peer_every_five_seconds_and_delays_no_ping() -> None:
    scene = probing().run(60.0)

    assert {by_peer for _, by_peer in scene.probes} == {True}
    assert len(scene.probes) in (11, 12, 13) and all(4.9 <= gap <= 5.3 for gap in gaps(through(scene)))
    assert all(b - a < 0.27 for a, b in zip(scene.pings, scene.pings[1:]) if a not in scene.questions())


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
    scene = probing()
    broke = scene.now
    scene.probed = lambda now, by_peer: not by_peer

    scene.run(60.0)

    claimed = scene.claims()[0]
    lost = [at for at in through(scene) if broke <= at <= claimed]
    assert len(lost) == 4 and [at for at, by_peer in scene.probes if not by_peer and at <= claimed] == lost[1:]
    assert lost[1] - lost[0] == pytest.approx(1.0, abs=0.3)  # at once after a miss, one beside each further one
    asked = max(at for at in scene.questions() if at < claimed)
    assert lost[2] < asked and asked + scene.latency <= lost[3] + 1e-6
    assert (scene.cloud.routes[TABLE], scene.cloud.owner) == (SECONDARY, SECONDARY)
    assert scene.said(f'{PRIMARY} answers pings, but it lets no packet through') == 1
    assert scene.said(f'a packet through {PRIMARY} to {TARGET} did not come back: probing again') == 1
    assert not scene.steps() and max(b - a for a, b in zip(scene.pings, scene.pings[1:])) < 0.27
    assert not scene.monitor.lasting.troubles and scene.monitor.memory.reliefs == [pytest.approx(claimed, abs=0.2)]


def test_where_ec2_did_not_answer_a_probe_follows_its_first_answer() -> None:
    """Else the relief comes a minute late."""
    scene = probing()
    scene.cloud.errors['*'] = LOST
    scene.probed = lambda now, by_peer: not by_peer
    scene.run(40.0)
    scene.cloud.errors.clear()
    since = scene.now

    scene.run(20.0)

    answered = scene.questions(since=since)[0] + scene.latency
    assert min(at for at in through(scene) if at >= answered - 1e-6) - answered < 0.3
    assert scene.claims()[0] - answered < 2.0


@pytest.mark.parametrize('primary, relieved', [(True, 1), (False, 2)])
def test_one_that_was_relieved_and_has_it_back_is_relieved_again_at_once_only_by_the_secondary_and_once(
        primary: bool, relieved: int) -> None:
    peer = SECONDARY if primary else PRIMARY
    scene = probing(primary=primary, holder=peer, fail_back=False)
    reliefs = 0
    for _ in range(3):
        scene.probed = lambda now, by_peer: not by_peer
        reliefs += bool(scene.claims(since=scene.run(0.1).now - 0.1) or scene.run(40.0).claims(since=scene.now - 40.0))
        scene.cloud.routes[TABLE] = scene.cloud.owner = peer
        scene.probed = lambda now, by_peer: True
        scene.monitor.look_now()
        scene.run(20.0)

    assert reliefs == relieved


@pytest.mark.parametrize('outcome', [
    lambda now, by_peer: not by_peer or OwnFault('no route'),
    lambda now, by_peer: False,
    lambda now, by_peer: OwnFault('no buffer') if by_peer else True,
    lambda now, by_peer: NoNeighbour('not in this subnet') if by_peer else True], ids=range(4))
def test_a_probe_that_gets_nowhere_by_the_own_route_or_could_not_be_sent_says_nothing_of_the_peer(outcome: Any) -> None:
    scene = probing()
    scene.probed = outcome

    scene.run(119.0)

    assert scene.claims() == [] or outcome(0.0, True) is False
    assert len(scene.questions()) < 3


def test_misses_count_only_once_a_probe_was_answered() -> None:
    scene = Scene(probe_address=TARGET)
    scene.probed = lambda now, by_peer: not by_peer

    scene.run(300.0)

    assert not scene.claims() and len(scene.questions()) < 5 and min(gaps(through(scene))) > 4.8
    assert scene.said('so it cannot be probed here: nothing is decided by that') == 1


def test_a_probe_that_was_lost_alone_is_told_and_nothing_follows() -> None:
    scene = probing()
    begins = scene.now
    scene.probed = lambda now, by_peer: now > begins + 5.5

    scene.run(30.0)

    assert scene.said(f'a packet through {PRIMARY} to {TARGET} did not come back') >= 1
    assert not scene.claims() and not scene.questions()


# What is told

def test_the_status_tells_role_ids_holders_ages_reasons_and_troubles() -> None:
    scene = Scene().run(30.0)
    assert scene.status['role'] == 'secondary' and scene.status['peer_answers'] is True
    assert (scene.status['own_id'], scene.status['peer_id']) == (SECONDARY, PRIMARY)
    assert scene.status['holders'] == dict.fromkeys((TABLE, ADDRESS), PRIMARY)
    assert 0.0 <= scene.status['last_answer_age'] <= 30.0 and 0.0 <= scene.status['last_observation_age'] <= 30.0
    assert (scene.status['decision'], scene.status['troubles']) == ('', [])

    scene.fault, scene.outcome = 'net.ipv4.ip_forward is 0', lambda now: False
    scene.run(70.0)
    assert scene.status['peer_answers'] is False and 60.0 < scene.status['last_answer_age'] < 75.0
    assert 'it is stopped once it fails its status checks' in scene.status['decision']
    assert [words for words in scene.status['troubles'] if 'net.ipv4.ip_forward is 0' in words]


def test_before_anything_is_known_ages_are_none_and_a_status_comes_once_a_minute() -> None:
    scene, published = Scene(), []
    scene.cloud.errors['*'] = LOST
    scene.monitor.publish = lambda status: published.append((scene.now, status))
    scene.run(200.0)

    assert published[0][1]['last_answer_age'] is published[0][1]['last_observation_age'] is None
    assert [round(gap) for gap in gaps([at for at, _ in published])] == [60, 60, 60]
