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
from .pair import (
    BOOT, EC2, FORWARDING, GUEST, LATEST_READ, MONITOR, NETWORK, SOMEBODY, TAG, Broken, Fault, Pace, Schedule, World)

BATCH = 250                       # schedules that hypothesis draws from one seed


PRIMARY, SECONDARY, BOTH = WHO = 'primary', 'secondary', 'both'
a_time = st.one_of(st.integers(0, 600), st.integers(0, 9600).map(lambda n: n / 16))
a_while = st.one_of(st.integers(1, 15), st.integers(5, 720).map(lambda n: n / 16), st.integers(1, 200))
an_hour = st.sampled_from((600, 3600))


def faults(*kinds: str, how: Any = st.integers(0, 59), lasts: Any = a_while, at: Any = a_time) -> Any:
    return st.builds(Fault, at, st.sampled_from(kinds), st.sampled_from(WHO), lasts, how)


def after(fault: Any, others: Any, seconds: Any) -> Any:
    """Draw a fault and others that begin so many seconds after it."""
    return st.builds(lambda first, rest: [first, *(other._replace(at=first.at + late) for late, other in rest)],
                     fault, st.lists(st.tuples(seconds, others), max_size=3))


conditions = st.builds(
    Conditions, st.integers(1, 3), st.booleans(), st.sampled_from((0.1, 0.5, 1.5)), st.integers(0, LATEST_READ),
    st.integers(0, 3), st.sampled_from((60, 150, 300)), st.integers(5, 90), st.integers(15, 60), st.integers(1, 30),
    st.sampled_from((0, 20, 150)), st.sampled_from((0, 0, 0, 0, 1, 2)))
greatest_lags = conditions.map(lambda one: one._replace(read_lag=LATEST_READ, effect_lag=3, check_lag=300))
some_paces = st.sampled_from((Pace(),) * 6 + (
    Pace(3, 0.2, 0.2), Pace(3, 0.1, 0.1), Pace(2, 1.0, 0.25), Pace(6, 1.0, 2.0)))
limits = st.sampled_from((Pace(50, 0.2, 0.25), Pace(2, 0.05, 0.05), Pace(3, 30.0, 0.25), Pace(3, 1.0, 600.0)))
trouble = st.one_of(faults(*MONITOR), faults(*EC2), faults('cut EC2'))
any_fault = st.one_of(*(faults(*group) for group in (GUEST, BOOT, MONITOR, NETWORK, EC2, SOMEBODY, FORWARDING, TAG)))
near = st.lists(st.tuples(st.integers(0, 40), any_fault), min_size=2, max_size=5).map(  # faults that meet
    lambda found: [fault._replace(at=found[0][1].at + later) for later, fault in found])
deaf = after(faults('cut peer', 'block ping'), trouble, st.integers(0, 40))  # two that live, and something else
denied = st.builds(  # a role that may not do all, and something else
    lambda forbidden, others: [forbidden, *(other._replace(at=100 + other.at % 200) for other in others)],
    st.builds(Fault, st.integers(0, 200), st.just('forbid'), st.sampled_from(WHO),
              st.sampled_from((100, 400, 800, 1600)), st.integers(0, 8)),
    st.lists(st.one_of(any_fault, faults('cut peer', 'block ping', *SOMEBODY)), min_size=1, max_size=3))
loss = st.lists(faults('loss', how=st.integers(5, 20)), min_size=1, max_size=4)
heavy_loss = st.lists(faults('loss', how=st.integers(30, 99)), min_size=1, max_size=2)
hiccup = faults('cut peer', 'block ping', 'reboot', lasts=st.integers(5, 720).map(lambda n: n / 16))
hiccups = st.builds(  # alone and in series, also when a first one has moved everything
    lambda first, found, pause: [first._replace(at=100), *(
        fault._replace(at=130 + n * pause + fault.at / 600) for n, fault in enumerate(found))],
    hiccup, st.lists(hiccup, max_size=5), st.integers(5, 60))
long_ones = st.lists(st.one_of(faults('cut peer', 'block ping', 'no data', 'forbid', 'cut EC2', 'suspend', 'EC2 down',
                                      lasts=an_hour), any_fault), min_size=1, max_size=3)
