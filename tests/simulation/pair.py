"""The pair under test: two real monitors, the network between them, and the faults of a schedule."""
from __future__ import annotations

import collections
import dataclasses
import inspect
import logging
import math
import random
import types
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Set, Tuple, Union

import requests
from botocore.exceptions import ClientError

import nat_monitor

from . import invariants
from .cloud import ADDRESS, Client, Cloud, Conditions, Instance, refusal
from .hub import Hub, Process

LATEST_EFFECT = 15.0              # s from the sending of a call to its effect, at most: what invariant 1 stands on
LATEST_READ = 3                   # s by which a read may lag
TARGET = '192.0.2.1'              # of probes
SUSPENDED = 7.0                   # s by which no call holds up a ping: the process was suspended

# Faults that begin at a moment; `lasts` says for how long where it matters, `how` which way.
ACTIONS = ('describe_instance_status', 'describe_route_tables', 'describe_addresses', 'describe_instances',
           'replace_route', 'associate_address', 'stop_instances', 'start_instances', 'create_route')
GUEST = ('crash', 'hang', 'stubborn', 'reboot', 'stop', 'terminate', 'new private address')
BOOT = ('late metadata', 'late credentials', 'no forwarding')
MONITOR = ('kill', 'suspend')
NETWORK = ('block ping', 'cut peer', 'cut EC2', 'cut off', 'loss')
FORWARDING = ('forwarding lost', 'source check', 'target dead')  # the first, where `how` is odd, unnoticed by the host
TAG = ('maintenance',)            # the tag of an instance that is being worked on
HINDERS = ('EC2 down', 'slow', 'late', 'lossy', 'garbage', 'throttle', 'forbid', 'left out')  # a take-over
EC2 = (*HINDERS, 'no data', 'false alarm', 'no capacity')  # left out, where `how` is odd, of DescribeInstances, too
SOMEBODY = ('move route', 'move address')
LOST = ('delete route', 'release address', 'stray address', 'add table')  # by somebody: no reason to move the rest
OF_BOTH = ('cut peer', 'no data', 'no capacity', 'crash loop', 'target dead')
LASTING = (*NETWORK, *FORWARDING, *TAG, *EC2)


class Fault(NamedTuple):
    at: float
    kind: str
    who: str = 'primary'          # primary, secondary, both
    lasts: float = 0
    how: int = 0


def what_is_forbidden(fault: Fault) -> str:
    return ACTIONS[fault.how % len(ACTIONS)]


class Pace(NamedTuple):
    """The settings of both monitors that say how quick they are."""

    num_pings: int = 3
    ping_timeout: float = 1.0
    wait_between_pings: float = 0.25


class Schedule(NamedTuple):
    faults: Tuple[Fault, ...] = ()
    conditions: Conditions = Conditions()
    seed: int = 0
    pace: Pace = Pace()
    phase: float = 0.0            # s by which the secondary's monitor starts later
    fail_back: Union[bool, int] = True  # two settings
    probes: bool = False

    def __str__(self) -> str:
        usual = Conditions()._asdict()
        unusual = ', '.join(f'{k}={v}' for k, v in self.conditions._asdict().items() if v != usual[k])
        return 'Schedule((\n' + ''.join(f'    {fault},\n' for fault in self.faults) + (
            f'), Conditions({unusual}), {self.seed}, {self.pace}, {self.phase}, {self.fail_back}, '
            f'{self.probes})')


class Lived(NamedTuple):
    """What has happened: stops of one that ran, the most changes of a part by monitors, seconds not served."""

    stops: int
    changes: int
    dark: float


class Broken(BaseException):
    """A promise does not hold; no monitor may catch it."""


class Told(NamedTuple):
    """What EC2 has told one monitor of the states: state and checks of itself and of its peer."""

    sent_at: float
    own: Tuple[str, str]
    peer: Tuple[str, str]


