"""What must hold in every run: one function for each promise, which says it in a sentence that a user would sign."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

from botocore.exceptions import BotoCoreError, ClientError
from requests import RequestException

from nat_monitor import AN_HOUR, CALL_DEADLINE, CLAIM_RETRY, LOOK_AFTER_CHANGE, LOOK_INTERVAL, MINUTE, PROBE_INTERVAL

from .cloud import ADDRESS, PATIENCE

if TYPE_CHECKING:
    from .cloud import Instance
    from .pair import World

LATEST_EFFECT, LATEST_READ = 15.0, 3.0
CLAIMS = ('replace_route', 'create_route', 'associate_address')
CALLS_A_MINUTE = 60               # of one monitor, in any state, and further:
CALLS_A_MINUTE_OF_A_PART = 50     # for each table and the address
CHANGES = 12                      # of a part's holder by monitors in three hours, whatever happens in these
TURNS_A_MINUTE = 300              # of the loop of one monitor: more is a busy loop


class Watch:
    """What the promises remember of a run."""

    def __init__(self) -> None:
        self.seen: Dict[str, float] = {}           # the worst values
        self.unserved_at: Optional[float] = None
        self.ready: List[str] = []                 # who was able for a minute before that, and heard the holder
        self.is_lit, self.counted_at, self.dark = True, 0.0, 0.0  # seconds not served, in all
        self.stops = 0                             # of one that ran, by a monitor
        self.able_at: Dict[str, Optional[float]] = {}
        self.split_at = -1e9
        self.changes: Dict[str, List[float]] = {}  # by part, when a monitor took it
        self.heir: Optional[str] = None            # the id of the one that serves
        self.heirs: List[float] = []               # when that changed
        self.last: Dict[str, str] = {}             # by part: who of the two had it last
        self.begun: Dict[str, float] = {}          # since when a condition has held, by its name

    def lasts(self, what: str, holds: bool, now: float) -> float:
        """Return for how long a condition has held."""
        if not holds:
            self.begun.pop(what, None)
            return 0.0
        return now - self.begun.setdefault(what, now)

    def worst(self, what: str, value: float) -> None:
        if value > self.seen.get(what, -1.0):
            self.seen[what] = value


def at_every_change(world: World) -> None:
    never_both_stopped(world)
    is_served(world)
    is_relieved(world)
    hands_over(world)
    is_restarted(world)
    says_so_where_nothing_helps(world)


def at_every_change_of_hands(world: World, one: Instance, name: str, before: Dict[str, Optional[str]]) -> None:
    """Look at what a call has moved."""
    for part, owner in world.cloud.owners().items():
        if owner != before[part]:
            leaves_what_is_outside(world, one, part, before)
            changes_hands_seldom(world, part)
            nothing_follows_what_is_lost(world, one, part, before)
            world.records[one.name].owed.discard(part)
            if world.watch.heir != one.id == world.heir():
                reliefs_are_spaced(world, one)
            note_owners(world)


def at_every_call(world: World, one: Instance, name: str, how: Dict[str, Any]) -> None:
    calls_are_few(world, one, name)
    if how.get('DryRun') or name.startswith('describe'):
        return
    record, part = world.records[one.name], how.get('RouteTableId', ADDRESS) if name in CLAIMS else ''
    owners = world.cloud.owners()
    if part and owners[part] == one.id:
        return  # nothing moves
    decides_only_with_ec2(world, one, name)
    who_is_worked_on_is_left_alone(world, one, name)
    if part:
        who_cannot_nat_takes_nothing(world, one, name)
        if owners[part] == world.peer(one).id == world.cloud.seen(LATEST_READ + lifetime(world)).owners[part]:
            takes_nothing_from_one_that_answers(world, one, part)
        record.claim_at = world.hub.now
    else:
        only_the_failed_are_stopped(world, one, name)
        steps_are_spaced(world, one, name, how)


def broken(text: str) -> None:
    from .pair import Broken
    raise Broken(text)


def lifetime(world: World) -> float:
    """Return for how long a decision may rest on what EC2 and the host have told."""
    return float(CALL_DEADLINE + 2 * world.settings.ping_timeout)


def pings_until_silent(world: World, one: Instance) -> int:
    return int(world.settings.num_pings * (2 if one is world.instances[0] else 1))


def never_both_stopped(world: World) -> None:
    """Never are both instances stopping or stopped through the monitors' doing."""
    if all(one.state in ('stopping', 'stopped') and one.stopped_by for one in world.instances):
        broken('both stopped: by the monitors')