lost = st.lists(faults('delete route', 'release address', 'add table', lasts=st.integers(1, 200)),
                min_size=1, max_size=2)
unlit = after(faults('forwarding lost', lasts=st.integers(10, 800)),  # forwarding is lost, and something else
              st.one_of(faults(*FORWARDING), faults('crash', 'reboot', 'kill'), any_fault), st.integers(0, 300))
refused_relief = st.builds(  # one does not forward, and EC2 does not let its peer take over for a while
    lambda at, later, kind, lasts, others: [
        Fault(at, 'forwarding lost', PRIMARY, 900, 1), Fault(at + later, kind, SECONDARY, lasts, 4), *(
            other._replace(at=at + other.at % 60) for other in others)],
    st.integers(60, 200), st.integers(-40, 10), st.sampled_from(('forbid', 'EC2 down', 'lossy', 'throttle')),
    st.integers(20, 120), st.lists(trouble, max_size=1))
work = after(faults(*TAG, lasts=st.integers(10, 600)),  # somebody works on one or both, and something else happens
             st.one_of(faults(*TAG), faults('crash', 'stop', 'reboot', 'kill'), any_fault), st.integers(0, 300))
silent_checks = st.builds(  # a peer dies or starts, and its checks tell nothing for long
    lambda mute, others: [mute, *(other._replace(at=100 + other.at % 60) for other in others)],
    st.builds(Fault, st.integers(0, 150), st.sampled_from(('no data', 'left out')), st.sampled_from(WHO),
              st.just(3600), st.just(0)),
    st.lists(faults('crash', 'kill', 'hang', 'reboot'), min_size=1, max_size=3))
deaf_and_dead = st.builds(  # two that live and may not stop each other, and one dies
    lambda *found: list(found), st.builds(Fault, st.just(200), st.sampled_from(('cut peer', 'block ping')),
                                          st.sampled_from(WHO), st.just(3600), st.just(0)),
    st.builds(Fault, st.just(190), st.just('forbid'), st.just(BOTH), st.just(3700), st.just(6)),
    st.builds(Fault, st.integers(205, 2000), st.sampled_from(('crash', 'stop')), st.sampled_from(WHO[:2]),
              st.just(0), st.just(0)))
stillborn = st.builds(  # one is restarted, and dies again before its peer can hear it
    lambda who, cut, dies: [Fault(100, 'crash', who), Fault(cut, 'cut peer', lasts=900),
                            *(Fault(cut + later, 'crash', who) for later in dies)],
    st.sampled_from(WHO[:2]), st.integers(150, 400), st.lists(st.integers(5, 200), min_size=1, max_size=3))
HEADS = (PRIMARY, SECONDARY), (SECONDARY, PRIMARY)
stopping = st.builds(  # somebody stops one whose guest takes its time, and meanwhile the other one dies
    lambda heads, at, later: [Fault(at, 'stubborn', heads[0]), Fault(at + 1, 'stop', heads[0]),
                              Fault(at + 1 + later, 'crash', heads[1])],
    st.sampled_from(HEADS), st.integers(60, 400), st.integers(0, 150))
unheard = st.builds(  # two that live, do not hear each other and are restarted, and EC2 does not tell all
    lambda who, at, mute, kill, how, others: [
        Fault(at, mute, 'both', 3600), Fault(at + 5, 'forbid', who, 3600, how), Fault(at + 10, kill, who, 5), *(
            other._replace(at=at + 20 + other.at % 300, lasts=5) for other in others)],
    st.sampled_from(WHO), st.integers(60, 200), st.sampled_from(('cut peer', 'block ping')),
    st.sampled_from(('kill', 'reboot')), st.integers(0, 3), st.lists(faults(*MONITOR, *SOMEBODY), max_size=2))
outside = st.builds(  # everything is given to something outside the pair, and the two do not hear each other
    lambda at, later, lasts, others: [
        Fault(at, 'move route', PRIMARY, 1, 3), Fault(at, 'move address', PRIMARY, 1, 3),
        Fault(at + later, 'cut peer', lasts=lasts), *(
            other._replace(at=at + later + other.at % 60) for other in others)],
    st.integers(60, 200), st.integers(1, 300), st.integers(60, 900), st.lists(trouble, max_size=1))