class Record:
    """What the invariants have to know of one process."""

    def __init__(self, now: float) -> None:
        self.started_at = now
        self.answered_at = self.claim_at = -1e9    # the latest of each
        self.well_at = now                         # since when it has answered without a miss
        self.silent_at = -1e9                      # when the first miss of those in a row was sent
        self.misses = 0                            # in a row
        self.ping_left = True                      # the latest ping left this host
        self.ping_due_at = now                     # the next one, while nothing holds up the process
        self.owed: Set[str] = set()                # what the primary's start claims from whoever has it
        self.has_lost = False                      # the peer has taken a part from here
        self.start_at = -1e9                       # the latest start of the peer
        self.stops: List[float] = []               # those that took effect
        self.steps: Dict[str, float] = {}          # of the peer's restart, when each was last tried
        self.told: List[Told] = []                 # by EC2, in this silence
        self.stopping_at = now                     # the first time that it called the peer stopping, without a break
        self.status_at = -1e9                      # its latest answer about the instances
        self.status_before_miss = -1e9             # the latest one that came before the latest miss was sent
        self.own_state, self.peer_told = '', ('', '')
        self.told_at: Dict[str, float] = {}        # by question: when that was sent which EC2 last answered
        self.tagged = [False, False]               # so EC2 has told this monitor of itself and of its peer
        self.source_checks = [False, False]
        self.forwarded_at = self.own_way_at = self.lost_at = -1e9  # the latest probes: when they were sent
        self.lost_probes = 0                       # through the peer, in a row
        self.reliefs: List[float] = []             # of a peer that answers pings, and does not forward
        self.refused_at = -1e9                     # the latest claim that EC2 did not accept
        self.calls: Deque[float] = collections.deque()
        self.turns: Deque[float] = collections.deque(maxlen=invariants.TURNS_A_MINUTE)
        self.traceback: List[str] = []
        self.error_at = -1e9                       # the latest ERROR


class Log:
    """The monitor's log; a traceback breaks a promise."""

    def __init__(self, world: World, one: Instance) -> None:
        self.world, self.one = world, one

    def log(self, level: int, words: str) -> None:
        self.world.note(self.one.name, words)
        if level >= logging.ERROR:
            self.world.records[self.one.name].error_at = self.world.hub.now

    def info(self, words: str) -> None:
        self.world.note(self.one.name, words)
        invariants.nothing_unforeseen(self.world, self.one, words)

    warning = info

    def error(self, words: str) -> None:
        self.log(logging.ERROR, words)