def only_the_failed_are_stopped(world: World, one: Instance, name: str) -> None:
    """Nobody stops one that runs, unless EC2's checks had failed that one, and not the stopper.

    They had for half a minute of answers within this silence, none more than a minute apart; nor is it tagged.
    """
    record = world.records[one.name]
    if name != 'stop_instances' or record.peer_told[0] != 'running' or world.peer(one).state == 'stopping':
        return
    answers = [told for told in record.told if told.own[0] and told.peer[0]]  # no errors, which neither count nor break
    begun_at = latest = answers[-1].sent_at if answers else 0.0
    for told in reversed(answers):
        if told.peer != ('running', 'impaired') or told.own[1] == 'impaired' or begun_at - told.sent_at > MINUTE:
            break
        begun_at = told.sent_at
    if latest - begun_at < 30.0 - 0.01:
        broken(f'stopped: {one.name} stops its peer, which EC2 has called failed for {latest - begun_at:.1f} s')
    if record.misses < pings_until_silent(world, one):
        broken(f'stopped: {one.name} stops its peer after {record.misses} misses')
    if record.told_at.get('describe_instances', 0.0) < latest - 0.01:
        broken(f'stopped: {one.name} stops its peer, and was not told whether that is under maintenance')


def takes_nothing_from_one_that_answers(world: World, one: Instance, part: str) -> None:
    """Nobody takes from a peer that answers, or that was never heard and passes its checks.

    But for what the primary's start is owed and what lies apart, and to relieve one that cannot NAT or is tagged.
    """
    record, peer, now = world.records[one.name], world.peer(one), world.hub.now
    unheard = record.answered_at < record.started_at
    if now - world.watch.split_at < 30.0 or record.tagged == [False, True]:
        return
    if unheard and record.peer_told == ('running', 'ok') and peer.state == 'running' and len(record.told) > 0:
        broken(f'taken: {one.name} claims {part} from a peer that it never heard, and whose checks pass')
    if part in record.owed or record.source_checks[1] or is_relief(world, one) or now - record.claim_at < 30.0:
        return
    if record.misses < pings_until_silent(world, one) and peer.state == 'running':
        broken(f'taken: {one.name} claims {part} after {record.misses} misses')


def decides_only_with_ec2(world: World, one: Instance, name: str) -> None:
    """Who has no fresh answer of EC2, cannot send, or is not running in EC2's eyes, begins nothing."""
    record, peer, now = world.records[one.name], world.peer(one), world.hub.now
    if record.own_state != 'running' and not (name in CLAIMS and record.own_state == 'not known'):
        broken(f'alone: {one.name} calls {name}, and EC2 calls it {record.own_state}')
    claims = CALL_DEADLINE if name in CLAIMS else 0.0  # the address may come after the tables
    if now - record.status_at > lifetime(world) + claims:
        broken(f'alone: {one.name} calls {name} {now - record.status_at:.1f} s after EC2 told the states')
    if name in CLAIMS and not record.misses or peer.state == 'terminated':  # which has no address to ping any more
        return
    if not record.misses or not record.ping_left:
        broken(f'alone: {one.name} calls {name}, and its latest ping was no miss')
    if record.status_before_miss < record.answered_at and name not in CLAIMS:
        broken(f'alone: {one.name} calls {name}, and EC2 has not answered since the peer last did')


