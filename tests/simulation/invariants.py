"""What must hold in every run: one function for each invariant, with the bound it states and the worst value seen."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set

from botocore.exceptions import BotoCoreError, ClientError
from requests import RequestException

from nat_monitor import (
    AN_HOUR, CALL_DEADLINE, CLAIM_RETRY, LOOK_INTERVAL, MINUTE, MOVE_DEADLINE,
    PROBE_INTERVAL, REMEMBERED)

LATER, LATEST_EFFECT, LATEST_READ, UNARBITRATED = MINUTE, 15.0, 3.0, 360.0

from .cloud import ADDRESS, PATIENCE

if TYPE_CHECKING:
    from .cloud import Instance
    from .pair import World

CLAIMS = ('replace_route', 'create_route', 'associate_address')
LOOKS = ('describe_instance_status', 'describe_instances', 'describe_route_tables', 'describe_addresses')
CALLS_A_MINUTE = 60               # of one monitor, in any state, and further:
CALLS_A_MINUTE_OF_A_PART = 50     # for each table and the address
CHANGES_OF_A_PART = 8             # of its owner by monitors, in five minutes: more is a contest
CHANGES_AT_FIRST = 3              # the same of two that live and do not hear each other, in ten minutes
SERVED = 0.9                      # of the time, while the primary crashes again and again
TURNS_A_MINUTE = 300              # of the loop of one monitor: more is a busy loop
LONGEST_CHECK_LAG = 300.0         # s, from the failure of a guest to the status check that tells it


class Watch:
    """What the invariants remember of a run."""

    def __init__(self) -> None:
        self.seen: Dict[str, float] = {}
        self.unserved_at: Optional[float] = None
        self.able_at: Dict[str, Optional[float]] = {}
        self.split_at = -1e9
        self.given_at = -1e9                       # when somebody moved a part by hand
        self.restored: Set[float] = set()          # when a part was taken that had long been apart
        self.killed = False                        # the serving instance of the settled pair
        self.final_at: Optional[float] = None      # when, as long as nobody has taken over
        self.bound = 0.0                           # for that
        self.changes: Dict[str, List[float]] = {}  # by part, when a monitor took it
        self.heir: Optional[str] = None            # the id of the one that serves
        self.heirs: List[float] = []               # when that changed
        self.last: Dict[str, str] = {}             # by part: who of the two had it last
        self.begun: Dict[str, float] = {}          # since when a condition has held, by its name
        self.deaths_left: Optional[int] = None     # of a primary that crashes again and again
        self.served, self.counted_at, self.not_served = True, 0.0, 0.0  # seconds, so far

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
    hands_over_for_maintenance(world)
    is_restarted(world)


def at_every_change_of_hands(world: World, one: Instance, name: str, before: Dict[str, Optional[str]]) -> None:
    """Look at what a call has moved."""
    for part, owner in world.cloud.owners().items():
        if owner != before[part]:
            leaves_what_is_outside(world, one, part, before)
            parts_change_hands_seldom(world, part)
            nothing_follows_what_is_lost(world, one, part, before)
            world.records[one.name].owed.discard(part)
            note_owners(world)
            note_relief(world, one)


def at_every_call(world: World, one: Instance, name: str, how: Dict[str, Any]) -> None:
    calls_are_few(world, one, name, 'DryRun' in how)
    if how.get('DryRun') or name.startswith('describe'):
        return
    who_is_worked_on_is_left_alone(world, one, name)
    has_effect = not (name in CLAIMS and one.id == (
        world.cloud.routes[how['RouteTableId']] if 'RouteTableId' in how else world.cloud.owner))
    if has_effect:
        never_against_an_answering_peer(world, one, name)
        a_start_robs_no_unheard_peer(world, one, name, how)
        only_the_holder_stops(world, one, name)
        steps_are_paced(world, one, name, how)
        who_cannot_nat_takes_nothing(world, one, name)
        decides_only_with_ec2(world, one, name)
        stops_no_healthy_peer(world, one, name)
    if name in CLAIMS:
        record = world.records[one.name]
        record.claim_at = world.hub.now
        record.first_claim_at = min(record.first_claim_at, world.hub.now)


def broken(text: str) -> None:
    from .pair import Broken
    raise Broken(text)


def lifetime(world: World) -> float:
    """Return for how long a decision may rest on what EC2 and the host have told."""
    return float(CALL_DEADLINE + 2 * world.settings.ping_timeout)


def never_both_stopped(world: World) -> None:
    """1. Never are both instances stopping or stopped through the monitors' doing."""
    if all(one.state in ('stopping', 'stopped') and one.stopped_by for one in world.instances):
        broken('1: both instances are stopped by the monitors')


