"""The pair under test: two real monitors, the network between them, and the faults of a schedule."""
from __future__ import annotations

import collections
import functools
import logging
import math
import random
import types
from typing import Any, Callable, Counter, Dict, List, NamedTuple, Optional, Set, Tuple

import requests
from botocore.exceptions import ClientError

import nat_monitor

from .cloud import ADDRESS, Client, Cloud, Instance, refusal
from .faults import ACTIONS, BOOT, EC2, HINDERS, LASTING, LOST, OF_BOTH, SOMEBODY, Fault, Schedule
from .hub import Hub, Process, Thread
from .invariants import LATEST_EFFECT, NEVER, Broken, Promises

TARGET = '192.0.2.1'              # of probes
SUSPENDED = 8.0                   # s by which no call holds up a ping: the process was suspended
Lived = Tuple[int, int, float]    # stops of one that ran, the most changes of a part by monitors, seconds not served


class Told(NamedTuple):
    """What EC2 has told one monitor of the states: state and checks of itself and of its peer, '' for an error."""

    at: float
    sent_at: float
    own: Tuple[str, str] = ('', '')
    peer: Tuple[str, str] = ('', '')


class Record:
    """What the invariants have to know of one process."""

    def __init__(self, now: float) -> None:
        self.pinged_at = self.well_at = now        # the end of the latest ping; since when all are answered
        self.answered_at = self.silent_at = NEVER  # the latest answer; the first miss of those in a row was sent
        self.misses = 0                            # in a row
        self.told = [Told(NEVER, NEVER)]           # all that EC2 has told of the states
        self.told_at: Dict[str, float] = {}        # by question: when that was sent which EC2 last answered
        self.tagged = self.source_checks = [False, False]  # so EC2 has told of this one and of its peer
        self.owed: Set[str] = set()                # what the primary's start claims from whoever has it
        self.has_lost = False                      # somebody or the peer has taken a part
        self.claim_at = self.forwarded_at = self.lame_at = self.error_at = NEVER  # the latest of each
        self.stepped_at = self.start_at = NEVER    # of the peer's restart
        self.stops: List[float] = []               # those that took effect
        self.calls: Counter[float] = collections.Counter()  # by minute

    @property
    def has_heard(self) -> bool:
        return self.answered_at > NEVER


