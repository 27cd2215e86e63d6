"""Theorems of the judgement: each walks through all combinations of the variables that it names.

What must be true is told anew here, naively, from the case itself; none looks into what the monitor remembers.
"""
from __future__ import annotations

import itertools
import logging
import math
import types
from typing import Any, Iterator, List, Tuple

import pytest

from nat_monitor import ABSENT, FORCE, NOBODY, OTHER, PEER, SELF, START, STOP
from tests.unit.story import BOTH, ERROR, FAILED, NO_DATA, UNKNOWN, Story

STATES = ('running', 'stopped', 'stopping', 'pending', 'shutting-down', 'terminated', 'gone', '')
CHECKS = ('ok', 'impaired', 'initializing', '')
HOLDERS = (SELF, PEER, NOBODY, OTHER, ABSENT, UNKNOWN)
OF_BOTH = ((SELF, SELF), (PEER, PEER), (SELF, PEER), (PEER, SELF), (NOBODY, PEER), (NOBODY, NOBODY), (OTHER, PEER),
           (UNKNOWN, UNKNOWN))  # the holders of both parts
YES_NO = (False, True)
LONG = 9000.0  # s
ANSWERS = {
    'failed': FAILED, 'passes': {}, 'error': ERROR, 'no data': NO_DATA, 'own too': {**FAILED, 'own_checks': 'impaired'},
    'tagged': {**FAILED, 'peer_tag': True}, 'stopped': {'peer_state': 'stopped', 'peer_checks': 'not-applicable'}}
BAD = ('failed', 'no data', 'own too', 'tagged', 'stopped')  # EC2 does not say that the peer is well
Kinds = Tuple[str, ...]
Told = List[Tuple[str, float]]  # answers of these kinds, asked for so many seconds before now; the latest is the last


def cases(**variables: Any) -> Iterator[Any]:
    """Yield all combinations."""
    for values in itertools.product(*variables.values()):
        yield types.SimpleNamespace(**dict(zip(variables, values)))


def histories(*kinds: Kinds, gaps: Tuple[float, ...]) -> Iterator[Told]:
    """Yield all histories, with each of the gaps between two answers."""
    for between in itertools.product(gaps, repeat=len(kinds) - 1):
        ago = [sum(between[n:]) for n in range(len(kinds))]
        for chosen in itertools.product(*kinds):
            yield list(zip(chosen, ago))


def lasted(told: Told, kinds: Kinds, after: float) -> float:
    """Return for how long only answers of these kinds came, without a minute's gap, asked for after that time.

    Errors are as if they had not come.  -1.0: the latest answer was another one, or came more than a minute ago.
    """
    run: List[float] = []
    later = told[-1][1]
    for kind, ago in reversed(told):
        if kind == 'error':
            continue
        if kind not in kinds or ago >= after or round(ago - later, 3) > 60.0:
            break
        run.append(ago)
        later = ago
    return round(run[-1] - run[0], 3) if run else -1.0


def decided(story: Story) -> Tuple[Tuple[str, ...], str]:
    """Return the parts that are claimed and the step that is taken: never both."""
    serving, restarting = story.judged()
    assert not (serving.claims and restarting.step) and not serving.step and not restarting.claims
    return serving.claims, restarting.step


def tell(story: Story, told: Told, holders: Any, silent_for: float) -> Story:
    """Let these answers come, and the peer fall silent among them."""
    for earlier, (kind, ago) in zip([math.inf] + [ago for _, ago in told], told):
        if ago < silent_for <= earlier:
            story.misses(silent_for)
        story.sees(ago, holders, **ANSWERS[kind])
    return story


def long_so(case: Any, **told: Any) -> Story:
    """Let all have been as the case tells for long, and the primary have just started."""
    story, told = Story(case.primary).starts(), {'peer_state': case.state, 'peer_checks': case.checks, **told}
    if case.heard:
        story.hears(LONG)
    if case.silent:
        story.misses(500.0)
    return story.sees(50.0, case.holders, **told).sees(0.0, case.holders, **told)


# Who is stopped

@pytest.mark.parametrize('kinds, gaps', [
    ([tuple(ANSWERS)] * 3, (14.9, 15.1, 29.9, 30.0, 60.0, 60.1)),
    ([('failed', 'passes', 'error', 'own too')] * 3 + [('failed',)], (10.0, 15.0, 30.0, 60.0, 60.1))],
    ids=['three answers', 'four answers'])
