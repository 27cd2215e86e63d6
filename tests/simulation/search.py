"""Which schedules are lived through: every fault, every pair of faults, and more faults as hypothesis draws them."""
from __future__ import annotations

import concurrent.futures
import functools
import gc
import itertools
import math
import multiprocessing
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import hypothesis
from hypothesis import strategies as st

from .cloud import Conditions
from .pair import (
    ACTIONS, BOOT, EC2, FORWARDING, GUEST, LATEST_READ, LOST, MONITOR, NETWORK, OF_BOTH, SOMEBODY, TAG, Broken, Fault,
    Pace, Schedule, World)

KINDS = (*GUEST, *BOOT, *MONITOR, *NETWORK, *FORWARDING, *TAG, *EC2, *SOMEBODY, *LOST)
VARIANTS: Dict[str, Tuple[int, ...]] = {  # of a kind, where there are any: what `how` tells
    'forbid': tuple(range(len(ACTIONS))), 'loss': (20, 60, 90, 97, 99), 'slow': (3, 12), 'lossy': (40, 120),
    'EC2 down': (0, 1), 'cut EC2': (0, 1), 'cut off': (0, 1), 'forwarding lost': (0, 1), 'left out': (0, 1),
    'move route': (1, 2, 3), 'move address': (1, 2, 3), 'stray address': (0, 1), 'add table': (0, 1)}
PHASES = (0.0, 21.0, 239.6)       # seconds after the start: a boot, calm, before a look
DURATIONS = (1.4, 4.5, 12.0, 70.0, 400.0)
FAR = Conditions(tables=2, latency=0.5, read_lag=LATEST_READ, effect_lag=3, check_lag=300, recovery_lag=20,
                 stop_takes=40, boot_takes=45, monitor_starts=10, public_back=20)
NEAR = Conditions(recovery_lag=300, stop_takes=30, boot_takes=30)
BATCH = 100                       # schedules that one process lives through at a time


def events(kind: str, durations: Sequence[float], whom: Sequence[str] = ('primary', 'secondary', 'both')
           ) -> Iterator[Fault]:
    """Yield a fault of every kind, of each of the two and both, that begins at 0."""
    if kind in OF_BOTH or kind in SOMEBODY or kind in LOST:
        whom = whom[:1]
    if kind in (*GUEST, *SOMEBODY, *LOST[:3]):
        durations = (1.0,)
    for who, lasts, how in itertools.product(whom, durations, VARIANTS.get(kind, (0,))):
        yield Fault(0.0, kind, who, lasts, how)


def singles(kind: str) -> Iterator[Schedule]:
    """Yield every schedule with one fault of this kind."""
    durations = DURATIONS[1::2] if kind in EC2 or kind == 'loss' else DURATIONS
    for fault, at in itertools.product(events(kind, durations), PHASES[::2] if kind in EC2 else PHASES):
        yield Schedule((fault._replace(at=at),), probes=kind in FORWARDING)
    for fault, (at, conditions) in itertools.product(events(kind, durations[::2]), ((100.0, NEAR), (121.3, FAR))):
        yield Schedule((fault._replace(at=at),), conditions, probes=kind not in FORWARDING, phase=0.5)
    if kind in (*GUEST, *BOOT, *MONITOR, *TAG):
        for fault, at, fail_back in itertools.product(events(kind, DURATIONS[1::2]), PHASES[1:], (False, 120)):
            yield Schedule((fault._replace(at=at),), fail_back=fail_back)


class Pairs:
    """All schedules with two faults, on a grid, in an order that is always the same and takes from everywhere."""

    LATER = (0.0, 2.6, 11.0, 40.0, 97.0, 190.0, 420.0)  # seconds from the begin of the first to that of the second

    def __init__(self) -> None:
        self.events = [fault for kind in KINDS for fault in events(kind, (6.5, 95.0, 600.0), ('primary', 'secondary'))
                       if kind != 'loss' or fault.how in (60, 90)]
        self.count = len(self.events) ** 2 * len(self.LATER)
        self.stride = next(n for n in itertools.count(int(self.count * 0.618)) if math.gcd(n, self.count) == 1)

    def __getitem__(self, number: int) -> Schedule:
        rest, later = divmod(number * self.stride % self.count, len(self.LATER))
        first, second = divmod(rest, len(self.events))
        at = 100.0 + number % 7 * 3.1
        pair = self.events[first]._replace(at=at), self.events[second]._replace(at=at + self.LATER[later])
        conditions = (Conditions(), NEAR, FAR)[number % 3]
        return Schedule(pair, conditions, probes=number % 2 == 0 or any(one.kind in FORWARDING for one in pair),
                        fail_back=(True, True, True, False, 120)[number % 5])