def passes_its_checks(world: World, one: Instance, patience: Optional[float] = None) -> bool:
    """Tell whether the peer runs and passes its checks, and EC2 has told so within WAIT_FOR_INSTANCE_START.

    It may have told for less than `patience` that they fail.
    """
    peer, record, now = world.peer(one), world.records[one.name], world.hub.now
    patience = world.settings.wait_for_instance_stop if patience is None else patience
    return (peer.state, peer.checks) == world.cloud.seen(15.0).states[peer.id] == ('running', 'ok') and (
        now - record.checks_at < world.settings.wait_for_instance_start) and (
        now - record.failing_at < patience - CALL_DEADLINE)


def is_claim_of_its_own(world: World, one: Instance, name: str) -> bool:
    """Tell whether a claim belongs to the start of the primary, or may be made though the peer answers pings.

    It may make a split whole again, or relieve a peer that is under maintenance or does not forward.
    """
    record = world.records[one.name]
    return name in CLAIMS and (bool(record.owed) or world.hub.now - world.watch.split_at < 30.0
                               or record.tagged == [False, True] or is_relief(world, one))


def never_against_an_answering_peer(world: World, one: Instance, name: str) -> None:
    """2. No take-over and no stop while the peer has answered within NUM_PINGS x PING_TIMEOUT.

    A peer that was never heard, and whose checks pass, is left alone unless EC2 has not told so for
    WAIT_FOR_INSTANCE_START.
    """
    silence = world.settings.num_pings * world.settings.ping_timeout
    if name != 'start_instances' and not is_claim_of_its_own(world, one, name) and not (
            name == 'stop_instances' and world.peer(one).state != 'running'):
        record = world.records[one.name]
        patience = (2 if name == 'stop_instances' else 1) * world.settings.wait_for_instance_stop
        if record.answered_at < record.started_at and passes_its_checks(world, one, patience):
            broken(f'2: {one.name} calls {name} against a peer that it never heard, and whose checks pass')
        since, wanted = world.hub.now - record.answered_at, world.settings.num_pings
        if since < silence - 0.001:
            broken(f'2: {one.name} calls {name} {since:.2f} s after its peer answered')
        if name in CLAIMS and world.hub.now - record.claim_at < 30.0 or world.peer(one).state != 'running':
            return  # of a claim that has begun, or nobody can contest it
        if record.misses < wanted * (2 if one is world.instances[0] else 1):
            broken(f'2: {one.name} calls {name} after {record.misses} misses')


def a_start_robs_no_unheard_peer(world: World, one: Instance, name: str, how: Dict[str, Any]) -> None:
    """2. What a peer has that was not heard yet, and whose checks pass, is not claimed by a start."""
    peer, record = world.peer(one), world.records[one.name]
    part = how.get('RouteTableId') or ADDRESS
    has_it = all(past.owners[part] == peer.id for past in (
        world.cloud.seen(0.0), world.cloud.seen(LATEST_READ + lifetime(world))))
    if name in CLAIMS and has_it and record.answered_at < record.started_at and passes_its_checks(world, one) and (
            record.tagged != [False, True] and world.hub.now - world.watch.split_at >= 30.0):
        broken(f'2: {one.name} claims {part} from a peer that it never heard, and whose checks pass')


def only_the_holder_stops(world: World, one: Instance, name: str) -> None:
    """2. A peer that keeps all tables, whatever is claimed, is not stopped before it had the time to be heard."""
    peer, record = world.peer(one), world.records[one.name]
    keeps = all(set(routes.values()) == {peer.id} for routes in (world.cloud.routes, world.cloud.seen(10.0).routes))
    if name == 'stop_instances' and peer.state == 'running' and keeps and (
            world.hub.now - record.first_claim_at < world.settings.wait_for_instance_stop - 10.0):
        broken(f'2: {one.name} stops its peer, which holds all tables')