def test_nobody_is_stopped_but_one_that_may_be_stopped(kinds: List[Kinds], gaps: Tuple[float, ...]) -> None:
    """The time to start is 30 s, so that a tag and another state, too, are just before and after their threshold."""
    for told in histories(*kinds, gaps=gaps):
        for silent_for in (300.0, told[0][1]):
            story = Story(wait_for_instance_start=30.0).hears(LONG).sees(400.0, SELF)
            _, step = decided(tell(story, told, SELF, silent_for))
            down = [ago for kind, ago in told if kind in ('tagged', 'stopped')]
            may_be_stopped = (told[-1][0] == 'failed' and lasted(told, ('failed',), silent_for) >= 30.0
                              and min(down, default=LONG) >= 30.0)
            assert (step == STOP) == may_be_stopped, (told, silent_for)


def test_nobody_is_stopped_by_an_answer_that_does_not_tell_its_tags() -> None:
    for case in cases(then=YES_NO, now=YES_NO, primary=YES_NO, own_tag=YES_NO):
        story = Story(case.primary).hears(LONG).misses(100.0).sees(31.0, SELF, **FAILED, tells_tags=case.then)
        story.sees(0.0, SELF, **FAILED, tells_tags=case.now, own_tag=case.own_tag)
        assert (decided(story)[1] == STOP) == case.now, case


def test_who_was_down_has_its_time_to_start_and_each_further_stop_comes_twice_as_late() -> None:
    for case in cases(
            wait=(60.0, 300.0, 600.0, 7200.0), down=('pending', 'tag', START, FORCE, 'refused', ''),
            down_for=(-0.1, 0.0), stops=range(5), apart=(1800.0, 3 * 3600.0, 4 * 3600.0), stopped_for=(-0.1, 0.0)):
        within_four_hours = min(case.stops, {1800.0: 5, 3 * 3600.0: 2, 4 * 3600.0: 1}[case.apart])
        spacing = min(3600.0, case.wait * 2.0 ** (within_four_hours - 1))
        latest = max(case.wait, spacing) + case.stopped_for
        events = [(latest + case.apart * n, STOP) for n in range(case.stops)]
        story = Story(wait_for_instance_start=case.wait).hears(1e5).misses(45.0)
        for ago, what in sorted(events + [(case.wait + case.down_for, case.down)] * bool(case.down), reverse=True):
            if what in ('pending', 'tag'):
                story.sees(ago, SELF, peer_tag=what == 'tag', peer_state='pending' if what == 'pending' else 'running')
            else:
                story.asks_for(START if what == 'refused' else what, ago, refused=what == 'refused')
        _, step = decided(story.sees(40.0, SELF, **FAILED).sees(0.0, SELF, **FAILED))
        was_down = case.down not in ('refused', '') and case.down_for < 0.0
        stopped_lately = case.stops and case.stopped_for < 0.0
        assert (step == STOP) == (not was_down and not stopped_lately), case


def test_nobody_stops_another_one_while_its_own_checks_fail() -> None:
    for case in cases(own_checks=CHECKS, before=CHECKS, peer_checks=CHECKS, own_tag=YES_NO, holders=OF_BOTH,
                      primary=YES_NO, refused=YES_NO):
        story = Story(case.primary).hears(LONG).misses(400.0).sees(60.0, case.holders, **FAILED)
        story.sees(30.0, case.holders, **FAILED, own_checks=case.before).is_refused(*[0.0] * case.refused)
        story.sees(0.0, case.holders, own_checks=case.own_checks, peer_checks=case.peer_checks, own_tag=case.own_tag)
        _, step = decided(story)
        assert step == '' or 'impaired' not in (case.own_checks, case.before) and step == STOP, case


def test_an_answer_that_tells_only_one_of_the_two_proves_nothing() -> None:
    for case in cases(own_state=('', 'running'), peer_state=('', 'running')):
        story = Story().hears(LONG).misses(400.0).sees(60.0, SELF, **FAILED, **vars(case))
        assert (decided(story.sees(0.0, SELF, **FAILED))[1] == STOP) == all(vars(case).values()), case


