"""Draws schedules, runs the pair through them, and shrinks what breaks an invariant."""
from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import time
from typing import Any, Dict, List, NamedTuple, Optional

import hypothesis
from hypothesis import strategies as st

import nat_monitor

from .cloud import Conditions
from .pair import (BOOT, EC2, GUEST, LATEST_READ, MONITOR, NETWORK, SOMEBODY, Broken, Fault, Schedule, World)

BATCH = 250                       # schedules that hypothesis draws from one seed


def faults(*kinds: str, how: Any = st.integers(0, 59)) -> Any:
    return st.builds(Fault, st.integers(0, 600), st.sampled_from(kinds),
                     st.sampled_from(('primary', 'secondary', 'both')),
                     st.one_of(st.integers(1, 15), st.integers(1, 200)),
                     how)


conditions = st.builds(
    Conditions, st.integers(1, 3), st.booleans(), st.sampled_from((0.1, 0.5, 1.5)), st.integers(0, LATEST_READ),
    st.integers(0, 3), st.sampled_from((60, 150, 300)), st.integers(5, 90), st.integers(15, 60), st.integers(1, 30),
    st.sampled_from((0, 20, 150)))
any_fault = st.one_of(*(faults(*group) for group in (GUEST, BOOT, MONITOR, NETWORK, EC2, SOMEBODY)))
near = st.lists(st.tuples(st.integers(0, 40), any_fault), min_size=2, max_size=5).map(  # faults that meet
    lambda found: [fault._replace(at=found[0][1].at + after) for after, fault in found])
deaf = st.builds(  # two that live, but do not hear each other, and something else
    lambda fault, others: [fault, *(other._replace(at=fault.at + after) for after, other in others)],
    faults('cut peer', 'block ping'),
    st.lists(st.tuples(st.integers(0, 40), st.one_of(faults(*MONITOR), faults(*EC2), faults('cut EC2'))), max_size=3))
denied = st.builds(  # a role that may not do all, and something else
    lambda forbidden, others: [forbidden, *(other._replace(at=100 + other.at % 200) for other in others)],
    st.builds(Fault, st.integers(0, 200), st.just('forbid'), st.sampled_from(('primary', 'secondary', 'both')),
              st.sampled_from((100, 400, 800)), st.integers(0, 8)),
    st.lists(st.one_of(any_fault, faults('cut peer', 'block ping', *SOMEBODY)), min_size=1, max_size=3))
loss = st.lists(faults('loss', how=st.integers(5, 20)), min_size=1, max_size=4)
any_faults = st.one_of(st.lists(any_fault, min_size=1, max_size=6), near, near, deaf, denied, loss)
schedules = st.builds(Schedule, any_faults.map(tuple), conditions, st.integers(0, 1 << 16))


class Findings(NamedTuple):
    runs: int
    worst: Dict[str, float]
    failure: str = ''


def tell(schedule: Schedule, module: Any = nat_monitor) -> str:
    """Run a schedule and return the schedule, the time line of both monitors, and what broke."""
    world = World(schedule, module, traced=True)
    try:
        world.run()
        broke = 'nothing broke'
    except Broken as error:
        broke = str(error)
    assert world.timeline is not None
    return f'{schedule}\n' + '\n'.join(world.timeline) + f'\n{broke}'


def broke(schedule: Schedule, module: Any) -> str:
    """Run a schedule; return the number of the invariant that it breaks, or ''."""
    try:
        World(schedule, module).run()
    except Broken as error:
        return str(error)[:1]
    return ''


def without_needless(schedule: Schedule, module: Any) -> Schedule:
    """Leave out each fault without which the same invariant breaks: hypothesis does not always find these."""
    what = broke(schedule, module)
    for fault in schedule.faults:
        rest = list(schedule.faults)
        rest.remove(fault)
        if broke(schedule._replace(faults=tuple(rest)), module) == what:
            schedule = schedule._replace(faults=tuple(rest))
    return schedule


def search(seed: int, count: int, module: Any = nat_monitor, shrink: bool = True) -> Findings:
    """Run `count` schedules drawn from a seed."""
    worst: Dict[str, float] = {}
    broken: List[Schedule] = []
    runs = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,) + ((hypothesis.Phase.shrink,) if shrink else ()))
    @hypothesis.given(schedules)
    def live_through(schedule: Schedule) -> None:
        nonlocal runs
        runs += 1
        try:
            seen = World(schedule, module).run().seen
        except Broken as error:
            broken.append(schedule)
            raise AssertionError(str(error)[:2]) from None
        for what, value in seen.items():
            worst[what] = max(value, worst.get(what, value))

    gc.disable()  # greenlets leave cycles; between runs is early enough
    try:
        live_through()
    except AssertionError:
        return Findings(runs, worst, tell(without_needless(broken[-1], module), module))
    finally:
        gc.enable()
        gc.collect()
    return Findings(runs, worst)


def search_together(seed: int, count: int, jobs: int, seconds: Optional[float] = None) -> Findings:
    """Search in several processes, until `count` or `seconds` are over or something breaks."""
    worst: Dict[str, float] = {}
    runs, end = 0, time.monotonic() + (seconds or 1e9)
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context('fork')) as pool:
        pending = {pool.submit(search, seed * 1000003 + n, min(BATCH, count - n * BATCH))
                   for n in range(-(-count // BATCH))}
        for future in concurrent.futures.as_completed(pending):
            found = future.result()
            runs += found.runs
            for what, value in found.worst.items():
                worst[what] = max(value, worst.get(what, value))
            if found.failure or time.monotonic() > end:
                pool.shutdown(wait=True, cancel_futures=True)
                return Findings(runs, worst, found.failure)
    return Findings(runs, worst)