def is_served(world: World) -> None:
    """While one is able to serve, route and address soon point to one that works; in seconds, if all was calm."""
    watch, now, parts, holder = world.watch, world.hub.now, world.parts(), world.holder()
    watch.dark += 0.0 if watch.is_lit else now - watch.counted_at
    watch.counted_at, watch.is_lit = now, not parts or bool(holder and world.works(holder))
    for one in world.instances:
        if not world.is_able(one):
            watch.able_at[one.name] = None
        elif watch.able_at.get(one.name) is None:
            watch.able_at[one.name] = now
    if len(set(parts)) > 1 or None in parts or any(
            world.cloud.instances[i].state in ('stopped', 'terminated') for i in parts if i):
        watch.split_at = now
    # One that lives is left alone though it does not forward; but see `is_relieved`.
    if not parts or holder and (world.works(holder) or world.hears(world.peer(holder)) or (
            holder.up and (not holder.forwarding or world.fault('forwarding lost', holder)))):
        watch.unserved_at = None
        return
    able = {one: watch.able_at[one.name] for one in world.instances if watch.able_at[one.name] is not None}
    if watch.unserved_at is None:
        watch.unserved_at = now
        watch.ready = [one.name for one, since in able.items() if holder and now - (since or 0.0) >= MINUTE
                       and not world.records[one.name].misses and world.records[one.name].well_at <= now - 10.0]
    recent = sum(fault.at + fault.lasts > watch.unserved_at - MINUTE and fault.at <= now
                 for fault in world.schedule.faults)
    for one, since in able.items():
        unserved = now - max(since or 0.0, watch.unserved_at)
        tight = one.name in watch.ready and recent <= 1
        bound = served_again_within(world, one) if tight else served_within(world)
        watch.worst('seconds not served, of a pair that had settled' if tight else 'seconds not served', unserved)
        if unserved > bound:
            broken(f'not served: for {unserved:.1f} s while {one.name} is able to (bound: {bound:.1f} s)')


def served_within(world: World) -> float:
    """Whatever came before: EC2 tells that an unheard peer is dead, or says nothing good of it for long enough."""
    conditions, settings = world.schedule.conditions, world.settings
    return float(max(conditions.check_lag, LOOK_INTERVAL) + settings.wait_for_instance_start + 2 * MINUTE
                 + settings.wait_between_pings + 2 * settings.num_pings * settings.ping_timeout)


def served_again_within(world: World, one: Instance) -> float:
    """From the death of the serving instance of a settled pair: pings, calls, the late effect of the claims.

    The last EC2 call is the question that finds the address where its answer was lost.
    """
    settings, conditions = world.settings, world.schedule.conditions
    pings = pings_until_silent(world, one) * settings.ping_timeout
    calls = 4 * conditions.latency + 2 * conditions.effect_lag
    paced = CLAIM_RETRY if settings.num_pings == 2 else 0.0  # one miss is no reason to ask EC2 at once again
    return float(settings.wait_between_pings + pings + max(settings.ping_timeout, conditions.latency) + calls + paced
                 + 1.0)


def who_cannot_nat_takes_nothing(world: World, one: Instance, name: str) -> None:
    """Who knows that it does not forward takes nothing: a route to it serves nobody."""
    fault, record = world.fault('forwarding lost', one), world.records[one.name]
    knows = fault and world.knows_fault(one) and world.hub.now - fault.at > lifetime(world)
    if not one.forwarding or knows or record.source_checks[0]:
        broken(f'cannot NAT: {one.name} calls {name} and does not forward')


def calls_are_few(world: World, one: Instance, name: str) -> None:
    """A monitor makes few calls: a stated number a minute at most, and in a settled pair nothing but looks."""
    record, now = world.records[one.name], world.hub.now
    record.calls.append(now)
    while record.calls[0] <= now - 60.0:
        record.calls.popleft()
    bound = CALLS_A_MINUTE + CALLS_A_MINUTE_OF_A_PART * len(world.settings.parts)
    world.watch.worst('calls of one monitor in a minute', len(record.calls))
    if len(record.calls) > bound:
        broken(f'calls: {one.name} makes {len(record.calls)} in a minute')
    if not name.startswith('describe'):
        world.quiet_at = now