def test_no_step_is_taken_against_one_that_is_under_maintenance_or_that_answers() -> None:
    for case in cases(
            spared=('tag', 'answers', 'answers again'), state=STATES, checks=CHECKS, own_state=('running', ''),
            own_tag=YES_NO, tells_tags=YES_NO, watched=(0.0, 29.9, 30.0, 400.0), step=(START, STOP, FORCE, '')):
        told = {'peer_state': case.state, 'peer_checks': case.checks, 'own_state': case.own_state,
                'own_tag': case.own_tag, 'tells_tags': case.tells_tags, 'peer_tag': case.spared == 'tag'}
        story = Story().hears(LONG).asks_for(case.step or STOP, *[LONG / 2] * bool(case.step))
        if case.spared != 'answers':
            story.misses(500.0)
        story.sees(case.watched, SELF, **told).sees(0.0, SELF, **told)
        if case.spared == 'answers again':
            story.hears(1.0)
        assert decided(story)[1] == '', case


def test_no_step_is_taken_and_nothing_claimed_by_one_that_ec2_does_not_call_running() -> None:
    for case in cases(own_state=STATES[1:-1], state=STATES, checks=CHECKS, holders=OF_BOTH, silent=YES_NO,
                      heard=YES_NO, peer_tag=YES_NO, primary=YES_NO):
        assert decided(long_so(case, own_state=case.own_state, peer_tag=case.peer_tag)) == ((), ''), case


def test_never_both_a_claim_and_a_step_and_the_claim_goes_first_unless_ec2_refuses_it() -> None:
    for case in cases(state=STATES, checks=CHECKS, holders=OF_BOTH, refused=((), (-1.0,), (9.0,)), tells_tags=YES_NO,
                      primary=YES_NO, own_tag=YES_NO):
        told = {'peer_state': case.state, 'peer_checks': case.checks, 'tells_tags': case.tells_tags}
        story = Story(case.primary).hears(LONG).misses(500.0).sees(31.0, case.holders, **told)
        claims, step = decided(story.is_refused(*case.refused).sees(0.0, case.holders, **told, own_tag=case.own_tag))
        left = not {*case.holders} <= {SELF, OTHER}
        wanted = {'stopped': START, 'running': STOP if case.checks == 'impaired' and case.tells_tags else ''}
        due = wanted.get(case.state, '')
        assert step == ('' if left and not case.refused else due), case
        assert bool(claims) == (left and not (case.refused and due) and case.refused != (9.0,)), case


# Who claims

def test_nothing_is_claimed_by_one_that_cannot_nat() -> None:
    for case in cases(state=STATES, checks=CHECKS[:2], holders=OF_BOTH, silent=YES_NO, heard=YES_NO, peer_tag=YES_NO,
                      source_check=YES_NO, primary=YES_NO):
        story = long_so(case, nat_fault='net.ipv4.ip_forward is 0', peer_source_check=case.source_check,
                        peer_tag=case.peer_tag)
        assert decided(story)[0] == (), case


def test_with_the_tag_on_both_nothing_moves() -> None:
    for case in cases(state=STATES, checks=CHECKS, holders=OF_BOTH, silent=YES_NO, heard=YES_NO, source_check=YES_NO,
                      primary=YES_NO):
        told = {'own_tag': True, 'peer_tag': True, 'peer_source_check': case.source_check}
        assert decided(long_so(case, **told)) == ((), ''), case


def test_nothing_outside_the_pair_is_claimed_but_by_the_primarys_start_and_nothing_that_is_here_or_absent() -> None:
    for case in cases(before=itertools.product(HOLDERS, repeat=2), now=tuple(itertools.product(HOLDERS, repeat=2)),
                      why=('silent', 'tag', 'source check', 'probes', 'apart', 'start', 'start of the secondary')):
        story = Story('start' == case.why)
        if 'start' in case.why:
            story.starts()
        told = {'peer_tag': case.why == 'tag', 'peer_source_check': case.why == 'source check'}
        story.hears(LONG).sees(400.0, case.before, **told)
        if case.why == 'silent':
            story.misses(300.0)
        for ago in (200.0, 150.0, 100.0, 50.0, 0.0):
            story.sees(ago, case.now, **told)
        if case.why == 'probes':
            story.probes(30.0, True).probes(20.0, False).probes(10.0, False).probes(-0.1, False)
        last = {part: now if now != UNKNOWN else before for part, before, now in zip(BOTH, case.before, case.now)}
        for part in decided(story)[0]:
            came_here = SELF in (case.before[BOTH.index(part)], case.now[BOTH.index(part)])
            assert last[part] in (PEER, NOBODY, UNKNOWN) or last[part] == OTHER and case.why == 'start' and (
                not came_here), case