def stops_no_healthy_peer(world: World, one: Instance, name: str) -> None:
    """2. Nobody is stopped for a hiccup or a reboot, nor who holds everything and works by one that holds nothing."""
    peer = world.peer(one)
    if name != 'stop_instances' or peer.state != 'running':
        return
    unheard = world.hub.now - world.unheard_since(one)
    if (peer.up or peer.checks != 'impaired') and unheard < world.settings.wait_for_instance_stop - 0.01:
        broken(f'2: {one.name} stops its peer {unheard:.1f} s after it could hear it')
    record = world.records[one.name]
    is_fit = record.checks.get(one.id) != 'impaired' and not record.tagged[0]
    if world.works(peer) and record.checks.get(peer.id) == 'ok' and not is_fit:
        broken(f'2: {one.name} fails its checks or is worked on, and stops its peer, which works')
    kept = all(who == peer.id for past in (world.cloud.seen(0.0), world.cloud.seen(LATEST_READ + lifetime(world)))
               for who in [*past.routes.values()] + [past.owner] * world.schedule.conditions.address)
    if kept and world.works(peer):
        broken(f'2: {one.name} holds nothing and stops its peer, which holds everything and works')


def decides_only_with_ec2(world: World, one: Instance, name: str) -> None:
    """3. Nothing is begun without EC2's answer, in isolation, or by an instance that EC2 does not call running."""
    record, now = world.records[one.name], world.hub.now
    if record.own_state != 'running' and not (name in CLAIMS and record.own_state == 'not known'):
        broken(f'3: {one.name} calls {name}, and EC2 calls it {record.own_state}')
    if name in CLAIMS and (is_claim_of_its_own(world, one, name) or now - record.claim_at < 30.0):
        return  # of a claim that has begun
    claim = CALL_DEADLINE + MOVE_DEADLINE if name == 'start_instances' else 0.0  # which comes after one
    if now - record.status_at > lifetime(world) + claim:
        broken(f'3: {one.name} calls {name} {now - record.status_at:.1f} s after EC2 told the states')
    if name == 'start_instances' or name == 'stop_instances' and world.peer(one).state != 'running' or (
            world.peer(one).state == 'terminated'):  # it has no address to ping any more
        return
    if not record.misses or not record.ping_left:
        broken(f'3: {one.name} calls {name}, and its latest ping was no miss')
    if record.miss_at - record.status_before_miss > lifetime(world):
        broken(f'3: {one.name} calls {name}, and no miss was sent after EC2 answered')
    if record.status_before_miss < record.answered_at:
        broken(f'3: {one.name} calls {name}, and EC2 has not answered since the peer last did')


def is_served(world: World) -> None:
    """4. While one is able to serve, route and address soon point to one that works."""
    watch, now = world.watch, world.hub.now
    holder = world.holder()
    watch.not_served += 0.0 if watch.served else now - watch.counted_at
    watch.served, watch.counted_at = not world.parts() or bool(holder and world.works(holder)), now
    for one in world.instances:
        if not world.is_able(one) or may_stand_aside(world, one):
            watch.able_at[one.name] = None
        elif watch.able_at.get(one.name) is None:
            watch.able_at[one.name] = now
    parts = world.parts()
    watch.lasts('apart', len(set(parts)) > 1, now)
    if len(set(parts)) > 1 or None in parts or any(
            world.cloud.instances[i].state in ('stopped', 'terminated') for i in parts if i):
        watch.split_at = now
    # One that answers pings is left alone though it does not forward; but see `is_relieved`.
    if not parts or holder and (world.works(holder) or world.hears(world.peer(holder))):
        if watch.final_at is not None and watch.unserved_at is not None:
            watch.worst('4: not served after the death of a settled pair\'s holder', now - watch.final_at)
            watch.worst('4: the same, as a share of its bound', (now - watch.final_at) / watch.bound)
            watch.final_at = None
        watch.unserved_at = None
        return
    if watch.unserved_at is None:
        watch.unserved_at = now
    for name, since in watch.able_at.items():
        if since is not None:
            unserved = now - max(since, watch.unserved_at)
            watch.worst('4: not served', unserved)
            if unserved > served_within(world):
                broken(f'4: not served for {unserved:.0f} s while {name} is able to')
    if watch.final_at is not None and now - watch.final_at > watch.bound:
        broken(f'4: not served {now - watch.final_at:.1f} s after the death of the holder (bound: {watch.bound:.1f} s)')