def rests_between_turns(world: World, one: Instance) -> None:
    """No monitor is busy for nothing, also where no call leaves it."""
    turns = world.records[one.name].turns
    turns.append(world.hub.now)
    pinging = 60.0 / world.settings.wait_between_pings
    if len(turns) == TURNS_A_MINUTE and turns[-1] - turns[0] < 60.0 * TURNS_A_MINUTE / (TURNS_A_MINUTE + pinging):
        broken(f'calls: {one.name} is in a busy loop')


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
        broken(f'changes: {part} changes hands {len(changes)} times')


def nothing_follows_what_is_lost(world: World, one: Instance, part: str, before: Dict[str, Optional[str]]) -> None:
    """What somebody loses, deletes or adds moves nothing else away from an instance that works."""
    from .pair import LOST
    peer = world.peer(one)
    if all(fault.kind in LOST for fault in world.schedule.faults) and (
            before[part] == peer.id and world.works(peer) and part not in world.records[one.name].owed):
        broken(f'lost: {one.name} takes {part} from its peer, which works, as another part is lost')


def leaves_what_is_outside(world: World, one: Instance, part: str, before: Dict[str, Optional[str]]) -> None:
    """What somebody gave to something outside, and EC2 has told so, is left there until the primary starts."""
    told_at = world.records[one.name].told_at.get(
        'describe_addresses' if part == ADDRESS else 'describe_route_tables', 0.0)
    if before[part] and before[part] not in world.cloud.instances and part not in world.records[one.name].owed and (
            world.cloud.seen(LATEST_READ + max(lifetime(world), world.hub.now - told_at)).owners[part] == before[part]):
        broken(f'outside: {one.name} takes {part}, which is at something outside the pair')


def steps_are_spaced(world: World, one: Instance, name: str, how: Dict[str, Any]) -> None:
    """A step is not tried again within a minute; a stop is forced, or repeated, only after the time to stop, to start.

    Stops that took effect come later and later.
    """
    record, now, peer = world.records[one.name], world.hub.now, world.peer(one)
    step = ('force' if how.get('Force') else name) + ' at once' * how.get('SkipOsShutdown', False)
    before, record.steps[step] = record.steps.get(step, -1e9), now
    if now - before < MINUTE - 0.01 and record.answered_at < before:
        broken(f'steps: {one.name} tries to {step} again after {now - before:.1f} s')
    if how.get('Force') and now - record.stopping_at < world.settings.wait_for_instance_stop - 0.01:
        broken(f'steps: {one.name} forces its peer {now - record.stopping_at:.1f} s after EC2 called it stopping')
    if peer.state in ('shutting-down', 'terminated') and world.cloud.seen(15.0).states[peer.id][0] == peer.state:
        broken(f'steps: {one.name} calls {name} against a peer that is {peer.state}')


def stops_are_spaced(world: World, one: Instance) -> None:
    """The same, at the moment at which a stop takes effect."""
    record, now = world.records[one.name], world.hub.now
    world.watch.stops += 1
    stops = [at for at in record.stops if now - at < 4 * AN_HOUR]
    spacing = min(AN_HOUR, world.settings.wait_for_instance_start * 2.0 ** (len(stops) - 1))
    if stops and now - stops[-1] < spacing - LATEST_EFFECT:
        broken(f'steps: {one.name} stops its peer for the {len(stops) + 1}th time, {now - stops[-1]:.0f} s later')
    if now - record.start_at < world.settings.wait_for_instance_start:
        broken(f'steps: {one.name} stops its peer {now - record.start_at:.0f} s after it has started it')
    record.stops = [*stops, now]


def settles_within(world: World) -> float:
    """When all faults have ended, the pair settles: both well, all of it at the primary if that is owed to its start.

    It may take a fail-back that waits, a stop that is spaced, and a guest that ignores it.
    """
    settings, conditions = world.settings, world.schedule.conditions
    stops = 2 * settings.wait_for_instance_start + settings.wait_for_instance_stop
    return float(max(conditions.check_lag, conditions.recovery_lag) + LOOK_INTERVAL + stops + PATIENCE
                 + settings.wait_for_instance_start + 2 * MINUTE + int(settings.fail_back))