def test_what_a_peer_leaves_that_was_heard_and_falls_silent_is_taken_over_at_once() -> None:
    for case in cases(state=STATES, checks=CHECKS, own_checks=CHECKS[:3], own_state=('running', ''), own_tag=YES_NO,
                      tells_tags=YES_NO, holders=OF_BOTH, primary=YES_NO):
        story = Story(case.primary).hears(LONG).sees(100.0, case.holders).misses(3.0)
        story.sees(0.0, case.holders, peer_state=case.state, peer_checks=case.checks, own_checks=case.own_checks,
                   own_state=case.own_state, own_tag=case.own_tag, tells_tags=case.tells_tags)
        left = tuple(part for part, holder in zip(BOTH, case.holders) if holder in (PEER, NOBODY, UNKNOWN))
        assert decided(story)[0] == left, case


@pytest.mark.parametrize('heard', ['never', 'before it was down', 'it took before', 'it took meanwhile'])
def test_one_that_may_live_keeps_what_it_has(heard: str) -> None:
    """Unless EC2 calls it anything but running, or failed, or for long not well: in this silence, and since it took."""
    kinds: List[Kinds] = [('failed', 'passes', 'error', 'no data')] * 2
    kinds += [('failed', 'passes', 'error', 'no data', 'own too', 'stopped')]
    for told in histories(*kinds, gaps=(15.1, 29.9, 30.0, 60.0, 60.1)):
        for case in cases(silent_for=(600.0, told[0][1])[:1 if 'took' in heard else 2],
                          holders=((PEER, PEER), (SELF, PEER), (PEER, NOBODY))):
            story, after = Story(wait_for_instance_start=90.0), case.silent_for
            if heard != 'never':
                story.hears(LONG).sees(700.0, PEER, peer_state='pending' if 'down' in heard else 'running')
            if heard == 'it took before':
                after = told[0][1] + 0.1
                tell(story.misses(600.0).gets(after), told, case.holders, 600.0)
            elif heard == 'it took meanwhile':
                after = told[1][1]
                tell(story.misses(600.0), told[:1], UNKNOWN, 600.0)
                tell(story.gets(after), told[1:], case.holders, 600.0)
            else:
                tell(story, told, case.holders, case.silent_for)
            fails = told[-1][0] == 'stopped' or lasted(told, ('failed',), after) >= 30.0 or (
                lasted(told, BAD, after) >= 90.0)
            left = tuple(part for part, holder in zip(BOTH, case.holders) if holder != SELF)
            is_apart = SELF in case.holders
            claims, _ = decided(story)
            if fails:
                assert claims == left, (told, case)
            elif not is_apart:
                assert not claims or claims == left[1:] and NOBODY in case.holders, (told, case)


# What is said

def test_silent_and_running_for_the_time_to_start_without_a_step_gives_a_step_or_an_error() -> None:
    for case in cases(
            wait=(30.0, 300.0, 7200.0), longer=(-0.1, 0.0), checks=CHECKS, own_checks=CHECKS, own_tag=YES_NO,
            holders=(SELF, PEER, (SELF, PEER)), nat_fault=('', 'ip_forward is 0'),
            heard=YES_NO, step=(STOP, 'refused', START, '')):
        silent_for = case.wait + case.longer
        told = {'peer_checks': case.checks, 'own_checks': case.own_checks, 'own_tag': case.own_tag,
                'nat_fault': case.nat_fault}
        story = Story(wait_for_instance_start=case.wait)
        if case.heard:
            story.hears(1e5)
        if case.step:
            story.asks_for(case.step.replace('refused', STOP), silent_for, refused=case.step == 'refused')
        story.misses(silent_for)
        for ago in (case.wait - 0.2, 30.0, 0.0):
            story.sees(ago, case.holders, **told)
        serving, restarting = story.judged()
        is_error = restarting.level == logging.ERROR and bool(restarting.why)
        if case.longer < 0.0:
            assert not is_error, case
        else:
            assert is_error or restarting.step or serving.claims, case


def test_it_is_no_error_before_a_peer_that_was_down_has_had_its_time_to_start() -> None:
    """The ERROR tells to stop it by hand, which would be the worst moment while it boots."""
    for ago, level in (299.9, logging.INFO), (300.0, logging.ERROR):
        started = Story().hears(9000.0).misses(900.0).asks_for(START, ago).watches(45.0, SELF, **NO_DATA)
        seen = Story().hears(9000.0).misses(900.0).sees(ago, SELF, peer_state='pending').watches(45.0, SELF, **NO_DATA)
        assert [story.judged()[1].level for story in (started, seen)] == [level] * 2
