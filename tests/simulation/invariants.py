"""What must hold in every run: one function for each invariant, with the bound it states and the worst value seen."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

from botocore.exceptions import BotoCoreError, ClientError
from requests import RequestException

from nat_monitor import CALL_DEADLINE, CLAIM_RETRY, LATER, LATEST_READ, LOOK_INTERVAL, MOVE_DEADLINE

from .cloud import ADDRESS, PATIENCE

if TYPE_CHECKING:
    from .cloud import Instance
    from .pair import World

CLAIMS = ('replace_route', 'create_route', 'associate_address')
LOOKS = ('describe_instance_status', 'describe_instances', 'describe_route_tables', 'describe_addresses')
CALLS_A_MINUTE = 60               # of one monitor, in any state, and further:
CALLS_A_MINUTE_OF_A_PART = 50     # for each table and the address
CHANGES_OF_A_PART = 8             # of its owner by monitors, in five minutes: more is a contest
CHANGES_AT_FIRST = 3              # the same where nothing else happens than that two do not hear each other, in ten minutes
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
        self.killed = False                        # the serving instance of the settled pair
        self.final_at: Optional[float] = None      # when, as long as nobody has taken over
        self.bound = 0.0                           # for that
        self.changes: Dict[str, List[float]] = {}  # by part, when a monitor took it
        self.deaths_left: Optional[int] = None     # of a primary that crashes again and again
        self.served, self.counted_at, self.not_served = True, 0.0, 0.0  # seconds, so far

    def worst(self, what: str, value: float) -> None:
        if value > self.seen.get(what, -1.0):
            self.seen[what] = value


def at_every_change(world: World) -> None:
    never_both_stopped(world)
    is_served(world)


def at_every_change_of_hands(world: World, one: Instance, name: str, before: Dict[str, Optional[str]]) -> None:
    """Look at what a call has moved."""
    for part, owner in world.cloud.owners().items():
        if owner != before[part]:
            parts_change_hands_seldom(world, part)
            nothing_follows_what_is_lost(world, one, part, before)
            world.records[one.name].owed.discard(part)


def at_every_call(world: World, one: Instance, name: str, how: Dict[str, Any]) -> None:
    calls_are_few(world, one, name, 'DryRun' in how)
    if how.get('DryRun') or name.startswith('describe'):
        return
    has_effect = not (name in CLAIMS and one.id == (
        world.cloud.routes[how['RouteTableId']] if 'RouteTableId' in how else world.cloud.owner))
    if has_effect:
        never_against_an_answering_peer(world, one, name)
        only_the_holder_stops(world, one, name)
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


def never_both_stopped(world: World) -> None:
    """1. Never are both instances stopping or stopped through the monitors' doing."""
    if all(one.state in ('stopping', 'stopped') and one.stopped_by for one in world.instances):
        broken('1: both instances are stopped by the monitors')


def is_claim_of_its_own(world: World, one: Instance, name: str) -> bool:
    """Tell whether a claim belongs to the start of the primary, or may make a split whole again."""
    return name in CLAIMS and (bool(world.records[one.name].owed) or world.hub.now - world.watch.split_at < 30.0)


def never_against_an_answering_peer(world: World, one: Instance, name: str) -> None:
    """2. No take-over and no stop while the peer has answered within NUM_PINGS x PING_TIMEOUT."""
    silence = world.settings.num_pings * world.settings.ping_timeout
    if name != 'start_instances' and not is_claim_of_its_own(world, one, name) and not (
            name == 'stop_instances' and world.peer(one).state != 'running'):
        record, peer = world.records[one.name], world.peer(one)
        if record.answered_at < record.started_at and (peer.state, peer.checks) == ('running', 'ok') and (
                world.cloud.seen(15.0)[0][peer.id] == ('running', 'ok') and name in CLAIMS):
            broken(f'2: {one.name} calls {name} against a peer that it never heard, and whose checks pass')
        since, wanted = world.hub.now - record.answered_at, world.settings.num_pings
        if since < silence - 0.001:
            broken(f'2: {one.name} calls {name} {since:.2f} s after its peer answered')
        if name in CLAIMS and world.hub.now - record.claim_at < 30.0 or world.peer(one).state != 'running':
            return  # of a claim that has begun, or nobody can contest it
        if record.misses < wanted * (2 if one is world.instances[0] else 1):
            broken(f'2: {one.name} calls {name} after {record.misses} misses')