class World:
    """One run: `hub` is its time, `cloud` its EC2; the rest is network, doors and faults."""

    is_watched = True                 # its promises are looked at

    def __init__(self, schedule: Schedule, modules: Tuple[Any, Any] = (nat_monitor, nat_monitor), traced: bool = False,
                 hub: Optional[Hub] = None) -> None:
        self.schedule, self.conditions = schedule, schedule.conditions
        self.timeline: Optional[List[str]] = [] if traced else None
        self.chance = random.Random(schedule.seed)
        self.hub = hub or Hub()
        self.instances = Instance('primary', 1), Instance('secondary', 2)
        self.active: Dict[str, List[Tuple[Instance, Fault]]] = {}  # by kind, the faults that last now
        self.cloud = Cloud(self)
        self.settings, settings = (module.Settings(
            self.instances[0].id, self.instances[1].id, tuple(self.cloud.tables),
            ADDRESS if self.conditions.address else None, *schedule.pace, fail_back=schedule.fail_back,
            probe_address=TARGET if schedule.probes else None) for module in modules)
        self.programs = {'primary': (modules[0], self.settings), 'secondary': (modules[1], settings)}
        self.pause = self.settings.wait_between_pings
        self.records: Dict[str, Record] = {}
        self.promises = Promises(self, self.conditions)
        if self.is_watched:
            self.hub.changed = self.promises.at_every_change
        self.asleep: Dict[str, Tuple[float, Thread, int]] = {}  # until the next ping, and on while all are answered
        self.lived: Lived = (0, 0, 0.0)  # until the pair had settled
        self.quiet_at = 0.0       # the latest call that is not a look
        for fault in schedule.faults:
            self.hub.at(fault.at, self.begin, fault)
        self.start_monitor(self.instances[0])
        self.cloud.later(schedule.phase, self.instances[1], self.start_monitor)

    def note(self, who: str, words: str) -> None:
        if self.timeline is not None:
            self.timeline.append(f'{self.hub.now:8.2f}  {who:9}  {words}')

    def peer(self, one: Instance) -> Instance:
        return self.instances[one is self.instances[0]]

    # Faults

    def fault(self, kind: str, one: Optional[Instance] = None) -> Optional[Fault]:
        """Return the fault of this kind that lasts now, if any."""
        if kind not in self.active:
            return None
        found = [fault for who, fault in self.active[kind] if who is (one or self.instances[0])]
        return found[-1] if found else None

    def begin(self, fault: Fault) -> None:
        self.note('FAULT', f'{fault.kind} {fault.who} for {fault.lasts} s ({fault.how})')
        for one in self.instances:
            if fault.who in (one.name, 'both') or fault.kind in OF_BOTH:
                if fault.kind in LASTING:
                    self.active.setdefault(fault.kind, []).append((one, fault))
                    self.hub.at(fault.lasts, self.end, fault, one)
                    if fault.kind == 'cut off' and one.up:
                        self.cloud.change_health(one, False)
                else:
                    self.strike(fault, one)
        if fault.kind in (*SOMEBODY, *LOST):
            self.meddle(fault)
        self.cloud.keep()
        self.wake()

    def end(self, fault: Fault, one: Instance) -> None:
        self.note('FAULT', f'{fault.kind} {one.name} ends')
        self.active[fault.kind].remove((one, fault))
        if not self.active[fault.kind]:
            del self.active[fault.kind]
        if fault.kind == 'cut off' and one.up and one.state == 'running':
            self.cloud.change_health(one, True)
        self.cloud.keep()
        self.wake()

    def strike(self, fault: Fault, one: Instance) -> None:
        """What happens to an instance or to its monitor."""
        kind = fault.kind
        if kind == 'stop':
            self.cloud.stop(one)
            self.cloud.later(200.0, one, lambda one: self.cloud.stop(one, force=True))
        elif kind == 'terminate':
            if not any(each.state in ('shutting-down', 'terminated') for each in self.instances):
                self.cloud.stop(one, state='shutting-down')
        elif kind in ('kill', 'suspend'):
            if one.process and kind == 'suspend':
                one.process.suspended_until = max(self.hub.now + fault.lasts, one.process.suspended_until)
                self.hub.at(fault.lasts, lambda: None)
            elif one.process:
                self.end_monitor(one)
                self.cloud.later(fault.lasts, one, self.start_monitor)
        elif kind in ('crash', 'hang', 'stubborn'):
            one.stubborn |= one.up and kind != 'crash'
            if one.up and kind != 'stubborn':
                self.cloud.crash(one)
        elif kind in ('reboot', 'new private address', *BOOT) and one.up and one.state == 'running':
            if kind == 'new private address':
                one.address = f'10.0.{int(one.address.split(".")[2]) + 1}.{one.id[-1]}'
            elif kind in BOOT:
                setattr(one, BOOT[kind], self.hub.now + self.conditions.boot_takes + fault.lasts)
                self.hub.at(self.conditions.boot_takes + fault.lasts, lambda: None)
            self.end_monitor(one)
            self.cloud.boot(one)

    def has_booted(self, one: Instance) -> None:
        self.wake()
        self.cloud.later(self.conditions.monitor_starts, one, self.start_monitor)

    def meddle(self, fault: Fault) -> None:
        """Somebody moves or loses a route or the address."""
        kind, how, cloud, tables = fault.kind, fault.how, self.cloud, self.cloud.tables
        target = (self.instances[0].id, self.instances[1].id, None, 'i-00000000000000009')[how % 4]
        if kind == 'move route':
            cloud.owners[tables[how // 4 % len(tables)]] = target
        elif kind == 'delete route':
            cloud.owners[tables[how % len(tables)]] = None
        elif kind.endswith('address') and self.conditions.address and not cloud.released:
            cloud.give_address(cloud.instances.get(target or '') if kind == 'move address' else None)
            cloud.released = kind == 'release address'
            cloud.astray = self.instances[how % 2].id if kind == 'stray address' else None
        if kind in SOMEBODY:
            for record in self.records.values():
                record.has_lost = True

    # Monitors

    def start_monitor(self, one: Instance) -> None:
        """Start the monitor afresh, as @reboot does, or somebody after it was killed."""
        if one.process or not one.up:
            return
        one.process = Process()
        self.hub.processes.append(one.process)
        record = self.records[one.name] = Record(self.hub.now)
        self.owe(one)
        self.note('WORLD', f'the monitor of {one.name} starts')
        doors, (module, settings) = types.SimpleNamespace, self.programs[one.name]
        of_now = {'requests_from': lambda address: bool(self.peer(one).process)} if module is nat_monitor else {}

        def run_together(calls: Dict[str, Callable[[], Any]], timeout: float,
                         meanwhile: Optional[Callable[[], float]] = None,
                         at_once: int = nat_monitor.CONNECTIONS, after_sending: float = math.inf) -> Dict[str, Any]:
            results = self.hub.run_together(
                calls, min(timeout, after_sending), meanwhile, at_once, module.NoAnswer('no answer in time'))
            for result in results.values():
                if isinstance(result, (ArithmeticError, AttributeError, LookupError, NameError, TypeError)):
                    raise result  # the monitor would take it for EC2's silence
            return results

        def log(level: int, words: str) -> None:
            self.note(one.name, words)
            self.promises.nothing_unforeseen(one, words)
            if words.endswith(f' at {one.id}'):
                record.owed -= {*words.split()}
            if level >= logging.ERROR and self.peer(one).id in words:
                record.error_at = self.hub.now  # which tells of the peer

        one.monitor = module.Monitor(
            settings, clock=doors(monotonic=lambda: self.hub.now, sleep=lambda delay: self.sleep(one, delay)),
            ping=lambda address, own=(): self.ping(one, address),
            metadata=doors(get=lambda item: self.get_metadata(one, item)),
            connect=lambda region: Client(self, one), run_together=run_together,
            nat_fault=lambda *_: 'net.ipv4.ip_forward is 0' if self.knows_fault(one) else '', chance=self.chance,
            probe=lambda target, through=None: self.probe(one, target, through),
            log=doors(log=log, **{name: functools.partial(log, getattr(logging, name.upper()))
                                  for name in ('info', 'warning', 'error')}), **of_now)
        self.hub.spawn(one.process, one.monitor.run)

    def owe(self, one: Instance) -> None:
        """A primary that starts may claim everything, unless it is not to fail back."""
        if one is self.instances[0] and self.schedule.fail_back is not False:
            self.records[one.name].owed = set(self.settings.parts)

    def end_monitor(self, one: Instance) -> None:
        self.wake()
        if one.process:
            self.note('WORLD', f'the monitor of {one.name} is dead')
            self.hub.kill(one.process)
            one.process = None

    def get_metadata(self, one: Instance, item: str) -> str:
        if self.hub.now < one.metadata_at:
            self.hub.sleep(0.5)
            raise requests.ConnectionError('no route to host')
        return one.id if item == 'instance-id' else 'eu-central-1'

    # Network

    def hears(self, one: Instance) -> bool:
        """Tell whether a request sent now by one to its peer is answered, loss aside."""
        peer = self.peer(one)
        return peer.up and not (self.active and (
            self.fault('block ping', one) or self.fault('cut peer') or self.fault('cut off', one)
            or self.fault('cut off', peer)))

    def loss(self, one: Instance) -> Optional[Fault]:
        return self.fault('loss', one) or self.fault('loss', self.peer(one))

    def is_lost(self, one: Instance) -> bool:
        loss = self.loss(one)
        return bool(loss and self.chance.random() < loss.how / 100)

    def ping(self, one: Instance, address: str) -> bool:
        """Live through a ping; misses count in a row, without a suspension or a fault of this host's in between."""
        record, timeout, sent_at = self.records[one.name], self.settings.ping_timeout, self.hub.now
        fault = self.fault('cut off', one)
        if fault and fault.how % 2:
            record.misses = 0
            self.hub.sleep(0.02)
            raise self.programs[one.name][0].OwnFault('Network is unreachable')
        right = address == self.peer(one).address
        answered = right and self.hears(one) and not self.is_lost(one)
        if not answered:  # one of the later requests may be
            self.hub.sleep(timeout)
            answered = right and self.hears(one) and not all(
                self.is_lost(one) for _ in range(nat_monitor.REQUESTS_PER_PING - 1))
        before, record.pinged_at = record.pinged_at, self.hub.now
        if answered:
            record.well_at = self.hub.now if record.misses or not record.has_heard else record.well_at
            record.answered_at, record.misses = self.hub.now, 0
            return True
        record.misses = record.misses + 1 if sent_at - before <= SUSPENDED else 1
        record.misses *= self.hub.now - sent_at <= timeout + SUSPENDED
        record.silent_at = sent_at if record.misses == 1 else record.silent_at
        return False

    def probe(self, one: Instance, target: str, through: Optional[str]) -> Any:
        """Live through a probe: through the peer, or by this instance's own route."""
        module, sent_at = self.programs[one.name][0], self.hub.now
        if through and self.conditions.frames == 2:
            raise module.NoAnswer(f'the MAC address of {through} is not known here')
        answered = not all(self.is_lost(one) for _ in range(nat_monitor.REQUESTS_PER_PING)) and target == TARGET and (
            through == self.peer(one).address and self.goes_through(one) if through else self.reaches_target(one))
        self.hub.sleep(0.002 if answered else self.settings.ping_timeout)
        if through and answered:
            self.records[one.name].forwarded_at = sent_at
        return answered if module is nat_monitor else module.Probed(0.002 if answered else None)

    def goes_through(self, one: Instance) -> bool:
        """Tell whether a packet from one comes back through its peer."""
        return (self.conditions.frames == 0 and self.hears(one) and self.forwards(self.peer(one))
                and not self.fault('target dead'))

    def reaches_target(self, one: Instance) -> bool:
        return not (self.fault('target dead') or self.fault('cut off', one)) and self.hub.now >= one.public_at

    def forwards(self, one: Instance) -> bool:
        return (self.hub.now >= one.forwards_at and not self.fault('forwarding lost', one)
                and not self.fault('source check', one))

    def knows_fault(self, one: Instance) -> bool:
        """Tell whether the host itself shows that it does not forward; a rule may do so that only the network shows."""
        fault = self.fault('forwarding lost', one)
        return self.hub.now < one.forwards_at or bool(fault and fault.how % 2 == 0)

    # Calls

    def travel(self, one: Instance, name: str) -> Tuple[Optional[float], Optional[float]]:
        """Return the seconds that a call takes to its effect, and its answer from there; None: it is lost."""
        chance, writes = self.chance, not name.startswith('describe')
        there = back = self.conditions.latency * chance.uniform(0.2, 1.0) / 2
        if writes and self.conditions.effect_lag:
            there += chance.uniform(0.0, self.conditions.effect_lag)
        slow, lossy, down = self.fault('slow', one), self.fault('lossy', one), self.fault('EC2 down', one)
        if slow:
            late = chance.uniform(0.0, min(6.0, 1 + slow.how * 0.3))
            there, back = there + late, back + 1 + slow.how * 0.3 - late
        if self.fault('late', one) and writes:
            return chance.uniform(0.0, LATEST_EFFECT), None
        if down and down.how % 2 or lossy and chance.random() < lossy.how / 200:
            return None, None
        return min(there, 6.0), None if lossy and chance.random() < lossy.how / 200 else back

    def sends(self, one: Instance, name: str, how: Dict[str, Any]) -> None:
        """A call leaves the instance."""
        self.note(one.name, f'-> {name} {"dry" if "DryRun" in how else ""}')
        if self.is_watched:
            self.promises.at_every_call(one, name, how)

    def forbidden(self, one: Instance) -> str:
        """Return the call that one may not make, if there is one."""
        fault = self.fault('forbid', one)
        return ACTIONS[fault.how % len(ACTIONS)] if fault else ''

    def arrives(self, one: Instance, name: str, how: Dict[str, Any], reply: List[Any]) -> None:
        """A call takes effect at EC2."""
        lag = self.chance.uniform(0.0, self.conditions.read_lag)
        try:
            if self.fault('garbage', one) and self.chance.random() < 0.5:
                raise ClientError({}, name)
            if self.fault('EC2 down', one):
                raise refusal('Unavailable', 'The service is unavailable. Please try again shortly.')
            if self.cloud.throttled(name, bool(self.fault('throttle'))):
                raise refusal('RequestLimitExceeded')
            if self.forbidden(one) == name:
                raise refusal('UnauthorizedOperation')
            if how.get('DryRun'):
                raise refusal('DryRunOperation')
            before, parts = self.peer(one).state, dict(self.cloud.owners)
            reply.append(getattr(self.cloud, name)(one, lag, **how))
            if not name.startswith('describe'):
                self.note('EC2', f'{name} by {one.name} takes effect')
                if self.is_watched:
                    self.promises.at_every_effect(one, name, before, parts)
        except ClientError as error:
            reply.append(error)

    def answers(self, one: Instance, name: str, sent_at: float, result: Any) -> None:
        """An answer comes back to the instance."""
        record, pair, lossy = self.records[one.name], (one.id, self.peer(one).id), self.fault('lossy', one)
        if isinstance(result, Exception):
            self.note(one.name, f'<- {name}: {result}')
            if name == 'describe_instance_status' and getattr(result, 'response', {}).get('Error'):
                record.told.append(Told(self.hub.now, sent_at))
            return
        before, record.told_at[name] = record.told_at.get(name, NEVER), sent_at
        if name == 'describe_instance_status':
            told = {found['InstanceId']: (found['InstanceState']['Name'], found['InstanceStatus']['Status'])
                    for found in result['InstanceStatuses']}
            record.told.append(Told(self.hub.now, sent_at, *(told.get(i, ('', '')) for i in pair)))
        elif name == 'describe_instances':
            found = {each['InstanceId']: each for some in result['Reservations'] for each in some['Instances']}
            was_tagged, record.tagged = record.tagged[0], [bool(found.get(i, {}).get('Tags')) for i in pair]
            record.source_checks = [found.get(i, {}).get('SourceDestCheck', False) for i in pair]
            if was_tagged and not record.tagged[0]:
                self.owe(one)  # as after a start
                record.has_lost &= before not in {told.sent_at for told in record.told}  # tag and states in one look
        elif name == 'describe_route_tables' and not lossy:  # else its log tells what the look was worth
            record.owed -= {table['RouteTableId'] for table in result['RouteTables']
                            if any(route.get('InstanceId') == one.id for route in table['Routes'])}
        elif name == 'describe_addresses' and not lossy:
            record.owed -= {found['PublicIp'] for found in result['Addresses'] if found.get('InstanceId') == one.id}

    # Time that need not be lived through

    def sleep(self, one: Instance, delay: float) -> None:
        """Sleep; of pings that are all answered, only the last one before something else falls due is lived through.

        All that is read of a monitor for that are the times at which it does something next.
        """
        monitor, record, due, wait = one.monitor, self.records[one.name], self.hub.now + delay, self.pause
        if record.misses or not record.has_heard or abs(delay - wait) > 0.01 or not (
                self.hears(one) and not self.loss(one)):
            self.hub.sleep(delay)
            return
        next_at = [monitor.ask_at, monitor.report_at]
        if self.schedule.probes and not self.goes_through(one):
            next_at.append(monitor.probe_at)
        thread, ticket = self.hub.ticket()
        self.asleep[one.name] = due, thread, ticket
        self.hub.at(delay + max(0, int((min(next_at) - due) / wait)) * wait, self.hub.resume, thread, ticket)
        self.hub.wait()
        self.asleep.pop(one.name, None)

    def wake(self) -> None:
        """Something has changed: who sleeps through pings lives through the next one."""
        for due, thread, ticket in self.asleep.values():
            pings = max(0, math.ceil((self.hub.now - due) / self.pause))
            self.hub.at(due + pings * self.pause - self.hub.now, self.hub.resume, thread, ticket)
        self.asleep.clear()

    # What is true

    def parts(self) -> List[Optional[str]]:
        """Return who has each part, those aside that somebody gave to something outside the pair."""
        has_address = self.conditions.address and not self.cloud.released
        return [owner for part, owner in self.cloud.owners.items() if (part != ADDRESS or has_address) and (
            owner is None or owner in self.cloud.instances)]

    def holder(self) -> Optional[Instance]:
        """Return the instance that has every part."""
        parts = set(self.parts())
        return self.cloud.instances.get(parts.pop() or '') if len(parts) == 1 else None

    def works(self, one: Instance) -> bool:
        return one.up and self.forwards(one) and one.state in ('running', 'stopping') and not self.fault('cut off', one)

    def can_call(self, one: Instance) -> bool:
        """Tell whether this monitor runs and has what it needs to call EC2."""
        return (one.process is not None and one.state == 'running' and self.hub.now >= one.process.suspended_until
                and self.hub.now >= max(one.public_at, one.metadata_at, one.credentials_at)
                and not self.fault('cut EC2', one) and not self.fault('cut off', one))

    def is_able(self, one: Instance) -> bool:
        """Tell whether this monitor has all it needs to take over."""
        peer = self.peer(one)
        return (self.can_call(one) and self.works(one)
                and not (self.active and any(self.fault(kind, one) for kind in HINDERS))
                and not (self.fault('left out', peer) and not self.records[one.name].has_heard)
                and not (one.id in self.cloud.tagged and (peer.id in self.cloud.tagged or peer.up)))

    def may_restart(self, one: Instance) -> bool:
        """Tell whether this monitor has all it needs to restart its peer, even if it may not claim."""
        return (self.can_call(one) and not self.cloud.tagged and self.peer(one).state != 'terminated'
                and not (self.active and any(self.fault(kind, one) for kind in EC2 if kind != 'forbid'))
                and not self.fault('left out', self.peer(one))  # EC2 does not tell it of that one
                and not self.forbidden(one).startswith(('describe', 'stop', 'start')))

    def is_settled(self) -> bool:
        """Tell whether both run, one holds everything, and nothing but looks has been called for two minutes."""
        gone, holder = any(one.state == 'terminated' for one in self.instances), self.holder()
        if self.active or not gone and self.hub.now - self.quiet_at < 120.0 or (
                self.parts() and not (holder and self.works(holder))):
            return False
        return any(one.process for one in self.instances) if gone else self.promises.has_failed_back() and all(
            self.is_able(one) and one.checks == 'ok' and self.records[one.name].has_heard for one in self.instances)

    # A run

    def run(self) -> None:
        """Live through the schedule, let the pair settle, kill the serving instance; raise Broken."""
        until = max([fault.at + fault.lasts + self.conditions.boot_takes * (fault.kind in BOOT)
                     for fault in self.schedule.faults] + [60.0])
        try:
            self.hub.run(until + 0.01)
            self.quiet_at = self.hub.now
            self.note('WORLD', 'all faults have ended')
            self.see_to_it()
            within = self.promises.settles_within()
            if not self.hub.run(self.hub.now + within, self.is_settled):
                raise Broken(f'settles: not settled {within:.0f} s after the last fault')
            promises = self.promises
            self.lived = promises.stops, max(map(len, promises.changes.values()), default=0), promises.dark
            holder = self.holder()
            if holder and all(one.process for one in self.instances):
                self.note('WORLD', f'settled; the serving {holder.name} is killed')
                self.cloud.crash(holder)
                promises.at_every_change()
                self.hub.run(self.hub.now + 60.0, lambda: promises.is_lit)
                promises.at_every_change()
            self.promises.rests_between_turns()
        finally:
            for process in list(self.hub.processes):
                self.hub.kill(process)

    def see_to_it(self) -> None:
        """An operator, after the last fault: starts one instance where neither is up nor coming up."""
        if not any(one.state in ('running', 'pending') and not one.dead for one in self.instances):
            first = next(one for one in self.instances if one.state not in ('terminated', 'shutting-down'))
            self.note('WORLD', f'the operator sees to {first.name}')
            self.cloud.stop(first, force=True)
            self.cloud.start(first)  # the next time, when it is stopped
        self.hub.at(30.0, self.see_to_it)