drawn = st.builds(  # three faults and more
    Schedule, st.lists(st.builds(
        Fault, st.integers(0, 600), st.sampled_from(KINDS), st.sampled_from(('primary', 'secondary', 'both')),
        st.one_of(st.integers(1, 15), st.integers(1, 200), st.sampled_from((600, 3600))), st.integers(0, 99)),
        min_size=3, max_size=6).map(tuple),
    st.builds(Conditions, st.integers(1, 3), st.booleans(), st.sampled_from((0.1, 0.5, 1.5)),
              st.integers(0, LATEST_READ), st.integers(0, 3), st.sampled_from((20, 60, 150, 300)),
              st.sampled_from((20, 60, 300)), st.integers(5, 90), st.integers(15, 60), st.integers(1, 30),
              st.sampled_from((0, 20, 150)), st.sampled_from((0, 0, 0, 1, 2))),
    st.integers(0, 999), st.sampled_from((Pace(),) * 3 + (Pace(3, 0.2, 0.2), Pace(2, 1.0, 0.25), Pace(6, 1.0, 2.0))),
    st.integers(0, 1920).map(lambda n: n / 16), st.sampled_from((True, True, False, 120)), st.booleans())


class Findings(NamedTuple):
    runs: int
    worst: Dict[str, float]       # by invariant, the worst value seen
    failures: List[str]


def broke(schedule: Schedule) -> str:
    """Return which promise a schedule breaks, '' if none."""
    try:
        World(schedule).run()
    except Broken as error:
        return str(error)
    return ''


def without_needless(schedule: Schedule) -> Schedule:
    """Leave out each fault without which the same promise breaks."""
    what = broke(schedule).split(':')[0]
    for fault in schedule.faults:
        rest = tuple(one for one in schedule.faults if one is not fault)
        if rest and broke(schedule._replace(faults=rest)).split(':')[0] == what:
            schedule = schedule._replace(faults=rest)
    return schedule


def tell(schedule: Schedule) -> str:
    """Return the time line of a schedule, and what it breaks."""
    world = World(schedule, traced=True)
    try:
        world.run()
        end = ''
    except Broken as error:
        end = str(error)
    return '\n'.join([str(schedule), *(world.timeline or ()), end])


def in_batches(schedules: Iterator[Schedule], size: int = BATCH) -> Iterator[Callable[[], Sequence[Schedule]]]:
    """Yield functions that return so many of the schedules each."""
    for some in iter(lambda: list(itertools.islice(schedules, size)), []):
        yield functools.partial(list, some)


def live_through(schedules: Sequence[Schedule], live: Callable[[World], Any] = World.run
                 ) -> Tuple[Dict[str, float], List[Tuple[str, Schedule]]]:
    """Return the worst values seen, and what each schedule that breaks a promise breaks."""
    worst: Dict[str, float] = {}
    failures: List[Tuple[str, Schedule]] = []
    gc.freeze()
    gc.disable()  # greenlets leave cycles; between runs is early enough
    for number, schedule in enumerate(schedules):
        world = World(schedule)
        try:
            live(world)
        except Broken as error:
            failures.append((str(error), schedule))
        for what, value in world.watch.seen.items():
            worst[what] = max(value, worst.get(what, value))
        if number % 10 == 9:
            gc.collect()
    gc.enable()
    return worst, failures


def draw(seed: int) -> List[Schedule]:
    """Return schedules with three faults and more, as hypothesis draws them."""
    found: List[Schedule] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=BATCH, database=None, deadline=None, phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(drawn)
    def collect(schedule: Schedule) -> None:
        found.append(schedule)
    collect()
    return found


def search(batches: Iterator[Callable[[], Sequence[Schedule]]], jobs: int, seconds: float = math.inf,
           most: int = 5) -> Findings:
    """Live through batches of schedules in several processes, until some of them have broken a promise."""
    worst: Dict[str, float] = {}
    failures: List[Tuple[str, Schedule]] = []
    runs, end = 0, time.monotonic() + seconds
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context('fork')) as pool:
        pending: Dict[Any, int] = {}
        while len(failures) < most and time.monotonic() < end:
            for batch in itertools.islice(batches, 2 * jobs - len(pending)):
                schedules = batch()
                pending[pool.submit(live_through, schedules)] = len(schedules)
            if not pending:
                break
            for future in concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED).done:
                seen, broken = future.result()
                runs += pending.pop(future)
                failures += broken
                for what, value in seen.items():
                    worst[what] = max(value, worst.get(what, value))
        pool.shutdown(cancel_futures=True)
    return Findings(runs, worst, [f'{what}\n{without_needless(schedule)}' for what, schedule in failures])