def may_stand_aside(world: World, one: Instance) -> bool:
    """Tell whether somebody has moved a part of two that are deaf to each other: each may think it was the other."""
    given_at, record = world.watch.given_at, world.records.get(one.name)
    return world.hub.now - given_at < AN_HOUR and world.peer(one).checks != 'impaired' and bool(
        record and record.answered_at < given_at)


def who_cannot_nat_takes_nothing(world: World, one: Instance, name: str) -> None:
    """4. A route to a host that does not forward serves nobody: it takes nothing, as soon as it has seen so itself."""
    fault = world.fault('forwarding lost', one)
    if name in CLAIMS and (not one.forwarding or (
            fault and world.knows_fault(one) and world.hub.now - fault.at > lifetime(world))):
        broken(f'4: {one.name} calls {name} and does not forward')


def who_fails_its_checks_takes_nothing(world: World, one: Instance, name: str) -> None:
    """4. Where EC2 has told that the checks of one fail and those of its peer pass, that one claims nothing."""
    checks = world.records[one.name].checks
    if name in CLAIMS and [checks.get(i.id) for i in (one, world.peer(one))] == ['impaired', 'ok']:
        broken(f'4: {one.name} calls {name}, its checks fail, and those of its peer pass')


def served_most_of_the_time(world: World) -> None:
    """4. Whoever dies again and again after each boot, its subnets are served by the other one."""
    share = 1.0 - world.watch.not_served / world.hub.now
    world.watch.worst('4: not served while the primary crashes again and again, % of the time', 100 * (1 - share))
    if share < SERVED:
        broken(f'4: served for {share:.0%} of the time only')


def served_within(world: World) -> float:
    """4. Whatever came before: the checks tell that an unheard peer is dead, or a look finds what lies apart."""
    pings = world.settings.wait_between_pings + 2 * world.settings.num_pings * world.settings.ping_timeout
    return float(max(LONGEST_CHECK_LAG, LOOK_INTERVAL) + LATER + world.settings.wait_for_instance_stop + 50.0 + pings)


def served_again_within(world: World, one: Instance) -> float:
    """4. From the death of the serving instance of a settled pair, until `one` serves: pings, calls, the late effect.

    The last EC2 call is the question that finds the address where its answer was lost.
    """
    settings, conditions = world.settings, world.schedule.conditions
    pings = settings.num_pings * (2 if one is world.instances[0] else 1) * settings.ping_timeout
    calls = 4 * conditions.latency + 2 * conditions.effect_lag
    paced = CLAIM_RETRY if settings.num_pings == 2 else 0.0  # one miss is no reason to ask EC2 at once again
    return float(settings.wait_between_pings + pings + max(settings.ping_timeout, conditions.latency) + calls + paced
                 + 1.0)


def calls_are_few(world: World, one: Instance, name: str, dry: bool) -> None:
    """5. Nothing but looks while all is well; never more calls a minute than stated; no stop for mere ping loss."""
    record, now = world.records[one.name], world.hub.now
    record.calls.append(now)
    while record.calls[0] <= now - 60.0:
        record.calls.popleft()
    bound = CALLS_A_MINUTE + CALLS_A_MINUTE_OF_A_PART * len(world.settings.parts)
    world.watch.worst('5: calls of one monitor in a minute', len(record.calls))
    world.watch.worst('5: the same, as a share of its bound', len(record.calls) / bound)
    if len(record.calls) > bound:
        broken(f'5: {one.name} makes {len(record.calls)} calls in a minute')
    if name in LOOKS:
        return
    world.quiet_at = now
    if name == 'stop_instances' and not dry and not world.watch.killed and all(
            f.kind == 'loss' and f.how <= 20 for f in world.schedule.faults):
        broken(f'5: {one.name} stops its peer for mere ping loss')


