"""What must hold in every run: a function for each promise, which says it in a sentence that a user would sign."""
from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

from nat_monitor import AN_HOUR, CALL_DEADLINE, CLAIM_RETRY, LOOK_AFTER_CHANGE, LOOK_INTERVAL, MINUTE, PROBE_INTERVAL

from .cloud import ADDRESS, PATIENCE
from .faults import LATEST_READ, LOST

if TYPE_CHECKING:
    from .cloud import Instance
    from .pair import World

LATEST_EFFECT = 15.0              # s from the sending of a call to its effect, at most
CLAIMS = ('replace_route', 'create_route', 'associate_address')
CALLS_A_MINUTE = 60               # of one monitor, in any state, and further:
CALLS_A_MINUTE_OF_A_PART = 50     # for each table and the address
EVENTS_A_SECOND = 30              # of a run: more is a busy loop
CHANGES = 12                      # of a part's holder by monitors in three hours, whatever happens in these


class Broken(BaseException):
    """A promise does not hold; no monitor may catch it."""


class Watch:
    """What the promises remember of a run."""

    def __init__(self) -> None:
        self.seen: Dict[str, float] = {}           # the worst values
        self.begun: Dict[str, float] = {}          # since when a condition has held, by its name
        self.apart_at = -1e9                       # the latest time at which not all was at one that runs
        self.ready: List[str] = []                 # who was able when it was last served, and heard the holder
        self.is_lit, self.counted_at, self.dark = True, 0.0, 0.0  # seconds not served, in all
        self.stops = 0                             # of one that ran, by a monitor
        self.changes: Dict[str, List[float]] = {}  # by part, when a monitor took it
        self.moved_at = -1e9                       # the latest time at which a monitor or somebody moved a part

    def lasts(self, what: str, holds: bool, now: float) -> float:
        """Return for how long a condition has held."""
        if not holds:
            self.begun.pop(what, None)
            return 0.0
        return now - self.begun.setdefault(what, now)

    def worst(self, what: str, value: float) -> None:
        self.seen[what] = max(value, self.seen.get(what, 0.0))


def at_every_change(world: World) -> None:
    never_both_stopped(world)
    is_served(world)
    for one in world.instances:
        if one.name in world.records:
            who_cannot_serve_is_relieved(world, one)
            is_restarted(world, one)
            says_so_where_nothing_helps(world, one)


def at_every_call(world: World, one: Instance, name: str, how: Dict[str, Any]) -> None:
    calls_are_few(world, one, name)
    part = how.get('RouteTableId', ADDRESS) if name in CLAIMS else ''
    if how.get('DryRun') or name.startswith('describe') or world.cloud.owners().get(part) == one.id:
        return  # nothing moves
    decides_only_with_ec2(world, one, name)
    who_is_worked_on_is_left_alone(world, one, name)
    if part:
        who_cannot_nat_takes_nothing(world, one, name)
        takes_nothing_from_one_that_answers(world, one, part)
        world.records[one.name].claim_at = world.hub.now
    else:
        only_the_failed_are_stopped(world, one, name, how)
        world.records[one.name].stepped_at = world.hub.now


def at_every_effect(world: World, one: Instance, name: str, state: str, owners: Dict[str, Optional[str]]) -> None:
    """Look at what a call has changed; `state` was the peer's before."""
    record = world.records[one.name]
    if name == 'start_instances' and state == 'stopped':
        record.start_at = world.hub.now
    if name == 'stop_instances' and state == 'running' and one.process:
        stops_are_spaced(world, one)
    for part, owner in world.cloud.owners().items():
        if owner != owners[part]:
            leaves_what_somebody_moved(world, one, part, owners[part])
            changes_hands_seldom(world, part)
            record.owed.discard(part)
            record.has_relieved |= owners[part] == world.peer(one).id and not record.misses
            note_move(world, [world.peer(one)])


def lifetime(world: World) -> float:
    """Return for how long a decision may rest on what EC2 and the host have told."""
    return float(CALL_DEADLINE + 2 * world.settings.ping_timeout)


def is_silent(world: World, one: Instance) -> bool:
    """Tell whether one has missed as many pings in a row as make its peer silent."""
    return bool(world.records[one.name].misses >= world.settings.num_pings * (2 if one is world.instances[0] else 1))


def note_move(world: World, losers: Sequence[Instance]) -> None:
    """A monitor or somebody has moved a part; the losers need not fail back any more."""
    world.watch.moved_at = world.hub.now
    for one in losers:
        if one.name in world.records:
            world.records[one.name].has_lost = True