def only_the_holder_stops(world: World, one: Instance, name: str) -> None:
    """2. A peer that keeps all tables, whatever is claimed, is not stopped before it had the time to be heard."""
    peer, record = world.peer(one), world.records[one.name]
    keeps = all(set(routes.values()) == {peer.id} for routes in (world.cloud.routes, world.cloud.seen(10.0)[1]))
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
    lifetime = LATEST_READ + CALL_DEADLINE + 2 * world.settings.ping_timeout  # of what the decision rests on
    kept = all(who == peer.id for parts in (world.cloud.seen(0.0), world.cloud.seen(lifetime))
               for who in {**parts[1], **({ADDRESS: parts[2]} if world.schedule.conditions.address else {})}.values())
    if kept and world.works(peer):
        broken(f'2: {one.name} holds nothing and stops its peer, which holds everything and works')


def decides_only_with_ec2(world: World, one: Instance, name: str) -> None:
    """3. Nothing is begun without EC2's answer, in isolation, or by an instance that EC2 does not call running."""
    record, now = world.records[one.name], world.hub.now
    if record.own_state != 'running' and not (name in CLAIMS and record.own_state == 'not known'):
        broken(f'3: {one.name} calls {name}, and EC2 calls it {record.own_state}')
    if name in CLAIMS and (is_claim_of_its_own(world, one, name) or now - record.claim_at < 30.0):
        return  # of a claim that has begun
    lifetime = CALL_DEADLINE + 2 * world.settings.ping_timeout
    claim = CALL_DEADLINE + MOVE_DEADLINE if name == 'start_instances' else 0.0  # which comes after one
    if now - record.status_at > lifetime + claim:
        broken(f'3: {one.name} calls {name} {now - record.status_at:.1f} s after EC2 told the states')
    if name == 'start_instances' or name == 'stop_instances' and world.peer(one).state != 'running' or (
            world.peer(one).state == 'terminated'):  # it has no address to ping any more
        return
    if not record.misses or not record.ping_left:
        broken(f'3: {one.name} calls {name}, and its latest ping was no miss')
    if record.miss_at - record.status_before_miss > lifetime:
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
        if not world.is_able(one):
            watch.able_at[one.name] = None
        elif watch.able_at.get(one.name) is None:
            watch.able_at[one.name] = now
    parts = world.parts()
    if len(set(parts)) > 1 or None in parts or any(
            world.cloud.instances[i].state in ('stopped', 'terminated') for i in parts if i):
        watch.split_at = now
    # One that answers pings is left alone though it does not forward, as invariant 2 stands above this one.
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


def who_cannot_nat_takes_nothing(world: World, one: Instance, name: str) -> None:
    """4. A route to a host that does not forward serves nobody."""
    if name in CLAIMS and not one.forwarding:
        broken(f'4: {one.name} calls {name} and does not forward')


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
    if world.schedule.bound == 'contest' and not world.over:
        begun_at = world.schedule.faults[0].at
        world.watch.worst('5: changes of a part between two that live', len(changes))
        if now - begun_at < 600.0 and len(changes) > CHANGES_AT_FIRST:
            broken(f'5: {part} changes hands {len(changes)} times in ten minutes between two that live')
        if now - begun_at >= 600.0 and len(changes) > 1 and now - max(changes[-2], begun_at + 600.0) < 3600.0 and (
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
    """5. One monitor does not stop its peer again, or for the first time, before that had the time to start."""
    record, now = world.records[one.name], world.hub.now
    if now - record.stop_at < world.settings.wait_for_instance_start:
        broken(f'5: {one.name} stops its peer twice within {now - record.stop_at:.0f} s')
    if now - record.start_at < world.settings.wait_for_instance_start and record.answered_at < record.start_at:
        broken(f'5: {one.name} stops its peer {now - record.start_at:.0f} s after it has started it')
    record.stop_at = now


def settles_within(world: World) -> float:
    """6. When all faults have ended, the pair settles within this."""
    settings = world.settings
    stops = 2 * settings.wait_for_instance_start + settings.wait_for_instance_stop  # the second one is spaced
    return float(LONGEST_CHECK_LAG + LOOK_INTERVAL + stops + PATIENCE + settings.wait_for_instance_start + 120.0)


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
                result, (ClientError, BotoCoreError, RequestException)) and type(result).__name__ != 'NoAnswer':
            broken(f'7: {result!r}')
    return results