def parts_change_hands_seldom(world: World, part: str) -> None:
    """5. Two monitors do not contend for a part.  Two that live settle, whoever may do what and hears whom."""
    changes, now = world.watch.changes.setdefault(part, []), world.hub.now
    changes.append(now)
    in_five_minutes = sum(now - at < 300.0 for at in changes)
    world.watch.worst('5: changes of a part in five minutes', in_five_minutes)
    if in_five_minutes > CHANGES_OF_A_PART:
        broken(f'5: {part} changes hands {in_five_minutes} times in five minutes')
    mute = next(iter(world.schedule.faults), None)
    if world.schedule.bound == 'contest' and mute and now < mute.at + mute.lasts:
        begun_at = mute.at
        if now - world.watch.begun.get('apart', now) > LOOK_INTERVAL:
            world.watch.restored.add(now)  # which ends a split, and is no contest
        changes = [at for at in changes if at not in world.watch.restored]
        world.watch.worst('5: changes of a part between two that live', len(changes))
        if now - begun_at < 600.0 and len(changes) > CHANGES_AT_FIRST:
            broken(f'5: {part} changes hands {len(changes)} times in ten minutes between two that live')
        if changes[-1:] == [now] and len(changes) > 1 and now - 3600.0 < changes[-2] and (
                changes[-2] >= begun_at + 600.0):
            broken(f'5: {part} changes hands twice in {now - changes[-2]:.0f} s between two that live')


def nothing_follows_what_is_lost(world: World, one: Instance, part: str, before: Dict[str, Optional[str]]) -> None:
    """5. What somebody loses, deletes or adds moves nothing else away from an instance that works."""
    from .pair import LOST
    peer = world.peer(one)
    if all(fault.kind in LOST for fault in world.schedule.faults) and not world.watch.killed and (
            before[part] == peer.id and world.works(peer) and part not in world.records[one.name].owed):
        broken(f'5: {one.name} takes {part} from its peer, which works, as another part is lost')


def rests_between_turns(world: World, one: Instance) -> None:
    """5. No monitor is busy for nothing, also where no call leaves it."""
    turns = world.records[one.name].turns
    turns.append(world.hub.now)
    pinging = 60.0 / world.settings.wait_between_pings
    if len(turns) == TURNS_A_MINUTE and turns[-1] - turns[0] < 60.0 * TURNS_A_MINUTE / (TURNS_A_MINUTE + pinging):
        broken(f'5: {one.name} is in a busy loop')


def stops_are_spaced(world: World, one: Instance) -> None:
    """5. One monitor stops its peer later and later, and not before that had the time to start."""
    record, now = world.records[one.name], world.hub.now
    stops = [at for at in record.stops if now - at < REMEMBERED]
    spacing = min(AN_HOUR, world.settings.wait_for_instance_start * 2.0 ** (len(stops) - 1))
    if stops and now - stops[-1] < spacing - LATEST_EFFECT:
        broken(f'5: {one.name} stops its peer for the {len(stops) + 1}th time, {now - stops[-1]:.0f} s after the last')
    if now - record.start_at < world.settings.wait_for_instance_start and record.answered_at < record.start_at:
        broken(f'5: {one.name} stops its peer {now - record.start_at:.0f} s after it has started it')
    record.stops = [*stops, now]


def steps_are_paced(world: World, one: Instance, name: str, how: Dict[str, Any]) -> None:
    """5. A step is not tried again within a minute, nor is a stop forced before the peer had the time to stop."""
    record, now, peer = world.records[one.name], world.hub.now, world.peer(one)
    if name in CLAIMS:
        return
    step = 'force' if how.get('Force') else name
    before = record.steps.get(step, -1e9)
    record.steps[step] = now
    if now - before < LATER - 0.01 and record.answered_at < before:
        broken(f'5: {one.name} tries to {step} again after {now - before:.1f} s')
    if step == 'force' and now - record.stopping_at < world.settings.wait_for_instance_stop - 0.01:
        broken(f'5: {one.name} forces its peer {now - record.stopping_at:.1f} s after EC2 called it stopping')
    if peer.state in ('shutting-down', 'terminated') and world.cloud.seen(15.0).states[peer.id][0] == peer.state:
        broken(f'5: {one.name} calls {name} against a peer that is {peer.state}')