powerless = st.builds(  # one that may not take over sees its peer's checks fail for a while yet as it works again
    lambda heads, at, lasts, others: [
        Fault(at - 10, 'forbid', heads[1], 3600, 4), Fault(at, 'cut off', heads[0], lasts),
        Fault(at, 'cut peer', lasts=400), *(other._replace(at=at + other.at % 60) for other in others)],
    st.sampled_from(HEADS), st.integers(60, 200), st.integers(50, 100), st.lists(trouble, max_size=1))
unfit = st.builds(  # one works again whose checks still fail, and would claim something
    lambda who, at, lasts, later, why, others: [
        Fault(at, 'cut off', who, lasts), Fault(at + lasts + later, why, who, 5), *(
            other._replace(at=at + lasts + other.at % 60) for other in others)],
    st.sampled_from(WHO[:2]), st.integers(60, 200), st.integers(60, 100), st.integers(-20, 40),
    st.sampled_from(('kill', 'kill', 'delete route', 'release address')), st.lists(trouble, max_size=1))
alarmed = st.builds(  # EC2 says of one for a while that its checks fail, and the two are deaf, and were never heard
    lambda alarm, at, mute, kills, whom, others: [
        Fault(at, mute, 'both', 3600), *(Fault(at + 10 + late, 'kill', who, 5) for late, who in kills),
        *(Fault(at - 20 + later, 'false alarm', whom, lasts) for later, lasts in alarm), *(
            other._replace(at=at + other.at % 400) for other in others)],
    st.lists(st.tuples(st.integers(0, 600), st.integers(1, 250)), min_size=1, max_size=2), st.integers(60, 200),
    st.sampled_from(('cut peer', 'block ping')),
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(WHO)), max_size=2),
    st.sampled_from(WHO), st.lists(st.one_of(trouble, faults(*TAG)), max_size=1))
worked_on = st.builds(  # the work on one cuts it off from its peer, or EC2 says meanwhile that its checks fail
    lambda who, at, later, kind, lasts, others: [
        Fault(at, 'maintenance', who, 900), Fault(at + later, kind, who, lasts), *(
            other._replace(at=at + later + other.at % 60) for other in others)],
    st.sampled_from(WHO[:2]), st.integers(60, 200), st.integers(-20, 200),
    st.sampled_from(('cut peer', 'block ping', 'false alarm')), st.integers(5, 200), st.lists(trouble, max_size=1))
refused = st.builds(  # a role that may not claim everything, as its peer dies, and dies again
    lambda heads, at, how, lasts, again, others: [
        Fault(at, 'forbid', heads[1], lasts, how), Fault(at + 5, 'crash', heads[0]),
        Fault(at + 5 + again, 'crash', heads[0]), *(
            other._replace(at=at + other.at % 100) for other in others)],
    st.sampled_from(HEADS), st.integers(0, 200), st.sampled_from((4, 5, 8)), st.integers(100, 1600),
    st.integers(20, 400), st.lists(faults(*SOMEBODY, 'kill', 'cut peer'), max_size=2))
stale = st.builds(  # EC2 does not tell the addresses, and one comes up with another
    lambda who, at, later, others: [
        Fault(at, 'forbid', 'both', 1600, 3), Fault(at + later, 'new private address', who, 5), *(
            other._replace(at=at + later + other.at % 60) for other in others)],
    st.sampled_from(WHO[:2]), st.integers(4, 200), st.integers(0, 200), st.lists(trouble, max_size=1))
suspended = st.builds(  # one misses some pings, is suspended or cannot send, and misses some more
    lambda who, at, before, late, kind, lasts, after, others: [
        Fault(at, 'cut peer', 'both', before), Fault(at + before - late, kind, who, lasts, 1),
        Fault(at + before - late + lasts - 1, 'cut peer', 'both', after), *(
            other._replace(at=at + other.at % 60) for other in others)],
    st.sampled_from(WHO), st.integers(60, 200), st.integers(1, 6), st.integers(0, 2),
    st.sampled_from(('suspend', 'cut off')), st.integers(2, 40), st.integers(1, 7), st.lists(trouble, max_size=1))
