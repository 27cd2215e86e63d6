"""Every single fault, a sample of every pair of faults, and schedules that have shown a mistake of a monitor."""
from __future__ import annotations

import math
from typing import Dict, Tuple

import pytest

from .faults import KINDS, Conditions, Fault, Pairs, Schedule, singles
from .pair import Lived, World
from .search import broke, live_through, search, tell

PAIRS = 1000                      # of all pairs of faults; the soak lives through the others


@pytest.mark.parametrize('kind', KINDS)
def test_no_single_fault_breaks_a_promise(kind: str) -> None:
    found = search(singles(kind), batch=25)
    assert not found.failures, str(found)


def test_no_pair_of_faults_of_a_sample_breaks_a_promise(request: pytest.FixtureRequest) -> None:
    count = int(request.config.getoption('--schedules', PAIRS))
    found = search(map(Pairs().__getitem__, range(count)), batch=25)
    assert not found.failures, str(found)
    assert found.runs == count


def test_a_schedule_gives_the_same_time_line_each_time() -> None:
    schedule = Schedule((Fault(100, 'crash'), Fault(110, 'loss', 'secondary', 90, 30),
                         Fault(300, 'suspend', 'both', 20)))
    assert tell(schedule) == tell(schedule)


def test_a_broken_promise_is_told_with_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, 'works', lambda world, one: False)
    schedule = Schedule((Fault(100, 'crash'),))
    (what, told), = live_through([schedule]).failures
    assert what.startswith('settles: ') and told == schedule


LAGS = Conditions(read_lag=3, effect_lag=3)
QUICK = Conditions(address=False, stop_takes=5, boot_takes=15, monitor_starts=1)
ANY = math.inf