def is_due(world: World, one: Instance, what: str, holds: bool, bound: float) -> None:
    """What one is to do is done in time; the worst time is noted."""
    lasted = world.watch.lasts(f'{one.name} {what}', holds, world.hub.now)
    if lasted:
        world.watch.worst(f'seconds until it {what}', lasted)
        if lasted > bound:
            raise Broken(f'{what}: {one.name} does not within {lasted:.1f} s')


# Who is stopped, and started

def never_both_stopped(world: World) -> None:
    """Never are both instances stopping or stopped through the monitors' doing."""
    if all(one.state in ('stopping', 'stopped') and one.stopped_by for one in world.instances):
        raise Broken('both stopped: by the monitors')


def only_the_failed_are_stopped(world: World, one: Instance, name: str, how: Dict[str, Any]) -> None:
    """Nobody stops one that runs, unless EC2's checks had failed that one, and not the stopper; or forces it early.

    They had for half a minute of answers within this silence, none more than a minute apart.
    """
    record, waited = world.records[one.name], world.hub.now - world.peer(one).stopping_at
    if how.get('Force') and waited < world.settings.wait_for_instance_stop:
        raise Broken(f'stopped: {one.name} forces its peer {waited:.1f} s after that began to stop')
    if name != 'stop_instances' or how.get('Force'):
        return
    run: List[float] = []
    for told in reversed([told for told in record.told if told.peer[0]]):  # an error neither counts nor breaks
        if told.peer != ('running', 'impaired') or told.own[1] == 'impaired' or told.sent_at <= record.silent_at or (
                run and run[-1] - told.sent_at > MINUTE):
            break
        run.append(told.sent_at)
    if not run or run[0] - run[-1] < 30.0 - 0.01 or record.told_at.get('describe_instances', 0.0) < run[0] - 0.01:
        raise Broken(f'stopped: {one.name} stops its peer, which EC2 has called failed, or told of tags, at {run}')


def stops_are_spaced(world: World, one: Instance) -> None:
    """A peer is stopped only when it has had its time to start, and stops come later and later."""
    record, now, wait = world.records[one.name], world.hub.now, world.settings.wait_for_instance_start
    stops = [at for at in record.stops if now - at < 4 * AN_HOUR]
    spacing = min(AN_HOUR, wait * 2.0 ** (len(stops) - 1)) - LATEST_EFFECT
    if stops and now - stops[-1] < spacing or now - record.start_at < wait:
        raise Broken(f'spaced: {one.name} stops its peer after stops at {stops} and a start at {record.start_at}')
    record.stops = [*stops, now]
    world.watch.stops += 1


def is_restarted(world: World, one: Instance) -> None:
    """A peer that is stopped is started; a dead one whose checks fail is restarted, also if no claim is allowed."""
    peer, record = world.peer(one), world.records[one.name]
    stopped = peer.state == 'stopped'
    dead = peer.dead and (peer.state, peer.checks) == ('running', 'impaired') and one.checks != 'impaired'
    is_due(world, one, 'restarts its peer', (stopped or dead) and world.may_restart(one) and not world.fault('no data')
           and world.hub.now - record.stepped_at >= AN_HOUR,
           2 * MINUTE + LOOK_AFTER_CHANGE + world.settings.wait_for_instance_start * dead)


def says_so_where_nothing_helps(world: World, one: Instance) -> None:
    """A peer that runs and stays silent for WAIT_FOR_INSTANCE_START without a step is restarted, or an ERROR tells."""
    now, record = world.hub.now, world.records[one.name]
    lasted = world.watch.lasts(f'{one.name} hears nothing', is_silent(world, one) and world.may_restart(one)
                               and record.told[-1].peer[0] in ('running', '') and not any(record.tagged), now)
    if min(lasted, now - record.stepped_at) > world.settings.wait_for_instance_start + MINUTE and (
            now - record.error_at > lasted):
        raise Broken(f'not said: {one.name} hears nothing for {lasted:.0f} s, and neither restarts its peer nor tells')


# Who takes what

def decides_only_with_ec2(world: World, one: Instance, name: str) -> None:
    """Who has no fresh answer of EC2, or does not run in its eyes, begins nothing; nor a step while its peer answers."""
    record, age = world.records[one.name], world.hub.now - world.records[one.name].status_at
    own = record.told[-1].own[0]
    if own != 'running' and not (name in CLAIMS and own == ''):
        raise Broken(f'alone: {one.name} calls {name}, and EC2 calls it {own}')
    if age > lifetime(world) + CALL_DEADLINE * (name in CLAIMS):  # the address may come after the tables
        raise Broken(f'alone: {one.name} calls {name} {age:.1f} s after EC2 told the states')
    if name not in CLAIMS and not is_silent(world, one):
        raise Broken(f'alone: {one.name} calls {name} after {record.misses} misses')