isolated = st.builds(  # one is cut off from everything for long, and comes back while the two are still deaf
    lambda who, kind, at, lasts, longer, how, others: [
        Fault(at, kind, who, lasts, how), Fault(at, 'cut peer', 'both', lasts + longer), *(
            other._replace(at=at + lasts + other.at % 40 - 20) for other in others)],
    st.sampled_from(WHO[:2]), st.sampled_from(('cut off', 'cut off', 'cut EC2', 'suspend')), st.integers(100, 200),
    st.integers(30, 200), st.integers(10, 200), st.integers(0, 1),
    st.lists(st.one_of(trouble, faults('late', lasts=st.integers(15, 60)), faults('lossy', 'forbid', *SOMEBODY)),
             max_size=3))
apart = st.builds(  # somebody moves a part, and soon EC2 does not tell one of the two where it is
    lambda moved, to, at, later, who, how, others: [
        Fault(at, moved, PRIMARY, 1, to), Fault(at + later, 'forbid', who, 600, how), *(
            other._replace(at=at + other.at % 300) for other in others)],
    st.sampled_from(('move route', 'move address')), st.integers(0, 1), st.integers(60, 300), st.integers(0, 120),
    st.sampled_from(WHO), st.integers(1, 2), st.lists(st.one_of(trouble, faults(*SOMEBODY)), max_size=2))
blind = st.builds(  # one dies, and EC2 does not tell its peer who holds
    lambda heads, at, how, lasts, moved, others: [
        *moved, Fault(at, 'forbid', heads[1], lasts, how), Fault(at + 5, 'crash', heads[0]), *(
            other._replace(at=at + other.at % 100) for other in others)],
    st.sampled_from(HEADS), st.integers(60, 200), st.integers(1, 2), st.integers(60, 900),
    st.lists(st.builds(Fault, st.integers(5, 50), st.sampled_from(SOMEBODY), st.just(PRIMARY), st.just(1), st.just(3)),
             max_size=1), st.lists(trouble, max_size=1))
flapping = st.builds(  # now one does not forward, now the other
    lambda first, period, count, odd: [
        Fault(100 + n * period, 'forwarding lost', (PRIMARY, SECONDARY)[(n + first) % 2], period * 0.8, odd)
        for n in range(count)],
    st.integers(0, 1), st.integers(150, 1000), st.integers(2, 7), st.integers(0, 1))
any_faults = st.one_of(st.lists(any_fault, min_size=1, max_size=6), near, near, deaf, deaf, denied, loss, heavy_loss,
                       hiccups, hiccups, long_ones, lost, unlit, unlit, flapping, refused_relief, work, work,
                       silent_checks, deaf_and_dead, stillborn, stopping, unheard, outside, powerless, unfit, alarmed,
                       worked_on, suspended, stale, refused, isolated, apart,
                       blind)
phases = st.one_of(st.just(0.0), st.integers(0, 64).map(lambda n: n / 16))
fail_backs = st.sampled_from((True, True, True, False))


def drawn(found: Any, conditions: Any = conditions, paces: Any = some_paces, probes: Any = st.booleans()) -> Any:
    """Draw schedules with such faults."""
    return st.builds(Schedule, found.map(tuple), conditions, st.integers(0, 1 << 16), paces, phases, st.just(''),
                     fail_backs, probes)


usual = drawn(any_faults)
hardest = drawn(st.one_of(deaf, hiccups, near), greatest_lags)
extreme = drawn(st.lists(any_fault, min_size=1, max_size=2), paces=limits)
schedules = st.one_of(*[usual] * 8, *[hardest] * 4, extreme)


def one_table(check_lag: int) -> Any:
    """Draw conditions with one table and no address, so that one or the other holds everything."""
    return greatest_lags.map(lambda one: one._replace(address=False, tables=1, check_lag=check_lag))