def has_failed_back(world: World) -> bool:
    """The pair has not settled before a primary that has started has everything, unless the peer took it since.

    That includes what was given to something outside the pair before.
    """
    primary = world.instances[0]
    record = world.records[primary.name]
    return record.has_lost or not any(
        owner not in (None, primary.id) for part, owner in world.cloud.owners().items() if part in record.owed)


def is_restarted(world: World) -> None:
    """A peer that is stopped is started; a dead one whose checks fail is restarted, also if no claim is allowed."""
    for one in world.instances:
        peer, record, now = world.peer(one), world.records.get(one.name), world.hub.now
        stopped = peer.state == 'stopped'
        dead = peer.dead and (peer.state, peer.checks) == ('running', 'impaired') and one.checks != 'impaired'
        lasted = world.watch.lasts(f'{peer.name} is to be restarted', (stopped or dead) and world.may_restart(one)
                                   and not world.fault('no data'), now)
        if not record or not lasted or now - max([-1e9, *record.steps.values()]) < AN_HOUR:
            continue
        world.watch.worst('seconds until it is started' if stopped else 'seconds until it is stopped', lasted)
        bound = 30.0 + 2 * LOOK_AFTER_CHANGE + MINUTE + (world.settings.wait_for_instance_start if dead else 0.0)
        if lasted > bound + world.settings.wait_between_pings:
            broken(f'not restarted: {one.name} leaves its peer, which is {peer.state}, as it is for {lasted:.0f} s')


def says_so_where_nothing_helps(world: World) -> None:
    """A peer that runs and stays silent for WAIT_FOR_INSTANCE_START without a step is restarted, or an ERROR tells."""
    now, wait = world.hub.now, world.settings.wait_for_instance_start
    for one in world.instances:
        record = world.records.get(one.name)
        if not record or record.misses < pings_until_silent(world, one):
            world.watch.lasts(f'{one.name} hears nothing', False, now)
            continue
        lasted = world.watch.lasts(f'{one.name} hears nothing', (
            world.may_restart(one) and record.peer_told[0] == 'running' and not any(record.tagged)), now)
        if min(lasted, now - max([-1e9, *record.steps.values()])) > wait + MINUTE and (
                now - record.error_at > lasted):
            broken(f'not said: {one.name} hears nothing for {lasted:.0f} s, and neither restarts its peer nor says so')


def is_relief(world: World, one: Instance) -> bool:
    """Tell whether one may take from a peer that answers pings and does not forward.

    NUM_PINGS probes in a row were lost, after one that came back; beside the last one, one by its own route came back.
    """
    record = world.records[one.name]
    return (record.lost_probes >= world.settings.num_pings and record.own_way_at >= record.lost_at
            and record.forwarded_at > record.started_at)


def reliefs_are_spaced(world: World, one: Instance) -> None:
    """One that does not forward is relieved once an hour at most, later and later; the primary once more at once."""
    record, now = world.records[one.name], world.hub.now
    if not is_relief(world, one) or record.misses or record.source_checks[1] or record.tagged[1]:
        return
    count = len(record.reliefs) - (one is world.instances[1])
    if record.reliefs and count >= 0 and now - record.reliefs[-1] < (AN_HOUR * 2.0 ** count - LATEST_EFFECT) * (
            count > 0 or one is world.instances[0]):
        broken(f'relief: {one.name} relieves its peer {now - record.reliefs[-1]:.0f} s after the last time')
    record.reliefs.append(now)


