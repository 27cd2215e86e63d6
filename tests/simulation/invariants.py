"""What must hold in every run: a method for each promise, which says it in a sentence that a user would sign."""
from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from nat_monitor import AN_HOUR, CALL_DEADLINE, CLAIM_RETRY, LOOK_AFTER_CHANGE, LOOK_INTERVAL, MINUTE, PROBE_INTERVAL

from .cloud import ADDRESS, PATIENCE
from .faults import HINDERS, LASTING, LATEST_READ, LOST, NETWORK, Conditions

if TYPE_CHECKING:
    from .cloud import Instance
    from .pair import World

LATEST_EFFECT = 15.0              # s from the sending of a call to its effect, at most
CLAIMS = ('replace_route', 'create_route', 'associate_address')
CALLS_A_MINUTE = 60               # of one monitor, in any state, and further:
CALLS_A_MINUTE_OF_A_PART = 50     # for each table and the address
EVENTS_A_SECOND = 30              # of a run: more is a busy loop
CHANGES = 12                      # of a part's holder by monitors in three hours, whatever happens in these
NEVER = -1e9


class Broken(BaseException):
    """A promise does not hold; no monitor may catch it."""


class Promises:
    """What must hold in one run, and what has to be remembered for that."""

    def __init__(self, world: World, conditions: Conditions) -> None:
        self.world, self.cloud, self.conditions, self.settings = world, world.cloud, conditions, world.settings
        self.records, self.instances, self.peer = world.records, world.instances, world.peer
        self.begun: Dict[str, float] = {}          # since when a condition has held, by its name
        self.apart_at = NEVER                      # the latest time at which not all was at one that runs
        self.able: List[Instance] = []             # who can take over
        self.ready: List[Instance] = []            # who could when it was last served, and heard the holder
        self.is_lit, self.counted_at, self.dark = True, 0.0, 0.0  # seconds not served, in all
        self.stops = 0                             # of one that ran, by a monitor
        self.changes: Dict[str, List[float]] = {}  # by part, when a monitor took it

    def at_every_change(self) -> None:
        self.never_both_stopped()
        self.is_served()
        for one in self.instances:
            if one.name in self.records:
                self.who_cannot_serve_is_relieved(one)
                self.is_restarted(one)
                self.says_so_where_nothing_helps(one)

    def at_every_call(self, one: Instance, name: str, how: Dict[str, Any]) -> None:
        self.calls_are_few(one, name)
        part = how.get('RouteTableId', ADDRESS) if name in CLAIMS else ''
        if how.get('DryRun') or name.startswith('describe') or self.cloud.owners.get(part) == one.id:
            return  # nothing moves
        self.decides_only_with_ec2(one, name)
        self.who_is_worked_on_is_left_alone(one, name)
        if part:
            self.who_cannot_nat_takes_nothing(one, name)
            self.takes_nothing_from_one_that_answers(one, part)
            self.records[one.name].claim_at = self.now
        else:
            self.only_the_failed_are_stopped(one, name, how)
            self.records[one.name].stepped_at = self.now

    def at_every_effect(self, one: Instance, name: str, state: str, owners: Dict[str, Optional[str]]) -> None:
        """Look at what a call has changed: the peer's state before, who had what before."""
        record = self.records[one.name]
        if name == 'start_instances' and state == 'stopped':
            record.start_at = self.now
        if name == 'stop_instances' and state == 'running' and one.process:
            self.stops_are_spaced(one)
        for part, owner in self.cloud.owners.items():
            if owner != owners[part]:
                self.leaves_what_somebody_moved(one, part, owners[part])
                self.changes_hands_seldom(part)
                for other in self.records.values():
                    other.has_lost |= other is not record

    # For the sentences

    @property
    def now(self) -> float:
        return self.world.hub.now

    @property
    def lifetime(self) -> float:
        """Return for how long a decision may rest on what EC2 and the host have told."""
        return float(CALL_DEADLINE + 2 * self.settings.ping_timeout)

    def is_silent(self, one: Instance) -> bool:
        """Tell whether one has missed as many pings in a row as make its peer silent."""
        return bool(self.records[one.name].misses >= self.settings.num_pings * (2 if one is self.instances[0] else 1))

    def lasts(self, what: str, holds: bool) -> float:
        """Return for how long a condition has held."""
        if not holds:
            self.begun.pop(what, None)
            return 0.0
        return self.now - self.begun.setdefault(what, self.now)

    def is_in_time(self, what: str, holds: bool, bound: float) -> None:
        """What is wrong does not last longer than that."""
        if self.lasts(what, holds) > bound:
            raise Broken(f'{what}, for longer than {bound:.1f} s')

    # Who is stopped, and started

    def never_both_stopped(self) -> None:
        """Never are both instances stopping or stopped through the monitors' doing."""
        if all(one.state in ('stopping', 'stopped') and one.stopped_by for one in self.instances):
            raise Broken('both stopped: by the monitors')

    def only_the_failed_are_stopped(self, one: Instance, name: str, how: Dict[str, Any]) -> None:
        """Nobody stops one that runs, unless EC2's checks had failed that one, and not the stopper; or forces it early.

        They had for half a minute of answers within this silence, none more than a minute apart; or it was stopping.
        """
        record, force = self.records[one.name], how.get('Force')
        if name != 'stop_instances':
            return
        run: List[float] = []
        for told in reversed([told for told in record.told if told.peer[0]]):  # an error neither counts nor breaks
            is_old = told.sent_at <= record.silent_at or run and run[-1] - told.sent_at > MINUTE
            has_failed = told.peer == ('running', 'impaired') and told.own[1] != 'impaired' and not is_old
            if not (told.peer[0] == 'stopping' if force else has_failed):
                break
            run.append(told.sent_at)
        least, tagged_at = self.settings.wait_for_instance_stop if force else 30.0, record.told_at['describe_instances']
        if not run or run[0] - run[-1] < least - 0.01 or not force and tagged_at < run[0] - 0.01:
            raise Broken(f'stopped: {one.name} stops its peer, which EC2 has called so, or told of tags, at {run}')

    def stops_are_spaced(self, one: Instance) -> None:
        """A peer is stopped only when it has had its time to start, and stops come later and later."""
        record, wait = self.records[one.name], self.settings.wait_for_instance_start
        stops = [at for at in record.stops if self.now - at < 4 * AN_HOUR]
        spacing = min(AN_HOUR, wait * 2.0 ** (len(stops) - 1)) - LATEST_EFFECT
        if stops and self.now - stops[-1] < spacing or self.now - record.start_at < wait:
            raise Broken(f'spaced: {one.name} stops its peer after stops at {stops} and a start at {record.start_at}')
        record.stops = [*stops, self.now]
        self.stops += 1

    def is_restarted(self, one: Instance) -> None:
        """A peer that is stopped is started; a dead one whose checks fail is restarted, also if no claim is allowed."""
        peer, record = self.peer(one), self.records[one.name]
        dead = peer.dead and (peer.state, peer.checks) == ('running', 'impaired') and one.checks != 'impaired'
        due = (peer.state == 'stopped' or dead) and self.world.may_restart(one) and (
            not self.world.fault('no data') and self.now - record.stepped_at >= AN_HOUR)
        self.is_in_time(f'not restarted: {one.name} leaves its peer as it is', due,
                        2 * MINUTE + LOOK_AFTER_CHANGE + self.settings.wait_for_instance_start * dead)

    def says_so_where_nothing_helps(self, one: Instance) -> None:
        """A peer that runs and stays silent for WAIT_FOR_INSTANCE_START is restarted, or an ERROR tells."""
        record = self.records[one.name]
        silent = self.is_silent(one) and record.told[-1].peer[0] in ('running', '') and not any(record.tagged)
        idle = record.error_at < record.silent_at and self.now - record.stepped_at > LOOK_AFTER_CHANGE
        self.is_in_time(f'not said: {one.name} hears nothing', silent and idle and self.world.may_restart(one),
                        self.settings.wait_for_instance_start + MINUTE)

    # Who takes what

    def decides_only_with_ec2(self, one: Instance, name: str) -> None:
        """Who has no fresh answer of EC2, or does not run in its eyes, begins nothing; no step if the peer answers."""
        record, is_claim = self.records[one.name], name in CLAIMS
        own, age = record.told[-1].own[0], self.now - record.told[-1].at
        is_fresh = age <= self.lifetime + CALL_DEADLINE * is_claim  # the address may come after the tables
        may = own == 'running' and self.is_silent(one) or is_claim and own in ('running', '')
        if not (may and is_fresh):
            raise Broken(f'alone: {one.name} calls {name}, {age:.1f} s after EC2 called it {own}')

    def takes_nothing_from_one_that_answers(self, one: Instance, part: str) -> None:
        """Nobody takes from a peer that answers, or that was never heard and passes its checks.

        But for what the primary's start is owed and what lies apart, and to relieve one that cannot NAT or is tagged.
        """
        record, peer = self.records[one.name], self.peer(one)
        held = self.cloud.seen(LATEST_READ + self.lifetime).owners.get(part) == self.cloud.owners[part] == peer.id
        if not held or peer.state != 'running' or self.now - self.apart_at < 30.0 or record.tagged == [False, True]:
            return
        if not (record.has_heard or record.source_checks[1]) and record.told[-1].peer == ('running', 'ok'):
            raise Broken(f'taken: {one.name} claims {part} from a peer that it never heard, and whose checks pass')
        relieves = record.forwarded_at > NEVER and self.now - record.lame_at < MINUTE
        if not self.is_silent(one) and not (
                part in record.owed or record.source_checks[1] or relieves or self.now - record.claim_at < 30.0):
            raise Broken(f'taken: {one.name} claims {part} after {record.misses} misses')

    def who_cannot_nat_takes_nothing(self, one: Instance, name: str) -> None:
        """Who knows that it does not forward takes nothing: a route to it serves nobody."""
        fault = self.world.fault('forwarding lost', one)
        knows = self.world.knows_fault(one) and not (fault and self.now - fault.at <= self.lifetime)
        if knows or self.records[one.name].source_checks[0]:
            raise Broken(f'cannot NAT: {one.name} calls {name} and does not forward')

    def who_is_worked_on_is_left_alone(self, one: Instance, name: str) -> None:
        """Nobody stops, starts or forces one that EC2 calls tagged; a tagged one claims only from a dead peer."""
        (own, peer), is_claim = self.records[one.name].tagged, name in CLAIMS
        may_serve = peer or not self.is_silent(one) and self.peer(one).state == 'running'
        if peer and not is_claim or own and is_claim and may_serve:
            raise Broken(f'tag: {one.name} calls {name}, where EC2 tells tags of {own, peer}')

    def leaves_what_somebody_moved(self, one: Instance, part: str, before: Optional[str]) -> None:
        """What somebody gave to something outside is left, and what is lost once moves nothing else; a start aside."""
        record, peer = self.records[one.name], self.peer(one)
        told_at = record.told_at.get('describe_addresses' if part == ADDRESS else 'describe_route_tables', 0.0)
        seen = self.cloud.seen(LATEST_READ + max(self.lifetime, self.now - told_at)).owners.get(part)
        outside = before == seen not in (None, *self.cloud.instances)
        kinds = [fault.kind for fault in self.world.schedule.faults]
        lost = before == peer.id and {*kinds} <= {*LOST} and sum('address' in kind for kind in kinds) <= 1
        if part not in record.owed and (outside or lost and self.world.works(peer)):
            raise Broken(f'left: {one.name} takes {part} from {before}')

    def changes_hands_seldom(self, part: str) -> None:
        """A part goes away and back for each fault, and in each further WAIT_FOR_INSTANCE_START of the longest."""
        changes = self.changes.setdefault(part, [])
        changes.append(self.now)
        begun = [fault for fault in self.world.schedule.faults if fault.at <= self.now]
        longest = max([1.0, *(min(one.lasts, self.now - one.at) for one in begun if one.kind in LASTING)])
        often = sum(1 + (one.who == 'both') for one in begun) + (longest - 1.0) // self.settings.wait_for_instance_start
        bound = CHANGES if any(fault.kind == 'loss' for fault in begun) else min(CHANGES, 1 + 2 * often)
        if sum(self.now - at < 3 * AN_HOUR for at in changes) > bound:
            raise Broken(f'changes: {part} changes hands {len(changes)} times')

    # Who serves

    def is_served(self) -> None:
        """While one is able to serve, route and address soon point to one that works; in seconds, if all was calm."""
        world, parts, holder = self.world, self.world.parts(), self.world.holder()
        self.dark += 0.0 if self.is_lit else self.now - self.counted_at
        self.counted_at, self.is_lit = self.now, not parts or bool(holder and world.works(holder))
        if not holder or holder.state in ('stopped', 'terminated'):
            self.apart_at = self.now
        # One that lives is left alone though it does not forward; but see `who_cannot_serve_is_relieved`.
        lives = holder and (world.hears(self.peer(holder)) or holder.up and (
            world.knows_fault(holder) or world.fault('forwarding lost', holder)))
        dark = not (self.is_lit or lives)
        self.able = [one for one in self.instances if world.is_able(one)]
        for_long = [one for one in self.instances if self.lasts(f'{one.name} is able', one in self.able) >= MINUTE]
        if not (unserved := self.lasts('not served', dark)):
            self.ready = [one for one in for_long if holder and self.records[one.name].well_at <= self.now - 10.0]
        recent = [fault for fault in world.schedule.faults
                  if self.now - unserved - MINUTE < fault.at + fault.lasts and fault.at <= self.now]
        for one in self.instances:
            due = dark and one in self.able and (  # one that was never heard may live
                not (holder and holder.up) or holder.checks != 'ok' or self.records[one.name].has_heard)
            bound = self.served_within(one, was_calm=one in self.ready and len(recent) <= 1)
            self.is_in_time(f'not served: though {one.name} is able to', due, bound)

    def served_within(self, one: Instance, was_calm: bool) -> float:
        """Return the bound: pings, calls, their late effect; or until EC2 must have told of a peer that is not heard.

        The last call is the question that finds the address where its answer was lost.
        """
        settings, conditions = self.settings, self.conditions
        pings = settings.num_pings * settings.ping_timeout * (1 if was_calm and one is self.instances[1] else 2)
        if not was_calm:
            told = max(conditions.check_lag, LOOK_INTERVAL) + settings.wait_for_instance_start + 2 * MINUTE
            return float(settings.wait_between_pings + pings + told)
        paced = CLAIM_RETRY * (settings.num_pings == 2)  # one miss is no reason to ask EC2 at once again
        calls = max(settings.ping_timeout, conditions.latency) + 4 * conditions.latency + 2 * conditions.effect_lag
        return float(settings.wait_between_pings + pings + calls + paced + 1.0)

    def who_cannot_serve_is_relieved(self, one: Instance) -> None:
        """Who answers, but is tagged, has its source check on or forwards no probe (sooner), hands over in a look."""
        world, peer, record = self.world, self.peer(one), self.records[one.name]
        forwards, hears = world.forwards(peer), world.hears(one) and not world.loss(one)
        if not (forwards and hears):
            record.lame_at = self.now
        tagged = self.cloud.tagged or any(record.tagged)
        ready = hears and one in self.able and peer.id in world.parts() and not world.fault('left out', peer)
        told = ready and (self.cloud.tagged == {peer.id} or not tagged and world.fault('source check', peer))
        self.is_in_time(f'not relieved: by {one.name}', bool(told), LOOK_INTERVAL + MINUTE)
        begun = [fault for fault in world.schedule.faults if fault.at <= self.now]
        over = [each for each in begun if each.kind in {*HINDERS, *NETWORK} - {'loss'}  # by which they take in turn
                and self.now > each.at + each.lasts + MINUTE]
        alone = len(begun) == len(over) + 1 and world.reaches_target(one) and record.forwarded_at > NEVER
        mute = not (forwards or tagged) and world.holder() is peer
        self.is_in_time(f'not relieved: by probes of {one.name}', ready and alone and mute,
                        (LOOK_INTERVAL if over else PROBE_INTERVAL) + 10.0 * self.settings.num_pings)

    def settles_within(self) -> float:
        """When all faults have ended, the pair settles: both well, all at the primary if that is owed to its start.

        It may take a fail-back that waits, a stop that is spaced, and a guest that ignores it.
        """
        settings, conditions = self.settings, self.conditions
        return float(max(conditions.check_lag, conditions.recovery_lag) + LOOK_INTERVAL + PATIENCE + 2 * MINUTE
                     + 3 * settings.wait_for_instance_start + settings.wait_for_instance_stop + int(settings.fail_back))

    def has_failed_back(self) -> bool:
        """A primary that has started has everything, also what was outside the pair, unless the peer took it since."""
        primary = self.instances[0]
        record, owners = self.records[primary.name], self.cloud.owners
        return record.has_lost or all(owners[part] in (None, primary.id) for part in record.owed if part in owners)

    # What a monitor costs

    def calls_are_few(self, one: Instance, name: str) -> None:
        """A monitor makes few calls: a stated number a minute at most, and in a settled pair nothing but looks."""
        calls, minute = self.records[one.name].calls, self.now // MINUTE
        calls[minute] += 1
        if calls[minute] > CALLS_A_MINUTE + CALLS_A_MINUTE_OF_A_PART * len(self.settings.parts):
            raise Broken(f'calls: {one.name} makes {calls[minute]} in a minute')
        if not name.startswith('describe'):
            self.world.quiet_at = self.now

    def rests_between_turns(self) -> None:
        """No monitor is busy for nothing, also where no call leaves it."""
        if self.world.hub.count > EVENTS_A_SECOND * self.now:
            raise Broken(f'busy: {self.world.hub.count} events in {self.now:.0f} s')

    def nothing_unforeseen(self, one: Instance, words: str) -> None:
        """No exception reaches the border of the loop."""
        if words.startswith('Traceback'):
            raise Broken(f'raised: {one.name}: {traceback.format_exc()}')