def takes_nothing_from_one_that_answers(world: World, one: Instance, part: str) -> None:
    """Nobody takes from a peer that answers, or that was never heard and passes its checks.

    But for what the primary's start is owed and what lies apart, and to relieve one that cannot NAT or is tagged.
    """
    record, peer, now, cloud = world.records[one.name], world.peer(one), world.hub.now, world.cloud
    held = cloud.seen(LATEST_READ + lifetime(world)).owners.get(part) == cloud.owners()[part] == peer.id
    if not held or peer.state != 'running' or now - world.watch.apart_at < 30.0 or record.tagged == [False, True]:
        return
    if record.answered_at < record.started_at and record.told[-1].peer == ('running', 'ok'):
        raise Broken(f'taken: {one.name} claims {part} from a peer that it never heard, and whose checks pass')
    relieves = record.forwarded_at > record.started_at and now - record.lame_at < MINUTE
    if not is_silent(world, one) and not (
            part in record.owed or record.source_checks[1] or relieves or now - record.claim_at < 30.0):
        raise Broken(f'taken: {one.name} claims {part} after {record.misses} misses')


def who_cannot_nat_takes_nothing(world: World, one: Instance, name: str) -> None:
    """Who knows that it does not forward takes nothing: a route to it serves nobody."""
    fault = world.fault('forwarding lost', one)
    knows = fault and world.knows_fault(one) and world.hub.now - fault.at > lifetime(world)
    if not one.forwarding or knows or world.records[one.name].source_checks[0]:
        raise Broken(f'cannot NAT: {one.name} calls {name} and does not forward')


def who_is_worked_on_is_left_alone(world: World, one: Instance, name: str) -> None:
    """Nobody stops, starts or forces one that EC2 calls tagged; who is tagged itself claims only from a dead peer."""
    (own, peer), is_claim = world.records[one.name].tagged, name in CLAIMS
    may_serve = peer or not is_silent(world, one) and world.peer(one).state == 'running'
    if peer and not is_claim or own and is_claim and may_serve:
        raise Broken(f'tag: {one.name} calls {name}, where EC2 tells tags of {own, peer}')


def leaves_what_somebody_moved(world: World, one: Instance, part: str, before: Optional[str]) -> None:
    """What somebody gave to something outside is left there, and what is lost moves nothing else; a start aside."""
    record, peer, cloud = world.records[one.name], world.peer(one), world.cloud
    told_at = record.told_at.get('describe_addresses' if part == ADDRESS else 'describe_route_tables', 0.0)
    seen = cloud.seen(LATEST_READ + max(lifetime(world), world.hub.now - told_at)).owners.get(part)
    outside = before == seen not in (None, *cloud.instances)
    lost = before == peer.id and world.works(peer) and all(
        fault.kind in LOST for fault in world.schedule.faults)
    if part not in record.owed and (outside or lost):
        raise Broken(f'left: {one.name} takes {part} from {before}')


def changes_hands_seldom(world: World, part: str) -> None:
    """A part changes hands seldom: for each fault away and back, and twelve times in three hours at most.

    The latter alone holds for faults that last for long, and for lost packets.
    """
    changes, now = world.watch.changes.setdefault(part, []), world.hub.now
    changes.append(now)
    begun = [fault for fault in world.schedule.faults if fault.at <= now]
    lasting = any(fault.kind == 'loss' or fault.lasts > AN_HOUR / 2 for fault in begun)
    bound = CHANGES if lasting else min(CHANGES, 1 + sum(2 + 2 * (fault.who == 'both') for fault in begun))
    world.watch.worst('changes of a part', len(changes))
    if sum(now - at < 3 * AN_HOUR for at in changes) > bound:
        raise Broken(f'changes: {part} changes hands {len(changes)} times')


# Who serves

def is_served(world: World) -> None:
    """While one is able to serve, route and address soon point to one that works; in seconds, if all was calm."""
    watch, now, parts, holder = world.watch, world.hub.now, world.parts(), world.holder()
    watch.dark += 0.0 if watch.is_lit else now - watch.counted_at
    watch.counted_at, watch.is_lit = now, not parts or bool(holder and world.works(holder))
    if not holder or holder.state in ('stopped', 'terminated'):
        watch.apart_at = now
    # One that lives is left alone though it does not forward; but see `who_cannot_serve_is_relieved`.
    dark = watch.lasts('not served', not (watch.is_lit or holder and (world.hears(world.peer(holder)) or holder.up and (
        not holder.forwarding or world.fault('forwarding lost', holder)))), now)
    able = {one: watch.lasts(f'{one.name} is able', world.is_able(one), now) for one in world.instances}
    if not dark:
        watch.ready = [one.name for one, since in able.items() if holder and since >= MINUTE
                       and world.records[one.name].well_at <= now - 10.0]
    recent = sum(fault.at + fault.lasts > now - dark - MINUTE and fault.at <= now for fault in world.schedule.faults)
    for one, since in able.items():
        tight, unserved = one.name in watch.ready and recent <= 1, min(since, dark)
        bound = served_within(world, one, tight)
        watch.worst('seconds not served, of a pair that had settled' if tight else 'seconds not served', unserved)
        if unserved > bound:
            raise Broken(f'not served: for {unserved:.1f} s while {one.name} is able to (bound: {bound:.1f} s)')