def leaves_what_is_outside(world: World, one: Instance, part: str, before: Dict[str, Optional[str]]) -> None:
    """5. What somebody gave to something outside, and EC2 has told so, is left there until the primary starts."""
    told_at = world.records[one.name].told_at.get('address' if part == ADDRESS else 'tables', 0.0)
    if before[part] and before[part] not in world.cloud.instances and part not in world.records[one.name].owed and (
            world.cloud.seen(LATEST_READ + max(lifetime(world), world.hub.now - told_at)).owners[part] == before[part]):
        broken(f'5: {one.name} takes {part}, which is at something outside the pair')


def settles_within(world: World) -> float:
    """6. When all faults have ended, the pair settles within this."""
    settings = world.settings
    stops = 2 * settings.wait_for_instance_start + settings.wait_for_instance_stop  # the second one is spaced
    return float(LONGEST_CHECK_LAG + LOOK_INTERVAL + stops + PATIENCE + settings.wait_for_instance_start + 120.0)


def is_relief(world: World, one: Instance) -> bool:
    """Tell whether one may take from a peer that answers pings and does not forward.

    NUM_PINGS probes in a row were lost, after one that came back since the last change; the last one was lost though
    one by its own route, sent after EC2 had answered, came back; and it is the first time for long.
    """
    record, peer, now = world.records[one.name], world.peer(one), world.hub.now
    silence = world.settings.num_pings * (2 if one is world.instances[0] else 1) * world.settings.ping_timeout
    # A boot that is over before its peer is silent is noticed by nobody.
    booted_at = peer.came_up_at if silence < world.schedule.conditions.boot_takes else -1e9
    found = (record.lost_probes >= world.settings.num_pings and record.own_way_at >= record.lost_at
             and record.own_way_at >= record.status_at and record.forwarded_at > booted_at
             and record.forwarded_at > max([at for at in world.watch.heirs if now - at > 15.0], default=-1e9))
    if record.reliefs and now - record.reliefs[-1] < 30.0:
        return found  # the same one
    spacing = AN_HOUR * 2.0 ** (len(record.reliefs) - 1) - LATEST_EFFECT
    spaced = not record.reliefs or now - record.reliefs[-1] > spacing
    if found and spaced:
        record.relief_at = now
    return found and spaced


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


def note_relief(world: World, one: Instance) -> None:
    """Something has come here: a relief counts that makes this one serve, unless it belongs to the one before."""
    record, now = world.records[one.name], world.hub.now
    is_new = not record.reliefs or record.relief_at - record.reliefs[-1] >= 30.0
    if now - record.relief_at < 30.0 and is_new and world.heir() == one.id:
        record.reliefs.append(now)


def is_relieved(world: World) -> None:
    """8. An instance that answers pings and does not forward is replaced where a probe can show it, its peer is able.

    What went well before counts: a probe came back through it since the pair was as it is, and the target lives.
    """
    now = world.hub.now
    if not world.schedule.probes or world.schedule.bound:
        return
    for one in world.instances:
        peer, record = world.peer(one), world.records.get(one.name)
        dark = (world.is_able(one) and one.checks == 'ok' and bool(record) and world.holder() is peer
                and world.hears(one) and not world.forwards(peer) and not world.goes_through(one)
                and world.reaches_target(one) and not cloud_is_tagged(world) and not any(
                    world.fault('loss', each) for each in world.instances))
        lasted = world.watch.lasts(f'{peer.name} does not forward', dark, now)
        if not record or not lasted or record.reliefs or record.misses or record.forwarded_at < peer.came_up_at or (
                record.forwarded_at < max(world.watch.heirs, default=-1e9) + LOOK_INTERVAL + LATER):
            continue
        world.watch.worst('8: not relieved', lasted)
        paused = 2 * LATER if now - record.refused_at < lasted + 300.0 else 0.0  # after what EC2 has not accepted
        if lasted > relieved_within(world) + paused:
            broken(f'8: {peer.name} answers and does not forward, and {one.name} does not relieve it in {lasted:.1f} s')


def relieved_within(world: World) -> float:
    """8. Probes, each of which may wait for a ping; EC2's answer; the probe that decides; the claim."""
    settings, conditions = world.settings, world.schedule.conditions
    probes = (settings.num_pings + 2) * (settings.ping_timeout + settings.wait_between_pings)
    return float(PROBE_INTERVAL + probes + 6 * conditions.latency + 2 * conditions.effect_lag + 15.0)


