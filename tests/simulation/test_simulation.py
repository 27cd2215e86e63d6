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
    assert not found.failures, '\n\n'.join(found.failures)


def test_no_pair_of_faults_of_a_sample_breaks_a_promise(request: pytest.FixtureRequest) -> None:
    count = int(request.config.getoption('--schedules', PAIRS))
    found = search(map(Pairs().__getitem__, range(count)), batch=25)
    assert not found.failures, '\n\n'.join(found.failures)
    assert found.runs == count


def test_a_schedule_gives_the_same_time_line_each_time() -> None:
    schedule = Schedule((Fault(100, 'crash'), Fault(110, 'loss', 'secondary', 90, 30),
                         Fault(300, 'suspend', 'both', 20)))
    assert tell(schedule) == tell(schedule)


def test_a_broken_promise_is_told_with_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, 'works', lambda world, one: False)
    schedule = Schedule((Fault(100, 'crash'),))
    failure, = live_through([schedule]).failures
    assert failure.startswith('settles: ') and str(schedule) in failure


LAGS = Conditions(read_lag=3, effect_lag=3)
ANY = math.inf

# By the rule that it guards: a schedule, and the most stops of one that runs, changes of a part, seconds not served
SCHEDULES: Dict[str, Tuple[Schedule, Lived]] = {
    # Who is stopped
    'nobody whose checks pass, however long the silence': (
        Schedule((Fault(100, 'block ping', 'secondary', 120),)), (0, 2, 1)),
    'nobody for checks that failed before this silence': (
        Schedule((Fault(100, 'cut off', 'primary', 90), Fault(220, 'cut peer', lasts=10))), (0, 2, 10)),
    'nobody by one whose own checks fail, too': (
        Schedule((Fault(71, 'block ping', 'primary', 900), Fault(266, 'false alarm', 'both', 300))), (0, 2, 1)),
    'nobody for two false alarms with a gap between': (Schedule(
        (Fault(100, 'cut peer', lasts=400), Fault(130, 'false alarm', 'primary', 25),
         Fault(155, 'EC2 down', 'secondary', 180), Fault(335, 'false alarm', 'primary', 20))), (0, 2, 1)),
    'nobody who has just begun to boot': (
        Schedule((Fault(100, 'crash'), Fault(255, 'cut peer', lasts=600), Fault(408, 'crash'))), (2, 6, 60)),
    # Taken over readily
    'own checks that fail keep nobody from claiming': (
        Schedule((Fault(190, 'false alarm', 'secondary', 150), Fault(200, 'crash'))), (1, 2, 6)),
    'a peer that was never heard may live, until its checks fail': (Schedule((Fault(0, 'crash'),)), (1, 2, 120)),
    'or until EC2 has told nothing good of it for long': (Schedule(
        (Fault(34, 'no data', lasts=3600), Fault(100, 'reboot'), Fault(118, 'crash', 'secondary'))), (1, 3, 330)),
    'FAIL_BACK waits': (
        Schedule(tuple(Fault(100 + 60 * n, 'reboot') for n in range(20)), fail_back=120), (0, 2, 8)),
    # Two that are deaf
    'who took in this silence what was here lives, and keeps it': (
        Schedule((Fault(200, 'cut peer', lasts=10800),), LAGS), (0, 2, 1)),
    'what EC2 does not tell counts since the peer last took something': (
        Schedule((Fault(100, 'no data', lasts=3000), Fault(120, 'cut peer', lasts=3000))), (0, 12, 1)),
    'a single answer does not end a silence': (Schedule((Fault(100, 'loss', 'both', 10800, 97),)), (0, 12, 1)),
    # Kept together
    'the heir creates a deleted route': (Schedule((Fault(26, 'delete route'),), LAGS), (0, 1, ANY)),
    'the other one brings together what the heir is not told of': (
        Schedule((Fault(90, 'forbid', 'primary', 900, 2), Fault(100, 'move address', how=1))), (0, 2, 200)),
    'an address that no traffic uses is nowhere': (Schedule((Fault(100, 'stray address'),)), (0, 1, 200)),
    'what is outside the pair is left there': (Schedule(
        (Fault(0, 'crash'), Fault(0, 'move route', how=3)), Conditions(address=False)), (1, 1, ANY)),
    'the heir is given its time where claims are refused, too': (
        Schedule((Fault(50, 'forbid', 'both', 400, 5), Fault(60, 'move address', how=2))), (0, 1, ANY)),
    'both come to the same heir, and complete answers alone count': (Schedule(
        (Fault(128, 'forbid', 'secondary', 400, 8), Fault(175, 'forbid', 'both', 400, 4),
         Fault(209, 'move route', how=1), Fault(225, 'crash')), Conditions(tables=2)), (1, 4, ANY)),
    # Probes
    'the own way must come back': (Schedule((Fault(200, 'target dead', lasts=300),), probes=True), (0, 0, 1)),
    'a probe follows an answer of EC2': (Schedule(
        (Fault(180, 'EC2 down', 'secondary', 120, 1), Fault(200, 'forwarding lost', 'primary', 900, 1)),
        probes=True), (0, 1, 110)),
    'one that was relieved, and starts anew, is relieved at once': (Schedule(
        (Fault(200, 'forwarding lost', 'primary', 5000, 1), Fault(400, 'kill', lasts=5)), probes=True), (0, 3, 120)),
    'and then once an hour': (
        Schedule((Fault(200, 'forwarding lost', 'primary', 3500, 1), Fault(400, 'kill', lasts=5),
                  Fault(600, 'kill', lasts=5)), probes=True), (0, 4, ANY)),
    # Maintenance, and an instance that EC2 does not call running
    'who is being stopped claims nothing': (Schedule(
        (Fault(50, 'stubborn', 'secondary'), Fault(100, 'stop', 'secondary'), Fault(120, 'crash'))), (0, 0, ANY)),
    'who is worked on is left alone': (
        Schedule((Fault(200, 'maintenance', 'primary', 400), Fault(300, 'stop'))), (0, 2, 1)),
    'who is worked on claims from a dead peer': (
        Schedule((Fault(200, 'maintenance', 'secondary', 400), Fault(300, 'crash'))), (1, 2, 10)),
    'with the tag on both nothing moves': (
        Schedule((Fault(200, 'maintenance', 'both', 400), Fault(300, 'reboot'))), (0, 1, ANY))}


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