def served_within(world: World, one: Instance, tight: bool) -> float:
    """Return the longest time that nobody may be served while one is able to.

    In a settled pair: pings, calls, the late effect of the claims; the last call finds the address where its answer was
    lost.  Else EC2 must tell that an unheard peer is dead, or say nothing good of it for long enough.
    """
    settings, conditions = world.settings, world.schedule.conditions
    pings = settings.wait_between_pings + 2 * settings.num_pings * settings.ping_timeout
    if not tight:
        return float(max(conditions.check_lag, LOOK_INTERVAL) + settings.wait_for_instance_start + 2 * MINUTE + pings)
    sooner = settings.num_pings * settings.ping_timeout * (one is world.instances[1])
    paced = CLAIM_RETRY * (settings.num_pings == 2)  # one miss is no reason to ask EC2 at once again
    calls = max(settings.ping_timeout, conditions.latency) + 4 * conditions.latency + 2 * conditions.effect_lag
    return float(pings - sooner + calls + paced + 1.0)


def who_cannot_serve_is_relieved(world: World, one: Instance) -> None:
    """Who answers, but is tagged or has its source/destination check on, hands over within a look.

    One that forwards nothing, where a probe had come back through it, is relieved within half a minute.
    """
    now, settings, peer, record = world.hub.now, world.settings, world.peer(one), world.records[one.name]
    loss = world.loss(one)
    if not world.forwards(peer) or loss or not world.hears(one):
        record.lame_at = now
    ready = peer.id in world.parts() and world.is_able(one) and world.hears(one) and not loss
    tagged = world.cloud.tagged or any(record.tagged)
    is_due(world, one, 'relieves by what EC2 tells', ready and bool(
        world.cloud.tagged == {peer.id} or not tagged and world.fault('source check', peer)), LOOK_INTERVAL + MINUTE)
    calm = now - max(record.refused_at, world.watch.moved_at) > LOOK_INTERVAL and not (
        tagged or record.source_checks[0] or record.misses or record.has_relieved)
    is_due(world, one, 'relieves by probes', ready and calm and world.schedule.probes and not world.forwards(peer)
           and world.conditions.frames == 0 and world.reaches_target(one) and world.holder() is peer
           and record.forwarded_at > record.started_at, PROBE_INTERVAL + 10.0 * settings.num_pings)


def settles_within(world: World) -> float:
    """When all faults have ended, the pair settles: both well, all of it at the primary if that is owed to its start.

    It may take a fail-back that waits, a stop that is spaced, and a guest that ignores it.
    """
    settings, conditions = world.settings, world.schedule.conditions
    return float(max(conditions.check_lag, conditions.recovery_lag) + LOOK_INTERVAL + PATIENCE + 2 * MINUTE
                 + 3 * settings.wait_for_instance_start + settings.wait_for_instance_stop + int(settings.fail_back))


def has_failed_back(world: World) -> bool:
    """A primary that has started has everything, also what was outside the pair, unless the peer took it since."""
    primary = world.instances[0]
    record, owners = world.records[primary.name], world.cloud.owners()
    return record.has_lost or all(owners[part] in (None, primary.id) for part in record.owed if part in owners)


# What a monitor costs

def calls_are_few(world: World, one: Instance, name: str) -> None:
    """A monitor makes few calls: a stated number a minute at most, and in a settled pair nothing but looks."""
    calls, now = world.records[one.name].calls, world.hub.now
    calls.append(now)
    while calls[0] <= now - 60.0:
        calls.popleft()
    world.watch.worst('calls of one monitor in a minute', len(calls))
    if len(calls) > CALLS_A_MINUTE + CALLS_A_MINUTE_OF_A_PART * len(world.settings.parts):
        raise Broken(f'calls: {one.name} makes {len(calls)} in a minute')
    if not name.startswith('describe'):
        world.quiet_at = now


def rests_between_turns(world: World) -> None:
    """No monitor is busy for nothing, also where no call leaves it."""
    if world.hub.count > EVENTS_A_SECOND * world.hub.now:
        raise Broken(f'busy: {world.hub.count} events in {world.hub.now:.0f} s')


def nothing_unforeseen(one: Instance, words: str) -> None:
    """No exception reaches the border of the loop."""
    if words.startswith('Traceback'):
        raise Broken(f'raised: {one.name}: {traceback.format_exc()}')