class World:
    """One run: `hub` is its time, `cloud` its EC2; the rest is network, doors and faults."""

    def __init__(self, schedule: Schedule, modules: Tuple[Any, Any] = (nat_monitor, nat_monitor), traced: bool = False,
                 hub: Optional[Hub] = None) -> None:
        self.schedule = schedule
        self.timeline: Optional[List[str]] = [] if traced else None
        self.chance = random.Random(schedule.seed)
        self.hub = hub or Hub()
        self.instances = Instance('primary', 1), Instance('secondary', 2)
        self.modules = dict(zip(('primary', 'secondary'), modules))
        self.cloud = Cloud(self.hub, schedule.conditions, self.instances)
        self.cloud.fault = self.fault
        self.cloud.booted = self.has_booted
        self.cloud.went_down = self.end_monitor
        self.hub.skip = self.skip
        self.hub.changed = self.has_changed
        self.settings_of = {one.name: self.modules[one.name].Settings(
            self.instances[0].id, self.instances[1].id, tuple(self.cloud.routes),
            ADDRESS if schedule.conditions.address else None, *schedule.pace, fail_back=schedule.fail_back,
            probe_address=TARGET if schedule.probes else None) for one in self.instances}
        self.settings = self.settings_of['primary']
        self.active: Dict[Tuple[str, str], List[Fault]] = {}
        self.records: Dict[str, Record] = {}
        self.watch = invariants.Watch()
        self.watch.heir = self.heir()
        self.watch.last = {part: owner for part, owner in self.cloud.owners().items() if owner}
        self.audible = {one.name: [(0.0, True)] for one in self.instances}  # since when each could (not) hear its peer
        self.over = False         # all faults have ended
        self.quiet_at = 0.0       # the latest call that is not a look
        for fault in schedule.faults:
            self.hub.at(fault.at, self.begin, fault)
        self.start_monitor(self.instances[0])
        self.cloud.later(schedule.phase, self.instances[1], self.start_monitor)

    def has_changed(self) -> None:
        self.note_who_hears_whom()
        invariants.at_every_change(self)

    def note(self, who: str, words: str) -> None:
        if self.timeline is not None:
            self.timeline.append(f'{self.hub.now:8.2f}  {who:9}  {words}')

    def peer(self, one: Instance) -> Instance:
        return self.instances[1] if one is self.instances[0] else self.instances[0]

    # Faults

    def fault(self, kind: str, one: Optional[Instance] = None) -> Optional[Fault]:
        """Return the fault of this kind that lasts now, if any."""
        if not self.active:
            return None
        found = self.active.get((kind, one.name if one else 'primary'))
        return found[-1] if found else None

    def begin(self, fault: Fault) -> None:
        self.note('FAULT', f'{fault.kind} {fault.who} for {fault.lasts} s ({fault.how})')
        for one in self.instances:
            if fault.who in (one.name, 'both') or fault.kind in OF_BOTH:
                if fault.kind in LASTING:
                    self.active.setdefault((fault.kind, one.name), []).append(fault)
                    self.hub.at(fault.lasts, self.end, fault, one)
                    if fault.kind == 'cut off' and one.up:
                        self.cloud.change_health(one, False)
                else:
                    self.strike(fault, one)
        self.set_tags()
        if fault.kind in SOMEBODY:
            self.move(fault)
        elif fault.kind in LOST:
            self.lose(fault)

    def end(self, fault: Fault, one: Instance) -> None:
        self.note('FAULT', f'{fault.kind} {one.name} ends')
        self.active[fault.kind, one.name].remove(fault)
        if not self.active[fault.kind, one.name]:
            del self.active[fault.kind, one.name]
        self.set_tags()
        if fault.kind == 'cut off' and one.up and one.state == 'running':
            self.cloud.change_health(one, True)

    def set_tags(self) -> None:
        tagged = frozenset(one.id for one in self.instances if self.fault('maintenance', one))
        if tagged != self.cloud.tagged:
            self.cloud.tagged = tagged
            self.cloud.keep()

    def strike(self, fault: Fault, one: Instance) -> None:
        """What happens to an instance or to its monitor."""
        kind, now = fault.kind, self.hub.now
        if kind == 'new private address' and one.state == 'running' and one.up:
            one.address = f'10.0.{int(one.address.split(".")[2]) + 1}.{one.id[-1]}'
            self.end_monitor(one)
            self.cloud.boot(one)
        elif kind == 'stop':
            self.cloud.stop(one, False, None)
            self.cloud.later(200.0, one, lambda one: self.cloud.stop(one, True, None))
        elif kind == 'terminate' and one.state not in ('shutting-down', 'terminated') and (
                self.peer(one).state not in ('shutting-down', 'terminated')):
            self.cloud.terminate(one)
        elif one.up and kind in ('crash', 'hang'):
            one.stubborn = one.stubborn or kind == 'hang'
            self.cloud.crash(one)
        elif one.up and kind == 'stubborn':
            one.stubborn = True
        elif one.up and kind in ('reboot', *BOOT) and one.state == 'running':
            if kind == 'late metadata':
                one.metadata_at = now + self.schedule.conditions.boot_takes + fault.lasts
            if kind == 'late credentials':
                one.credentials_at = now + self.schedule.conditions.boot_takes + fault.lasts
            if kind == 'no forwarding':
                one.forwarding = False
                self.hub.at(self.schedule.conditions.boot_takes + fault.lasts, setattr, one, 'forwarding', True)
            self.end_monitor(one)
            self.cloud.boot(one)
        elif kind == 'kill' and one.process:
            self.end_monitor(one)
            self.cloud.later(fault.lasts, one, self.start_monitor)
        elif kind == 'suspend' and one.process:
            self.hub.suspend(one.process, fault.lasts)

    def has_booted(self, one: Instance) -> None:
        self.cloud.later(self.schedule.conditions.monitor_starts, one, self.start_monitor)

    def move(self, fault: Fault) -> None:
        """Somebody moves a route or the address: to one of the pair, to nowhere, to something else."""
        target = (self.instances[0].id, self.instances[1].id, None, 'i-00000000000000009')[fault.how % 4]
        if fault.kind == 'move route':
            self.cloud.routes[list(self.cloud.routes)[fault.how // 4 % len(self.cloud.routes)]] = target
        elif self.schedule.conditions.address:
            self.cloud.give_address(self.cloud.instances.get(target or ''))
        invariants.note_owners(self)
        self.cloud.keep()

    def lose(self, fault: Fault) -> None:
        """Somebody deletes a route, releases the address, or adds a table and restarts one monitor before the other."""
        tables = list(self.cloud.routes)
        if fault.kind == 'delete route':
            self.cloud.routes[tables[fault.how % len(tables)]] = None
        elif fault.kind == 'release address' and self.schedule.conditions.address:
            self.cloud.give_address(None)
            self.cloud.released = True
        elif fault.kind == 'stray address' and self.schedule.conditions.address:
            self.cloud.give_address(None)
            self.cloud.astray = self.instances[fault.how % 2].id
        elif fault.kind == 'add table' and len(tables) < 5:
            new = f'rtb-000000{fault.how % 2 * 80 + len(tables):02}'
            self.cloud.routes[new] = None
            first = self.instances[fault.who == 'secondary']
            for one, delay in ((first, 0.0), (self.peer(first), fault.lasts)):
                self.hub.at(delay, self.restart_monitor, one)
        self.cloud.keep()

    # Monitors

    def restart_monitor(self, one: Instance) -> None:
        """Somebody restarts a monitor, with the settings as they are now."""
        self.settings_of[one.name] = dataclasses.replace(
            self.settings_of[one.name], route_table_ids=tuple(sorted(self.cloud.routes)))
        if one.process:
            self.end_monitor(one)
            self.start_monitor(one)

    def start_monitor(self, one: Instance) -> None:
        """Start the monitor afresh, as @reboot does, or somebody after it was killed."""
        if one.process or not one.up:
            return
        process = Process()
        one.process = process
        self.records[one.name] = Record(self.hub.now)
        self.owe(one)
        self.hub.processes.append(process)
        self.note('WORLD', f'the monitor of {one.name} starts')
        doors, module = types.SimpleNamespace, self.modules[one.name]
        heard = {'requests_from': lambda address: bool(self.peer(one).process)}

        def run_together(calls: Dict[str, Callable[[], Any]], timeout: float,
                         meanwhile: Optional[Callable[[], float]] = None,
                         at_once: int = nat_monitor.CONNECTIONS, after_sending: float = math.inf) -> Dict[str, Any]:
            return invariants.nothing_unforeseen_in_calls(self.hub.run_together(
                calls, min(timeout, after_sending), meanwhile, at_once, module.NoAnswer('no answer in time')))

        one.monitor = module.Monitor(
            self.settings_of[one.name],
            clock=doors(monotonic=lambda: self.hub.now, sleep=lambda delay: self.sleep(one, delay)),
            ping=lambda address, own=(): self.ping(one, address),
            metadata=doors(get=lambda item: self.get_metadata(one, item)),
            connect=lambda region: Client(self, one), run_together=run_together,
            nat_fault=lambda *_: 'net.ipv4.ip_forward is 0' if self.knows_fault(one) else '', chance=self.chance,
            probe=lambda target, through=None: self.probe(one, target, through), log=Log(self, one),
            **{name: door for name, door in heard.items() if name in inspect.signature(module.Monitor).parameters})

        def run() -> None:
            one.monitor.run()
            raise Broken(f'the monitor of {one.name} has ended by itself')
        self.hub.spawn(process, run)

    def owe(self, one: Instance) -> None:
        """A primary that starts may claim everything, unless it is not to fail back."""
        if one is self.instances[0] and self.schedule.fail_back is not False:
            self.records[one.name].owed = set(self.settings_of[one.name].parts)

    def end_monitor(self, one: Instance) -> None:
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

    def note_who_hears_whom(self) -> None:
        for one in self.instances:
            if self.hears(one) != self.audible[one.name][-1][1]:
                self.audible[one.name].append((self.hub.now, self.hears(one)))

    def could_hear(self, one: Instance, at: float) -> bool:
        return next(heard for since, heard in reversed(self.audible[one.name]) if since <= at)

    def ping(self, one: Instance, address: str) -> bool:
        """Live through a ping; misses count in a row, without a suspension or a fault of this host's in between."""
        record, timeout = self.records[one.name], self.settings.ping_timeout
        sent_at = self.hub.now
        if sent_at - record.ping_due_at > SUSPENDED:
            record.misses = 0
        status_at = record.status_at
        fault = self.fault('cut off', one)
        record.ping_left = not (fault and fault.how % 2)
        if not record.ping_left:
            record.misses = 0
            self.hub.sleep(0.02)
            record.ping_due_at = self.hub.now + 1.0
            raise self.modules[one.name].OwnFault('Network is unreachable')
        loss = self.fault('loss', one) or self.fault('loss', self.peer(one))
        right = address == self.peer(one).address

        def is_answered(at: float) -> bool:
            return right and self.could_hear(one, at) and not (loss and self.chance.random() < loss.how / 100)

        answered = is_answered(sent_at)
        if not answered:
            self.hub.sleep(timeout)
            answered = any(is_answered(sent_at + timeout * n / nat_monitor.REQUESTS_PER_PING)
                           for n in range(1, nat_monitor.REQUESTS_PER_PING))
        record.ping_due_at = self.hub.now
        if answered:
            if record.misses or record.answered_at < record.started_at:
                record.well_at = self.hub.now
            record.answered_at, record.misses = self.hub.now, 0
            record.ping_due_at += self.settings.wait_between_pings
            return True
        record.status_before_miss = status_at
        record.misses = 0 if self.hub.now - sent_at > timeout + 1.0 else record.misses + 1
        if record.misses == 1:
            record.silent_at, record.told = sent_at, []
        return False

    def probe(self, one: Instance, target: str, through: Optional[str]) -> Any:
        """Live through a probe: through the peer, or by this instance's own route."""
        record, timeout, sent_at = self.records[one.name], self.settings.ping_timeout, self.hub.now
        if through and self.schedule.conditions.frames == 2:
            raise self.modules[one.name].NoNeighbour(f'the MAC address of {through} is not known here')
        loss = self.fault('loss', one) or self.fault('loss', self.peer(one))
        answered = any(not (loss and self.chance.random() < loss.how / 100)
                       for _ in range(nat_monitor.REQUESTS_PER_PING)) and target == TARGET and (
            through == self.peer(one).address and self.goes_through(one) if through else self.reaches_target(one))
        self.hub.sleep(0.002 if answered else timeout)
        if not through:
            record.own_way_at = sent_at if answered else record.own_way_at
        elif answered:
            record.forwarded_at, record.lost_probes = sent_at, 0
        else:
            record.lost_at, record.lost_probes = sent_at, record.lost_probes + 1
        return self.modules[one.name].Probed(0.002 if answered else None)

    def goes_through(self, one: Instance) -> bool:
        """Tell whether a packet from one comes back through its peer."""
        return (self.schedule.conditions.frames == 0 and self.hears(one) and self.forwards(self.peer(one))
                and not self.fault('target dead'))

    def reaches_target(self, one: Instance) -> bool:
        return not (self.fault('target dead') or self.fault('cut off', one)) and self.hub.now >= one.public_at

    def forwards(self, one: Instance) -> bool:
        return one.forwarding and not self.fault('forwarding lost', one) and not self.fault('source check', one)

    def knows_fault(self, one: Instance) -> bool:
        """Tell whether the host itself shows that it does not forward; a rule may do so that only the network shows."""
        fault = self.fault('forwarding lost', one)
        return not one.forwarding or bool(fault and fault.how % 2 == 0)

    def travel(self, one: Instance, name: str) -> Tuple[Optional[float], Optional[float]]:
        """Return the seconds that a call takes to its effect, and its answer from there; None: it is lost."""
        there = back = self.schedule.conditions.latency * self.chance.uniform(0.2, 1.0) / 2
        if not name.startswith('describe') and self.schedule.conditions.effect_lag:
            there += self.chance.uniform(0.0, self.schedule.conditions.effect_lag)
        slow, lossy, down = self.fault('slow', one), self.fault('lossy', one), self.fault('EC2 down', one)
        if slow:
            late = self.chance.uniform(0.0, min(6.0, 1 + slow.how * 0.3))
            there, back = there + late, back + 1 + slow.how * 0.3 - late
        if self.fault('late', one) and not name.startswith('describe'):
            return self.chance.uniform(0.0, LATEST_EFFECT), None
        there = min(there, 6.0)
        if down and down.how % 2 or lossy and self.chance.random() < lossy.how / 200:
            return None, None
        return there, None if lossy and self.chance.random() < lossy.how / 200 else back

    def sends(self, one: Instance, name: str, how: Dict[str, Any]) -> None:
        """A call leaves the instance."""
        if self.timeline is not None:
            self.note(one.name, f'-> {name} {"dry" if "DryRun" in how else ""}')
        invariants.at_every_call(self, one, name, how)

    def forbidden(self, one: Instance) -> str:
        """Return the call that one may not make, if there is one."""
        fault = self.fault('forbid', one)
        return what_is_forbidden(fault) if fault else ''

    def arrives(self, one: Instance, name: str, how: Dict[str, Any], reply: List[Any]) -> None:
        """A call takes effect at EC2."""
        lag = self.chance.uniform(0.0, self.schedule.conditions.read_lag)
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
            before, parts = self.peer(one).state, {} if name.startswith('describe') else self.cloud.owners()
            reply.append(getattr(self.cloud, name)(one, lag, **how))
            if parts:
                invariants.at_every_change_of_hands(self, one, name, parts)
            if name == 'stop_instances' and before == 'running' and one.process:
                invariants.stops_are_spaced(self, one)
            if name == 'start_instances' and before == 'stopped':
                self.records[one.name].start_at = self.hub.now
            if not name.startswith('describe'):
                self.note('EC2', f'{name} by {one.name} takes effect')
        except ClientError as error:
            reply.append(error)

    def answers(self, one: Instance, name: str, sent_at: float, result: Any) -> None:
        """An answer comes back to the instance."""
        record, peer = self.records[one.name], self.peer(one)
        if isinstance(result, Exception):
            self.note(one.name, f'<- {name}: {result}')
            if name in invariants.CLAIMS:
                record.refused_at = self.hub.now
            if name == 'describe_instance_status' and getattr(result, 'response', {}).get('Error'):
                record.status_at, record.own_state = self.hub.now, 'not known'
            return
        record.told_at[name] = sent_at
        if name == 'describe_instance_status':
            told = {found['InstanceId']: (found['InstanceState']['Name'], found['InstanceStatus']['Status'])
                    for found in result['InstanceStatuses']}
            record.status_at, record.own_state = self.hub.now, told.get(one.id, ('not known',))[0]
            record.peer_told = told.get(peer.id, ('', ''))
            if record.peer_told[0] != 'stopping':
                record.stopping_at = self.hub.now
            if sent_at > record.silent_at:
                record.told.append(Told(sent_at, told.get(one.id, ('', '')), record.peer_told))
        elif name == 'describe_instances':
            found = {each['InstanceId']: each for some in result['Reservations'] for each in some['Instances']}
            before, pair = record.tagged[0], [found.get(each.id, {}) for each in (one, peer)]
            record.tagged = [bool(each.get('Tags')) for each in pair]
            record.source_checks = [each.get('SourceDestCheck', False) for each in pair]
            if before and not record.tagged[0]:
                self.owe(one)  # as after a start
        elif name == 'describe_route_tables':
            record.owed -= {table['RouteTableId'] for table in result['RouteTables']
                            if any(route.get('InstanceId') == one.id for route in table['Routes'])}
        elif name == 'describe_addresses':
            record.owed -= {found['PublicIp'] for found in result['Addresses'] if found.get('InstanceId') == one.id}

    # Time that need not be lived through

    def sleep(self, one: Instance, delay: float) -> None:
        """Sleep; until the next ping of several that are answered, in a way that can be left out."""
        process, record, until = one.process, self.records[one.name], self.hub.now + delay
        invariants.rests_between_turns(self, one)
        if process and not record.misses and record.answered_at > record.started_at and (
                abs(until - one.monitor.next_ping_at) < 0.01):
            process.nap = (until, *self.hub.ticket())
            self.hub.wait()
        else:
            self.hub.sleep(delay)

    def skip(self, horizon: float) -> None:
        """Leave out pings and probes of a stretch in which all are answered, up to when a monitor does something else.

        All that is read of a monitor for that are the times at which it does something next.
        """
        naps = [one for one in self.instances if one.process and not one.process.suspended]
        if not all(one.process and one.process.nap for one in naps) or any(
                not self.hears(one) or self.active and (self.fault('loss', one) or self.fault('cut off', one))
                for one in naps):
            return
        probes_fail = self.schedule.probes and not all(map(self.goes_through, self.instances))
        for one in naps:
            monitor = one.monitor
            horizon = min([horizon] + [due for due in (monitor.ask_at, monitor.report_at) if due > self.hub.now])
            if probes_fail:  # one may be overdue, and waits for the next ping
                horizon = min(horizon, max(self.hub.now, monitor.probe_at))
        for one in naps:
            assert one.process and one.process.nap
            due, thread, ticket = one.process.nap
            pings = int((horizon - due) / self.settings.wait_between_pings)
            if pings > 0:
                one.process.nap = (due + pings * self.settings.wait_between_pings, thread, ticket)

    # What is true

    def parts(self) -> List[Optional[str]]:
        """Return who has each part, those aside that somebody gave to something outside the pair."""
        has_address = self.schedule.conditions.address and not self.cloud.released
        found = list(self.cloud.routes.values()) + [self.cloud.owner] * has_address
        return [i for i in found if i is None or i in self.cloud.instances]

    def holder(self) -> Optional[Instance]:
        """Return the instance that has every part."""
        parts = set(self.parts())
        return self.cloud.instances.get(next(iter(parts)) or '') if len(parts) == 1 else None

    def works(self, one: Instance) -> bool:
        return one.up and self.forwards(one) and one.state in ('running', 'stopping') and not self.fault('cut off', one)

    def heir(self) -> Optional[str]:
        """Return the id of the one that serves, as far as the parts are with the pair."""
        tables, ids = set(self.cloud.routes.values()), [one.id for one in self.instances]
        found = [i for parts in (tables, {self.cloud.owner}) for i in ids if i in parts]
        return found[0] if found else None

    def is_able(self, one: Instance) -> bool:
        """Tell whether this monitor has all it needs to take over."""
        return (self.works(one) and one.state == 'running' and one.process is not None and not one.process.suspended
                and len(self.settings_of[one.name].route_table_ids) == len(self.cloud.routes)
                and self.hub.now >= max(one.public_at, one.metadata_at, one.credentials_at)
                and not (self.active and any(self.fault(kind, one) for kind in (*HINDERS, 'cut EC2')))
                and not (self.fault('left out', self.peer(one)) and self.has_not_heard(one))
                and not (one.id in self.cloud.tagged and (
                    self.peer(one).id in self.cloud.tagged or self.peer(one).up)))

    def has_not_heard(self, one: Instance) -> bool:
        record = self.records.get(one.name)
        return bool(record and record.answered_at < record.started_at)

    def may_restart(self, one: Instance) -> bool:
        """Tell whether this monitor has all it needs to restart its peer, even if it may not claim."""
        return (one.process is not None and not one.process.suspended and one.state == 'running'
                and self.hub.now >= max(one.public_at, one.metadata_at, one.credentials_at) and not self.cloud.tagged
                and not any(self.fault(kind, one) for kind in EC2 + ('cut EC2', 'cut off') if kind != 'forbid')
                and not self.fault('left out', self.peer(one))  # EC2 does not tell it of that one
                and not self.forbidden(one).startswith(('describe', 'stop', 'start')))

    def is_settled(self) -> bool:
        """Tell whether both run, one holds everything, and nothing but looks has been called for two minutes."""
        holder = self.holder()
        if (self.parts() and not (holder and self.works(holder))) or self.active or not self.over:
            return False
        if any(one.state == 'terminated' for one in self.instances):
            return any(one.process for one in self.instances)
        return self.hub.now - self.quiet_at >= 120.0 and invariants.has_failed_back(self) and all(
            self.is_able(one) and one.checks == 'ok'
            and self.records[one.name].answered_at > self.records[one.name].started_at
            for one in self.instances)

    # A run

    def run(self) -> Lived:
        """Live through the schedule, let the pair settle, kill the serving instance; raise Broken.

        Returns what has happened until the pair had settled.
        """
        boot = self.schedule.conditions.boot_takes
        until = max([fault.at + fault.lasts + (boot if fault.kind in BOOT else 0) for fault in self.schedule.faults]
                    + [60.0])
        try:
            self.hub.run(until + 0.01)
            self.over, self.quiet_at = True, self.hub.now
            self.note('WORLD', 'all faults have ended')
            self.see_to_it()
            if not self.hub.run(self.hub.now + invariants.settles_within(self), self.is_settled):
                raise Broken(f'settles: not settled {invariants.settles_within(self):.0f} s after the last fault')
            self.watch.worst('settled after the last fault', self.hub.now - until - 120.0)
            self.lived = Lived(self.watch.stops, max(map(len, self.watch.changes.values()), default=0), self.watch.dark)
            holder = self.holder()
            if holder and all(one.process for one in self.instances):
                self.note('WORLD', f'settled; the serving {holder.name} is killed')
                self.cloud.crash(holder)
                self.has_changed()
                self.hub.run(self.hub.now + invariants.served_again_within(self, self.peer(holder)) + 10.0)
        finally:
            for process in list(self.hub.processes):
                self.hub.kill(process)
        return self.lived

    def see_to_it(self) -> None:
        """An operator, after the last fault: starts one instance where neither is up nor coming up."""
        if not any(one.state in ('running', 'pending') and not one.dead for one in self.instances):
            first = next(one for one in self.instances if one.state not in ('terminated', 'shutting-down'))
            self.note('WORLD', f'the operator sees to {first.name}')
            if first.state == 'running':
                self.cloud.boot(first)
            elif first.state == 'stopping':
                self.cloud.stop(first, True, None)
            else:
                self.cloud.start(first)
        self.hub.at(30.0, self.see_to_it)
