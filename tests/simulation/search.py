"""Live through schedules, and tell what those that break a promise break."""
from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import time
from typing import Iterator, List, NamedTuple, Sequence

from .faults import Schedule
from .invariants import Broken
from .pair import World

BATCH = 100                       # schedules that one process lives through at a time
MOST = 5                          # that break a promise, until the search ends


class Findings(NamedTuple):
    runs: int
    failures: List[str]           # each with its schedule


def broke(world: World) -> str:
    """Return which promise a run breaks, '' if none."""
    try:
        world.run()
    except Broken as error:
        return str(error)
    return ''


def tell(schedule: Schedule) -> str:
    """Return the time line of a schedule, and what it breaks."""
    world = World(schedule, traced=True)
    end = broke(world)
    return '\n'.join([str(schedule), *(world.timeline or ()), end])


def live_through(schedules: Sequence[Schedule]) -> Findings:
    """Live through some schedules, one after the other."""
    found = Findings(len(schedules), [])
    gc.freeze()
    gc.disable()  # greenlets leave cycles; between runs is early enough
    for number, schedule in enumerate(schedules):
        what = broke(World(schedule))
        found.failures.extend([f'{what}\n{schedule}'] if what else [])
        if number % 10 == 9:
            gc.collect()
    gc.enable()
    return found


def search(schedules: Iterator[Schedule], jobs: int = 2, seconds: float = math.inf, batch: int = BATCH) -> Findings:
    """Live through schedules in several processes, until some of them have broken a promise or the time is over."""
    runs, end = 0, time.monotonic() + seconds
    failures: List[str] = []
    batches = iter(lambda: list(itertools.islice(schedules, batch)), [])
    with multiprocessing.get_context('fork').Pool(jobs) as pool:
        for found in pool.imap_unordered(live_through, batches):
            runs, failures = runs + found.runs, failures + found.failures
            if len(failures) >= MOST or time.monotonic() > end:
                break
    return Findings(runs, failures)