def is_relieved(world: World) -> None:
    """Who answers pings and does not forward is relieved soon, where a probe had come back through it."""
    now = world.hub.now
    for one in world.instances if world.schedule.probes else ():
        peer, record = world.peer(one), world.records.get(one.name)
        dark = (record is not None and world.holder() is peer and not world.forwards(peer) and world.is_able(one)
                and world.hears(one) and world.schedule.conditions.frames == 0 and world.reaches_target(one)
                and not is_tagged(world) and not record.source_checks[0]
                and not any(world.fault('loss', each) for each in world.instances))
        lasted = world.watch.lasts(f'{peer.name} does not forward', dark, now)
        if not record or not lasted or record.reliefs or record.misses or record.forwarded_at < record.started_at:
            continue
        world.watch.worst('seconds not relieved', lasted)
        paused = 2 * MINUTE if now - record.refused_at < lasted + 300.0 else 0.0  # after what EC2 has not accepted
        if now - max(world.watch.heirs, default=-1e9) < lasted + LOOK_INTERVAL:
            paused += LOOK_INTERVAL  # until it is told that the peer holds
        settings, conditions = world.settings, world.schedule.conditions
        probes = PROBE_INTERVAL + (settings.num_pings + 2) * (settings.ping_timeout + settings.wait_between_pings)
        if lasted > probes + 6 * conditions.latency + 2 * conditions.effect_lag + 15.0 + paused:
            broken(f'relief: {peer.name} does not forward, and {one.name} does not relieve it in {lasted:.1f} s')


def is_tagged(world: World) -> bool:
    return bool(world.cloud.tagged) or any(any(record.tagged) for record in world.records.values())


def who_is_worked_on_is_left_alone(world: World, one: Instance, name: str) -> None:
    """Nobody stops, starts or forces one that EC2 calls tagged; who is tagged itself claims only from a dead peer."""
    record, peer = world.records[one.name], world.peer(one)
    if name not in CLAIMS and record.tagged[1]:
        broken(f'tag: {one.name} calls {name} against a peer under maintenance')
    if name in CLAIMS and record.tagged == [True, True]:
        broken(f'tag: {one.name} calls {name}, and both are under maintenance')
    if name in CLAIMS and record.tagged[0] and record.misses < pings_until_silent(world, one) and (
            peer.state == 'running'):
        broken(f'tag: {one.name} calls {name} under maintenance, and its peer is not silent')


def hands_over(world: World) -> None:
    """Who is tagged, or has its source/destination check on, is relieved within a look."""
    for one in world.instances:
        peer, record = world.peer(one), world.records.get(world.peer(one).name)
        bad = world.cloud.tagged == {one.id} or not world.cloud.tagged and world.fault('source check', one)
        lasted = world.watch.lasts(f'{one.name} is to hand over', bool(bad and record) and (
            one.id in world.parts() and world.is_able(peer) and world.hears(peer)
            and not any(world.fault('loss', each) for each in world.instances)), world.hub.now)
        world.watch.worst('seconds until it hands over', lasted)
        if lasted > LOOK_INTERVAL + MINUTE + world.settings.wait_between_pings:
            broken(f'handed over: {one.name} is worked on or cannot NAT, and holds for {lasted:.0f} s')


def note_owners(world: World) -> None:
    """Note who serves, and who of the two has lost a part to the other one, be it by way of nobody."""
    last = world.watch.last
    for part, owner in world.cloud.owners().items():
        for one in world.instances:
            if owner == world.peer(one).id and last.get(part) == one.id and one.name in world.records:
                world.records[one.name].has_lost = True
        if owner in world.cloud.instances:
            last[part] = owner
    if world.heir() != world.watch.heir:
        world.watch.heir = world.heir()
        world.watch.heirs.append(world.hub.now)


def nothing_unforeseen(world: World, one: Instance, words: str) -> None:
    """No exception reaches the border of the loop."""
    found = world.records[one.name].traceback
    if words.startswith('Traceback') or found:
        found.append(words)
        if len(found) > 1 and not words.startswith(' '):
            broken('raised: ' + '\n'.join(found))


def nothing_unforeseen_in_calls(results: Dict[str, Any]) -> Dict[str, Any]:
    """The same of what runs beside the loop: the monitor would take it for EC2's silence."""
    for result in results.values():
        if isinstance(result, Exception) and not isinstance(
                result, (ClientError, BotoCoreError, RequestException)) and (
                    type(result).__name__ not in ('NoAnswer', 'NoNeighbour')):
            broken(f'raised: {result!r}')
    return results