# Two that live and do not hear each other, for three hours, whatever is forbidden to whom.
contests = st.builds(
    lambda mute, forbidden, first, conditions, seed, phase: Schedule(
        (mute, *forbidden, *(fault._replace(at=200 + fault.at % 40, lasts=min(fault.lasts, 60)) for fault in first)),
        conditions, seed, Pace(), phase, 'contest'),
    st.builds(Fault, st.just(200), st.sampled_from(('cut peer', 'block ping')), st.sampled_from(WHO),
              st.just(10800), st.just(0)),
    st.lists(st.builds(Fault, st.just(190), st.just('forbid'), st.sampled_from(WHO), st.just(11000),
                       st.integers(0, 8)), max_size=3),
    st.lists(faults(*EC2, 'cut EC2'), max_size=1), conditions, st.integers(0, 1 << 16), phases)
# Two that answer pings and do not forward, or only now and then, for three hours.
darkness = st.builds(
    lambda whole, parts, conditions, seed, phase: Schedule(
        (Fault(200, 'forwarding lost', whole, 10800, 1), *(
            fault._replace(at=200 + fault.at * 17, how=1) for fault in parts)),
        conditions._replace(frames=0), seed, Pace(), phase, 'contest', True, True),
    st.sampled_from(WHO), st.lists(faults('forwarding lost', 'target dead', lasts=st.integers(10, 3000)), max_size=6),
    conditions, st.integers(0, 1 << 16), phases)
crash_loops = st.builds(
    lambda conditions, seed, phase: Schedule(
        (Fault(100, 'crash loop', lasts=90000, how=20),), conditions, seed, Pace(), phase, 'crash loop'),
    conditions, st.integers(0, 1 << 16), phases)

GENERATORS = {'schedules': schedules, 'hardest': hardest, 'contests': contests, 'darkness': darkness,
              'crash_loops': crash_loops,
              **{name: drawn(found) for name, found in (
                  ('hiccups', hiccups), ('lost', lost), ('denied', denied), ('work', work), ('deaf', deaf),
                  ('silent_checks', silent_checks), ('deaf_and_dead', deaf_and_dead), ('stillborn', stillborn),
                  ('stopping', stopping), ('unheard', unheard), ('apart', apart), ('blind', blind),
                  ('alarmed', alarmed), ('worked_on', worked_on), ('suspended', suspended),
                  ('stale', stale), ('refused', refused))},
              'isolated': drawn(isolated, greatest_lags),
              'unfit': drawn(unfit, conditions.map(lambda one: one._replace(check_lag=60))),
              **{name: drawn(found, one_table(lag))
                 for name, found, lag in (('outside', outside, 300), ('powerless', powerless, 60))},
              **{name: drawn(found, conditions.map(lambda one: one._replace(frames=0)),
                             st.sampled_from((Pace(), Pace(6, 1.0, 0.25))), st.just(True))
                 for name, found in (('unlit', unlit), ('flapping', flapping), ('refused_relief', refused_relief))}}


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


def search(seed: int, count: int, module: Any = nat_monitor, shrink: bool = True, drawn: Any = schedules) -> Findings:
    """Run `count` schedules drawn from a seed."""
    worst: Dict[str, float] = {}
    broken: List[Schedule] = []
    runs = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,) + ((hypothesis.Phase.shrink,) if shrink else ()))
    @hypothesis.given(drawn)
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


def search_some(seed: int, count: int, generator: str) -> Findings:
    return search(seed, count, drawn=GENERATORS[generator])


def search_together(seed: int, count: int, jobs: int, seconds: Optional[float] = None,
                    generator: str = 'schedules') -> Findings:
    """Search in several processes, until `count` or `seconds` are over or something breaks."""
    worst: Dict[str, float] = {}
    runs, end = 0, time.monotonic() + (seconds or 1e9)
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context('fork')) as pool:
        batch = min(BATCH, -(-count // jobs))
        pending = {pool.submit(search_some, seed * 1000003 + n, min(batch, count - n * batch), generator)
                   for n in range(-(-count // batch))}
        for future in concurrent.futures.as_completed(pending):
            found = future.result()
            runs += found.runs
            for what, value in found.worst.items():
                worst[what] = max(value, worst.get(what, value))
            if found.failure or time.monotonic() > end:
                pool.shutdown(wait=True, cancel_futures=True)
                return Findings(runs, worst, found.failure)
    return Findings(runs, worst)