def cloud_is_tagged(world: World) -> bool:
    return bool(world.cloud.tagged) or any(any(record.tagged) for record in world.records.values())


def who_is_worked_on_is_left_alone(world: World, one: Instance, name: str) -> None:
    """9. Nobody stops, starts or forces an instance of which EC2 has told that it is under maintenance.

    Nor does that one claim anything, unless its peer is not, and is silent and dead.
    """
    record, peer = world.records[one.name], world.peer(one)
    tagged, peer_tagged = record.tagged
    if name not in CLAIMS and peer_tagged:
        broken(f'9: {one.name} calls {name} against a peer under maintenance')
    if name in CLAIMS and tagged:
        if peer_tagged:
            broken(f'9: {one.name} calls {name}, and both are under maintenance')
        if record.misses < world.settings.num_pings and peer.state == 'running':
            broken(f'9: {one.name} calls {name} under maintenance, and its peer is not silent')
        if record.answered_at < record.started_at and passes_its_checks(world, one):
            broken(f'9: {one.name} calls {name} under maintenance, and its peer passes its checks')


def hands_over_for_maintenance(world: World) -> None:
    """9. Who is under maintenance is relieved within a look, if its peer is not and is able to."""
    for one in world.instances:
        peer, record = world.peer(one), world.records.get(world.peer(one).name)
        lasted = world.watch.lasts(f'{one.name} holds under maintenance', bool(record) and (
            one.id in world.parts() and world.cloud.tagged == {one.id} and world.is_able(peer)
            and peer.checks == 'ok' and world.hears(peer) and not world.fault('loss', peer)
            and not world.fault('loss', one)), world.hub.now)
        world.watch.worst('9: not relieved for maintenance', lasted)
        if lasted > LOOK_INTERVAL + LATER + world.settings.wait_between_pings:
            broken(f'9: {one.name} is under maintenance and holds for {lasted:.0f} s')


def is_restarted(world: World) -> None:
    """6. A peer that is stopped, or dead for long, is restarted, also where EC2 refuses every claim.

    What was tried before is tried later and later.
    """
    for one in world.instances:
        peer, record, now = world.peer(one), world.records.get(one.name), world.hub.now
        stopped, dead = peer.state == 'stopped', peer.dead and (peer.state, peer.checks) == ('running', 'impaired')
        lasted = world.watch.lasts(f'{peer.name} is to be restarted', (stopped or dead) and world.may_restart(one), now)
        if not record or not lasted or now - max([-1e9, *record.steps.values()]) < AN_HOUR:
            continue
        world.watch.worst('6: not restarted', lasted)
        unnoticed = world.settings.wait_between_pings
        if lasted > unnoticed + world.settings.wait_for_instance_stop * 3 + LATER + (UNARBITRATED if dead else 0.0):
            broken(f'6: {one.name} does not restart its peer, which is {peer.state}, in {lasted:.0f} s')


def has_failed_back(world: World) -> bool:
    """6. The pair has not settled before a primary that has started has everything, unless the peer took it since.

    That includes what was given to something outside the pair before.
    """
    primary = world.instances[0]
    record = world.records[primary.name]
    return record.has_lost or not any(
        owner not in (None, primary.id) for part, owner in world.cloud.owners().items() if part in record.owed)


def nothing_unforeseen(world: World, one: Instance, words: str) -> None:
    """7. No exception reaches the border of the loop."""
    record = world.records[one.name]
    if words.startswith('Traceback') or record.error:
        record.error.append(words)
        if len(record.error) > 1 and not words.startswith(' '):
            broken('7: ' + '\n'.join(record.error))


def nothing_unforeseen_in_calls(results: Dict[str, Any]) -> Dict[str, Any]:
    """7. The same of what runs beside the loop: the monitor would take it for EC2's silence."""
    for result in results.values():
        if isinstance(result, Exception) and not isinstance(
                result, (ClientError, BotoCoreError, RequestException)) and (
                    type(result).__name__ not in ('NoAnswer', 'NoNeighbour')):
            broken(f'7: {result!r}')
    return results