# By the rule that it guards: a schedule, and the most stops of one that runs, changes of a part, seconds not served
SCHEDULES: Dict[str, Tuple[Schedule, Lived]] = {
    # Who is stopped
    'nobody whose checks pass, however long the silence': (
        Schedule((Fault(100, 'block ping', 'secondary', 120),)), (0, 2, 1)),
    'nobody for a silence between pings that were answered by a process that was suspended': (
        Schedule((Fault(100, 'suspend', 'both', 120),)), (0, 0, 1)),
    'nobody for checks that failed before this silence': (
        Schedule((Fault(100, 'cut off', 'primary', 90), Fault(220, 'cut peer', lasts=10))), (0, 2, 10)),
    'nobody by one whose own checks fail, too': (
        Schedule((Fault(71, 'block ping', 'primary', 900), Fault(266, 'false alarm', 'both', 300))), (0, 2, 1)),
    'nobody for two false alarms with a gap between': (Schedule(
        (Fault(100, 'cut peer', lasts=400), Fault(130, 'false alarm', 'primary', 25),
         Fault(155, 'EC2 down', 'secondary', 180), Fault(335, 'false alarm', 'primary', 20))), (0, 2, 1)),
    'nobody as long as checks may lag after the tag is gone': (Schedule(
        (Fault(200, 'maintenance', 'primary', 200), Fault(330, 'cut off', 'primary', 150)),
        Conditions(check_lag=20)), (0, 2, 1)),
    'nobody who has just begun to boot': (
        Schedule((Fault(100, 'crash'), Fault(255, 'cut peer', lasts=600), Fault(408, 'crash'))), (2, 6, 60)),
    # Taken over readily
    'own checks that fail keep nobody from claiming': (
        Schedule((Fault(190, 'false alarm', 'secondary', 150), Fault(200, 'crash'))), (1, 2, 6)),
    'a peer that was never heard may live, until its checks fail': (Schedule((Fault(0, 'crash'),)), (1, 2, 120)),
    'and until EC2 has told nothing good of it for long': (Schedule(
        (Fault(34, 'no data', lasts=3600), Fault(100, 'reboot'), Fault(118, 'crash', 'secondary'))), (1, 3, 330)),
    'FAIL_BACK waits, but not with what nobody has': (
        Schedule(tuple(Fault(100 + 60 * n, 'reboot') for n in range(20)), fail_back=120), (0, 2, 8)),
    'one that fails soon after its fail-back is replaced at once': (
        Schedule((Fault(0, 'crash'),), QUICK._replace(monitor_starts=15)), (1, 2, 120)),
    # Who took in this silence what was here, lives, and keeps it
    'two that are deaf do not take from each other': (
        Schedule((Fault(200, 'cut peer', lasts=10800),), LAGS), (0, 2, 1)),
    'nor when one of them hears the other': (Schedule(
        (Fault(200, 'block ping', 'secondary', 10800), Fault(210, 'EC2 down', 'both', 40)), LAGS), (0, 2, 5)),
    'nor when started anew under a false alarm of both': (Schedule(
        (Fault(100, 'cut peer', lasts=3600), Fault(110, 'kill', 'both', 5), Fault(160, 'false alarm', 'both', 218))),
        (0, 3, 1)),
    'what EC2 does not tell counts from the latest taking on': (
        Schedule((Fault(100, 'no data', lasts=3000), Fault(120, 'cut peer', lasts=3000))), (0, 12, 1)),
    'a single answer does not end a silence': (Schedule((Fault(100, 'loss', 'both', 10800, 97),)), (0, 12, 1)),
    # Kept together
    'the heir creates a deleted route first': (Schedule((Fault(26, 'delete route'),), LAGS), (0, 1, ANY)),
    'the other one brings together what the heir is not told of': (
        Schedule((Fault(90, 'forbid', 'primary', 900, 2), Fault(100, 'move address', how=1))), (0, 2, 200)),
    'an address that no traffic uses is nowhere': (Schedule((Fault(100, 'stray address'),)), (0, 1, 200)),
    'what is outside the pair is left there': (Schedule(
        (Fault(0, 'crash'), Fault(0, 'move route', how=3)), Conditions(address=False)), (1, 1, ANY)),
    'an address that nobody has goes where the route is': (
        Schedule((Fault(50, 'forbid', 'both', 400, 5), Fault(60, 'move address', how=2))), (0, 1, ANY)),
    'claims that EC2 refuses hold up no restart': (
        Schedule((Fault(20, 'forbid', 'primary', 900, 5), Fault(60, 'crash'))), (1, 3, ANY)),
    'the address does not part from a route that may not be moved': (Schedule(
        (Fault(67, 'forbid', 'secondary', 800, 4), Fault(97, 'block ping', 'secondary', 200))), (0, 2, 60)),
    'nor from one of two': (Schedule(
        (Fault(128, 'forbid', 'secondary', 400, 8), Fault(175, 'forbid', 'both', 400, 4),
         Fault(209, 'move route', how=1), Fault(225, 'crash')), Conditions(tables=2)), (1, 4, ANY)),
    # Probes
    'the own way must come back': (Schedule((Fault(200, 'target dead', lasts=300),), probes=True), (0, 0, 1)),
    'reliefs are an hour apart': (
        Schedule((Fault(200, 'forwarding lost', 'both', 10800, 1),), probes=True), (0, 5, ANY)),
    'a probe follows an answer of EC2': (Schedule(
        (Fault(180, 'EC2 down', 'secondary', 120, 1), Fault(200, 'forwarding lost', 'primary', 900, 1)),
        probes=True), (0, 1, 110)),
    'one that was relieved, and starts anew, is relieved at once': (Schedule(
        (Fault(200, 'forwarding lost', 'primary', 5000, 1), Fault(400, 'kill', lasts=5)), probes=True), (0, 3, ANY)),
    # Maintenance
    'who is worked on is left alone': (
        Schedule((Fault(200, 'maintenance', 'primary', 400), Fault(300, 'stop'))), (0, 2, 1)),
    'who is worked on claims from a dead peer': (
        Schedule((Fault(200, 'maintenance', 'secondary', 400), Fault(300, 'crash'))), (1, 2, 10)),
    'with the tag on both nothing moves': (
        Schedule((Fault(200, 'maintenance', 'both', 400), Fault(300, 'reboot'))), (0, 1, ANY)),
    # Calls that come late, or get no answer
    'a claim without an answer is not made anew': (Schedule((Fault(27, 'move route', how=2),), QUICK._replace(
        address=True, latency=1.5, effect_lag=3)), (0, 1, ANY)),
    'an answer from before a suspension decides nothing': (
        Schedule((Fault(2, 'crash'), Fault(26, 'suspend', 'secondary', 11)), QUICK), (1, 2, ANY)),
    'a take-over does not outlast a suspension': (Schedule(
        (Fault(2, 'late metadata', 'primary', 1), Fault(13, 'suspend', 'secondary', 126)), QUICK), (0, 2, ANY)),
    'a take-over is not resumed against one that is back': (Schedule(
        (Fault(302, 'lossy', 'secondary', 36, 53), Fault(309, 'late metadata', 'primary', 1),
         Fault(341, 'suspend', 'secondary', 26)),
        QUICK._replace(tables=2, effect_lag=2, boot_takes=25), 119), (0, 2, ANY))}


@pytest.mark.parametrize('rule', SCHEDULES)
def test_this_schedule_keeps_the_promises(rule: str) -> None:
    schedule, most = SCHEDULES[rule]
    world = World(schedule)
    assert not broke(world), tell(schedule)
    assert all(value <= bound for value, bound in zip(world.lived, most)), f'{world.lived}\n{tell(schedule)}'


def test_opposite_false_alarms_and_late_calls_never_stop_both() -> None:
    """Each is called failed in turn, two that are deaf, and calls take effect late."""
    for seed in range(40):
        assert not broke(World(Schedule(
            (Fault(100, 'cut peer', lasts=900), Fault(100, 'late', 'both', 900, 3),
             Fault(200, 'false alarm', 'primary', 60 + seed), Fault(255 + seed, 'false alarm', 'secondary', 70)),
            LAGS, seed)))
