"""Troubles that are nothing now and trouble if they last, and what to do about each that a person must heed."""
from __future__ import annotations

import ast
import email.utils
import inspect
import logging
import os
import re
import time
import types
from typing import Any, List, Tuple

import pytest
from botocore.exceptions import ClientError

import nat_monitor
from nat_monitor import MAINTENANCE, TROUBLES, Lasting
from tests.unit.scene import (ADDRESS, LOST, OUTSIDE, PRIMARY, SECOND, SECONDARY, TABLE, TARGET, Scene, at_rest,
                              forwards_not, gaps, probing, refusal, silent)
from tests.unit.story import REMEDY


class Told(logging.Handler):
    """A log and a clock with which to tell of troubles."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.lines: List[Tuple[str, str]] = []
        log = logging.Logger('test', logging.INFO)
        log.addHandler(self)
        self.lasting = Lasting(types.SimpleNamespace(monotonic=lambda: self.now), log)
        self.lasting.names.update(own_id='i-1', peer_id='i-2', peer_address='10.0.0.2')

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))

    def after(self, seconds: float, failure: str, at_once: bool = False) -> List[Tuple[str, str]]:
        """Let so many seconds pass and a question to EC2 fail, or not; return what is told of that."""
        self.now += seconds
        self.lines.clear()
        assert self.lasting('EC2', failure, at_once=at_once) is bool(failure)
        return list(self.lines)


WORDS = 'EC2 does not answer i-1 (lost): it decides nothing'
REMEDY_OF_EC2 = '; run on i-1: nat_monitor.py --check'


@pytest.mark.parametrize('kind', TROUBLES)
def test_each_trouble_has_words_for_what_came_back_and_a_remedy(kind: str) -> None:
    told = Told()

    told.lasting(kind, 'what came back', 'i-3', at_once=True)

    [(level, line)] = told.lines
    assert level == 'ERROR' and 'what came back' in line and REMEDY.search(line), line
    assert 'README' not in line and not re.search('[{}]', line)
    place = {'monitor': ' on i-2', 'metadata': '', 'source/dest. check': ''}.get(kind, ' on i-1')
    assert f'; run{place}: ' in line


def test_nothing_else_is_an_error_but_what_the_judgement_decides_and_what_ends_the_program() -> None:
    """Each story of the judgement sees to it that its errors have a remedy."""
    tree = ast.parse(inspect.getsource(nat_monitor))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    loud = {node.name for node in functions for one in ast.walk(node)
            if isinstance(one, ast.Attribute) and one.attr in ('error', 'ERROR')
            and getattr(one.value, 'attr', getattr(one.value, 'id', '')) in ('log', 'logging')}

    assert loud == {'__call__', 'errors', 'restart', 'main'}  # the first two of Lasting


def test_a_trouble_is_told_when_it_begins_and_when_it_changes_and_is_an_error_once_after_two_minutes() -> None:
    told = Told()
    assert told.after(0.0, '') == []
    assert told.after(0.0, 'lost') == [('INFO', WORDS)]
    assert told.after(60.0, 'lost') == []
    assert told.after(59.9, 'late') == [('INFO', WORDS.replace('lost', 'late'))] and not told.lasting.errors
    assert told.after(0.1, 'late') == [('ERROR', WORDS.replace('lost', 'late') + REMEDY_OF_EC2)]
    assert told.lasting.errors == [WORDS.replace('lost', 'late') + REMEDY_OF_EC2]
    assert told.after(999.0, 'late') == []
    assert told.after(1.0, 'lost') == [('INFO', WORDS)] and told.lasting.errors == [WORDS + REMEDY_OF_EC2]
    assert told.after(1.0, '') == [('ERROR', f'over after 1121 s: {WORDS}')] and not told.lasting.errors
    assert told.after(0.0, 'lost') == [('INFO', WORDS)]
    assert told.after(9.0, '') == [('INFO', f'over after 9 s: {WORDS}')] and told.after(0.0, '') == []


def test_one_that_cannot_wait_is_an_error_at_once_and_its_end_is_one_too() -> None:
    told = Told()
    assert [level for level, _ in told.after(0.0, 'lost', at_once=True)] == ['ERROR']
    assert told.after(1.0, 'lost', at_once=True) == []
    assert told.after(1.0, '') == [('ERROR', f'over after 2 s: {WORDS}')]

    assert [level for level, _ in told.after(0.0, 'lost') + told.after(1.0, 'lost', at_once=True)] == ['INFO', 'ERROR']


def test_the_same_trouble_about_two_parts_is_two() -> None:
    told = Told()
    for part in ('rtb-1', 'rtb-2'):
        told.lasting('claim', 'Denied', part)
    told.lasting('claim', '', 'rtb-1')
    assert [line for _, line in told.lines] == [
        'rtb-1 is not moved to i-1 yet (Denied)', 'rtb-2 is not moved to i-1 yet (Denied)',
        'over after 0 s: rtb-1 is not moved to i-1 yet (Denied)']


def test_what_came_back_is_told_as_it_is_whatever_braces_it_has() -> None:
    told, odd = Told(), '{"self": {}} {self} {about}'
    [(_, line)] = told.after(0.0, odd, at_once=True)
    assert line == WORDS.replace('lost', odd) + REMEDY_OF_EC2 and told.lasting.errors == [line]


# The watcher of the watcher

def watched_lines(scene: Scene) -> List[Tuple[str, str]]:
    return [line for line in scene.lines if 'no ping of the monitor on' in line[1]]


@pytest.mark.parametrize('wait, no_ping_for', [(0.25, 300), (200.0, 600)])
def test_a_peer_that_answers_while_its_monitor_sends_no_ping_for_long_is_an_error(
        wait: float, no_ping_for: int) -> None:
    scene = at_rest(wait_between_pings=wait)
    scene.peer_pings = False
    assert not watched_lines(scene.run(no_ping_for - 150.0))
    level, message = watched_lines(scene.run(450.0))[0]
    assert level == 'ERROR' and f'no ping of the monitor on {PRIMARY} has come for {no_ping_for} s' in message
    assert f"echo '{os.path.realpath(nat_monitor.__file__)} >> /var/log/nat_monitor.log" in message
    assert message in scene.status['troubles']
    scene.peer_pings = True
    assert 'over after' in watched_lines(scene.run(250.0))[-1][1] and not scene.status['troubles']
    assert not scene.claims() and not scene.steps()


@pytest.mark.parametrize('spare', ['tag', 'silence', 'start'])
def test_it_is_no_error_under_maintenance_nor_of_a_silent_peer_nor_soon_after_its_start(spare: str) -> None:
    scene = at_rest(holder=SECONDARY)
    scene.peer_pings = False
    scene.cloud.tags[PRIMARY] = [{'Key': 'nat_monitor_maintenance', 'Value': ''}] * (spare == 'tag')
    if spare == 'silence':
        scene.silence()
    scene.monitor.look_now()
    scene.run(250.0 if spare == 'start' else 800.0)
    if spare == 'start':
        scene.cloud.state[PRIMARY] = 'stopped'
        scene.silence(lasts=40.0)
        scene.run(300.0)

    assert not watched_lines(scene)


# The status

def test_a_trouble_with_a_claim_or_a_step_ends_when_nothing_is_left_to_do() -> None:
    scene = at_rest()
    scene.monitor.lasting('claim', 'Denied', TABLE)
    scene.monitor.lasting('restart', 'stopped: Denied', PRIMARY)
    scene.monitor.look_now()
    assert scene.run(5.0).levels('over after') == ['INFO'] * 2


def test_a_refused_step_is_no_trouble_any_more_once_the_peer_is_worked_on() -> None:
    scene = silent()
    scene.cloud.state[PRIMARY] = 'stopped'
    scene.cloud.errors['start_instances'] = refusal('OperationNotPermitted')
    scene.run(200.0)
    assert any('could not be started' in trouble for trouble in scene.status['troubles'])
    scene.cloud.routes[TABLE] = None  # a claim, beside which no step is taken, does not end it
    assert len(scene.claims()) < len(scene.run(60.0).claims()) and not scene.said('over after')
    scene.cloud.tags[PRIMARY] = [{'Key': nat_monitor.MAINTENANCE, 'Value': ''}]
    assert not any('could not be started' in trouble for trouble in scene.run(150.0).status['troubles'])


def test_the_status_tells_role_ids_holders_ages_reasons_and_troubles() -> None:
    scene = Scene().run(30.0)
    assert scene.status['role'] == 'secondary' and scene.status['peer_answers'] is True
    assert (scene.status['own_id'], scene.status['peer_id']) == (SECONDARY, PRIMARY)
    assert scene.status['holders'] == dict.fromkeys((TABLE, ADDRESS), PRIMARY)
    assert 0.0 <= scene.status['last_answer_age'] <= 30.0 and 0.0 <= scene.status['last_observation_age'] <= 30.0
    assert (scene.status['decision'], scene.status['troubles']) == ('', [])

    scene.fault, scene.outcome = 'net.ipv4.ip_forward is 0', lambda now: False
    scene.run(160.0)
    assert scene.status['peer_answers'] is False and 150.0 < scene.status['last_answer_age'] < 165.0
    assert 'it is stopped once it fails its status checks' in scene.status['decision']
    assert f'{SECONDARY} cannot NAT (net.ipv4.ip_forward is 0): it claims nothing' in ''.join(scene.status['troubles'])
    assert not scene.claims()
    scene.fault = ''
    assert scene.run(20.0).claims() and not scene.status['troubles']


def test_before_anything_is_known_ages_are_none_and_a_status_comes_once_a_minute() -> None:
    scene, published = Scene(), []
    scene.cloud.errors['*'] = LOST
    scene.monitor.publish = lambda status: published.append((scene.now, status))
    scene.run(200.0)
    assert scene.pings == [] and published[0][1]['last_answer_age'] is published[0][1]['last_observation_age'] is None
    assert [round(gap) for gap in gaps([at for at, _ in published])] == [60, 60, 60]


def test_a_clock_that_is_wrong_is_told() -> None:
    scene, date = at_rest(), email.utils.formatdate(time.time() + 3600.0, usegmt=True)
    answer: Any = {'Error': {'Code': 'RequestExpired'}, 'ResponseMetadata': {'HTTPHeaders': {'date': date}}}
    scene.cloud.errors['describe_instance_status'] = [ClientError(answer, 'Call')]
    assert scene.run(250.0).levels(f'the clock of {SECONDARY} is off by -60 min') == ['ERROR'] * 2  # and its end


def test_a_claim_that_expired_credentials_delay_is_no_error() -> None:
    scene = silent()
    scene.cloud.errors['replace_route'] = [refusal('ExpiredToken')]
    assert scene.run(30.0).levels(f'{TABLE} is not moved to {SECONDARY} yet (ExpiredToken') == ['INFO'] * 2
    assert scene.cloud.routes[TABLE] == SECONDARY


def test_a_peer_whose_probes_are_lost_is_called_dead_if_it_is_however_seldom_it_is_pinged() -> None:
    scene = probing(forwards_not, wait_between_pings=70.0)
    begins = scene.silence()
    assert scene.run(30.0).claims()[0] - begins < 15.0
    assert scene.said('is silent') and not scene.said('lets no packet through')


@pytest.mark.parametrize('how', ['two lost', 'tagged'])
def test_a_peer_from_which_all_was_taken_is_no_trouble_for_two_lost_probes_or_under_maintenance(how: str) -> None:
    scene = probing(forwards_not, num_pings=100 if how == 'two lost' else 3)
    if how == 'tagged':
        scene.monitor.memory.reliefs, scene.monitor.memory.here_at = [scene.now] * 3, {TABLE: scene.now}
        scene.run(20.0).cloud.tags[PRIMARY] = [{'Key': MAINTENANCE, 'Value': ''}]
    scene.run(2.5).cloud.routes, scene.cloud.owner = {TABLE: SECONDARY}, SECONDARY
    scene.monitor.look_now()
    assert not scene.run(200.0).status['troubles'] and scene.said('over after')
    scene.cloud.routes, scene.cloud.owner = {TABLE: PRIMARY}, PRIMARY
    scene.cloud.tags.clear()
    scene.monitor.look_now()
    since = scene.run(1.0).now
    assert scene.run(12.0).probes[-1][0] > since


def test_what_is_left_of_a_relief_is_taken_at_once() -> None:
    scene = at_rest(True, SECONDARY, tables=(TABLE, SECOND), probe_address=TARGET, fail_back=False)
    scene.probed, scene.cloud.errors['replace_route'] = forwards_not, [None, refusal('Unavailable')]
    claimed = scene.run(30.0).claims()
    assert scene.cloud.routes == {TABLE: PRIMARY, SECOND: PRIMARY} and claimed[-1] - claimed[0] < 9.0


def test_the_address_alone_is_no_relief_unless_the_peer_has_nothing_else() -> None:
    scene = at_rest(True, SECONDARY, probe_address=TARGET, fail_back=False)
    scene.probed, scene.cloud.errors['replace_route'] = forwards_not, refusal('Unavailable')
    assert scene.run(100.0).cloud.owner == PRIMARY
    scene.cloud.errors.clear()
    assert scene.run(30.0).cloud.routes[TABLE] == PRIMARY

    scene = at_rest(True, OUTSIDE, probe_address=TARGET, fail_back=False)
    scene.monitor.memory.lost, scene.probed = [], forwards_not
    for _ in range(10):
        scene.cloud.owner = SECONDARY
        scene.monitor.look_now()
        scene.run(90.0)
    assert len(scene.times('associate_address')) == 1


def test_a_take_over_is_no_relief_and_a_second_relief_is_one() -> None:
    scene = silent(probe_address=TARGET).run(20.0)
    scene.monitor.look_now()
    assert scene.run(20.0).claims() and scene.monitor.memory.reliefs == []
    scene = probing(forwards_not)
    scene.monitor.memory.reliefs, scene.monitor.memory.here_at = [scene.now - 120.0], {TABLE: scene.now}
    scene.run(30.0).monitor.look_now()
    assert scene.run(10.0).cloud.owner == SECONDARY and len(scene.monitor.memory.reliefs) == 2


def test_an_error_of_a_claim_ends_though_this_host_cannot_nat_meanwhile() -> None:
    scene = silent()
    scene.cloud.errors['replace_route'] = refusal('UnauthorizedOperation')
    scene.run(20.0).fault = 'net.ipv4.ip_forward is 0'
    scene.outcome = lambda now: True
    scene.run(200.0)
    assert scene.said('is not moved') and 'is not moved' not in str(scene.status['troubles'])
