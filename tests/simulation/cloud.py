"""EC2 in memory: instances with their states, routes, the address; reads lag, calls travel and get lost."""
from __future__ import annotations

import bisect
import types
from typing import TYPE_CHECKING, Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

from botocore.exceptions import (ClientError, ConnectTimeoutError, EndpointConnectionError, NoCredentialsError,
                                 ReadTimeoutError)

from nat_monitor import CONNECT_TIMEOUT, MAINTENANCE, READ_TIMEOUT

from .hub import Process

if TYPE_CHECKING:
    from .pair import World

ENDPOINT = 'https://ec2.eu-central-1.amazonaws.com'
ADDRESS, ALLOCATION = '198.51.100.7', 'eipalloc-0123456789abcdef0'
EVERYWHERE = '0.0.0.0/0'
BUCKET, REFILL = 40.0, 4.0        # calls of one kind at once, and a second, before EC2 throttles
PATIENCE = 300.0                  # s that EC2 leaves a guest which lives, but ignores a graceful stop
FORGOTTEN_AFTER = 120.0           # s after which EC2 does not know a terminated instance any more


class Instance:
    """One of the pair: what EC2 says of it, and what is true of the guest."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.id = f'i-0000000000000000{number}'
        self.address = f'10.0.0.{number}'
        self.state = 'running'
        self.up = True                # the guest runs: it answers pings and routes packets
        self.dead = False             # it has crashed, and only a new boot helps
        self.stubborn = False         # it ignores a graceful stop
        self.checks = 'ok'
        self.health = 0               # counts the changes that the checks will show after a while
        self.life = 0                 # counts boots and stops: what belonged to an earlier life is void
        self.public = 0               # counts the changes of its public address: older connections are dead
        self.public_at = 0.0          # it reaches EC2 from then on
        self.metadata_at = self.credentials_at = self.forwards_at = 0.0  # it has the first two, and does the last
        self.stopped_by: Optional[Instance] = None  # the instance whose monitor did
        self.forgotten_at = float('inf')  # by EC2
        self.process: Optional[Process] = None
        self.monitor: Any = None


class Past(NamedTuple):
    """What was true at a time."""

    states: Dict[str, Tuple[str, str]]  # state and checks by id
    owners: Dict[str, Optional[str]]    # by part
    tagged: FrozenSet[str]


def refusal(code: str, message: str = '') -> ClientError:
    return ClientError({'Error': {'Code': code, 'Message': message or code}}, 'Call')


class Cloud:
    """The API, one method for each call, run at the moment at which the call takes effect."""

    def __init__(self, world: World) -> None:
        self.world, self.hub, self.conditions, self.fault = world, world.hub, world.conditions, world.fault
        self.instances = {one.id: one for one in world.instances}
        parts = [f'rtb-000000{n:02}' for n in range(self.conditions.tables)] + [ADDRESS]
        self.owners: Dict[str, Optional[str]] = dict.fromkeys(parts, world.instances[0].id)  # by part
        self.astray: Optional[str] = None  # where nobody has it: who has it at a private address that no traffic uses
        self.released = False             # there is no such address any more
        self.tagged: FrozenSet[str] = frozenset()  # those under maintenance
        self.buckets: Dict[str, Tuple[float, float]] = {}
        self.times: List[float] = []
        self.pasts: List[Past] = []
        self.keep()

    @property
    def tables(self) -> List[str]:
        return [part for part in self.owners if part != ADDRESS]

    def keep(self) -> None:
        """Keep what is true now for reads that lag."""
        self.tagged = frozenset(one.id for one in self.instances.values() if self.fault('maintenance', one))
        self.times.append(self.hub.now)
        self.pasts.append(Past({i: (one.state, one.checks) for i, one in self.instances.items()}, dict(self.owners),
                               self.tagged))

    def seen(self, lag: float) -> Past:
        return self.pasts[max(0, bisect.bisect_right(self.times, self.hub.now - lag) - 1)]

    def throttled(self, action: str, scarce: bool) -> bool:
        size, refill = (2.0, 0.1) if scarce else (BUCKET, REFILL)
        tokens, at = self.buckets.get(action, (size, self.hub.now))
        tokens = min(size, tokens + (self.hub.now - at) * refill)
        self.buckets[action] = (max(0.0, tokens - 1.0), self.hub.now)
        return tokens < 1.0

    def known(self, *ids: str) -> List[Instance]:
        found = [self.instances[i] for i in ids]
        if any(one.forgotten_at < self.hub.now for one in found):
            raise refusal('InvalidInstanceID.NotFound')
        return found

    # The life of an instance

    def change_health(self, one: Instance, well: bool) -> None:
        """Let the status checks show after a while how the guest is."""
        one.health += 1
        lag = self.conditions.recovery_lag if well else self.conditions.check_lag
        self.hub.at(lag, self.show_health, one, 'ok' if well else 'impaired', one.health)

    def show_health(self, one: Instance, checks: str, health: int) -> None:
        if one.health == health:
            one.checks = checks
            self.keep()

    def later(self, delay: float, one: Instance, function: Callable[[Instance], None]) -> None:
        """Call the function with the instance, if it still lives the same life then."""
        life = one.life

        def call() -> None:
            if one.life == life:
                function(one)
        self.hub.at(delay, call)

    def boot(self, one: Instance) -> None:
        """Begin a boot, or begin it again."""
        one.life += 1
        one.state, one.up, one.dead, one.stubborn = 'running', False, False, False
        self.later(self.conditions.boot_takes, one, self.come_up)
        self.keep()

    def come_up(self, one: Instance) -> None:
        one.up = True
        self.change_health(one, True)
        self.world.has_booted(one)

    def go_down(self, one: Instance) -> None:
        one.up = False
        self.world.end_monitor(one)

    def crash(self, one: Instance) -> None:
        one.life += 1
        one.dead = True
        self.go_down(one)
        if one.state in ('stopping', 'shutting-down'):
            self.later(self.conditions.stop_takes, one, self.end)
        else:
            self.change_health(one, False)

    def stop(self, one: Instance, force: bool = False, by: Optional[Instance] = None, state: str = 'stopping') -> None:
        """Stop an instance, or terminate it, which is the same for the guest."""
        if one.state == 'running' or state == 'shutting-down':
            one.state, one.checks, one.stopped_by = state, 'not-applicable', by
            one.life += 1
            one.health += 1
            if not one.stubborn or force or state == 'shutting-down':
                self.later(3.0, one, self.go_down)
                self.later(3.0 if force else self.conditions.stop_takes, one, self.end)
            elif not one.dead:
                self.later(PATIENCE, one, self.end)
        elif one.state == 'stopping' and force:
            self.later(5.0, one, self.end)
        self.keep()

    def end(self, one: Instance) -> None:
        one.state = 'terminated' if one.state == 'shutting-down' else 'stopped'
        one.life += 1
        one.dead, one.stubborn, one.checks = False, False, 'not-applicable'
        self.go_down(one)
        if one.state == 'terminated':
            one.forgotten_at = self.hub.now + FORGOTTEN_AFTER
            if self.owners[ADDRESS] == one.id:
                self.owners[ADDRESS] = None
        self.keep()

    def start(self, one: Instance) -> None:
        if one.state == 'stopped':
            one.state, one.checks, one.stopped_by = 'pending', 'initializing', None
            one.life += 1
            self.later(self.conditions.boot_takes / 2, one, self.boot)
            self.keep()

    def give_address(self, taker: Optional[Instance]) -> None:
        """Give the address away: both sides' connections break, and the loser is cut off from EC2 for a while."""
        loser = self.instances.get(self.owners[ADDRESS] or '')
        self.owners[ADDRESS], self.astray = taker.id if taker else None, None
        if loser is not taker:
            for one in (loser, taker):
                if one:
                    one.public += 1
                    one.public_at = self.hub.now + (self.conditions.public_back if one is loser else 0.0)
                    self.hub.at(one.public_at - self.hub.now, lambda: None)
        self.keep()

    # The calls

    def describe_instance_status(self, by: Instance, lag: float, InstanceIds: List[str], **_: Any) -> Any:
        states = self.seen(lag).states
        bad = 'insufficient-data' if self.fault('no data') else ''
        told = {i: (state, 'impaired' if checks == 'ok' and self.fault('false alarm', self.instances[i]) else checks)
                for i, (state, checks) in states.items()}
        return {'InstanceStatuses': [
            {'InstanceId': one.id, 'InstanceState': {'Name': told[one.id][0]},
             'InstanceStatus': {'Status': bad or told[one.id][1]},
             'SystemStatus': {'Status': bad or ('ok' if told[one.id][1] == 'impaired' else told[one.id][1])}}
            for one in self.known(*InstanceIds) if not self.fault('left out', one)]}

    def describe_instances(self, by: Instance, lag: float, Filters: Any) -> Any:
        tagged = self.seen(lag).tagged
        return {'Reservations': [{'Instances': [{
            'InstanceId': one.id, 'SourceDestCheck': bool(self.fault('source check', one)),
            'Tags': [{'Key': MAINTENANCE, 'Value': ''}] if one.id in tagged else [],
            **({} if one.state == 'terminated' else {'PrivateIpAddress': one.address})}]}
            for one in map(self.instances.__getitem__, Filters[0]['Values'])
            if one.forgotten_at >= self.hub.now and not getattr(self.fault('left out', one), 'how', 0) % 2]}

    def describe_route_tables(self, by: Instance, lag: float, Filters: Any) -> Any:
        states, owners, _ = self.seen(lag)
        return {'RouteTables': [
            {'RouteTableId': table, 'Routes': [{'DestinationCidrBlock': '10.0.0.0/16', 'GatewayId': 'local'}] + (
                [{'DestinationCidrBlock': EVERYWHERE, 'InstanceId': target, 'State': 'blackhole' if states.get(
                    target, ('',))[0] in ('stopped', 'terminated') else 'active'}] if target else [])}
            for table, target in owners.items() if table != ADDRESS]}

    def describe_addresses(self, by: Instance, lag: float, Filters: Any) -> Any:
        owner = self.seen(lag).owners[ADDRESS] or self.astray
        return {'Addresses': [] if self.released else [{'PublicIp': ADDRESS, 'AllocationId': ALLOCATION, **(
            {'InstanceId': owner, 'AssociationId': 'eipassoc-0'} if owner else {}), **(
            {'PrivateIpAddress': '10.0.0.99'} if owner and owner == self.astray else {})}]}

    def replace_route(self, by: Instance, lag: float, RouteTableId: str, InstanceId: str, is_new: bool = False, **_: Any
                      ) -> Any:
        if (self.owners[RouteTableId] is None) != is_new:
            raise refusal('RouteAlreadyExists') if is_new else refusal(
                'InvalidParameterValue', 'There is no route defined for 0.0.0.0/0')
        self.owners[RouteTableId] = self.known(InstanceId)[0].id
        self.keep()

    def create_route(self, by: Instance, lag: float, **how: Any) -> Any:
        self.replace_route(by, lag, is_new=True, **how)

    def associate_address(self, by: Instance, lag: float, InstanceId: str, **_: Any) -> Any:
        one, = self.known(InstanceId)
        if one.state not in ('running', 'stopping', 'stopped'):
            raise refusal('InvalidInstanceID', f'{one.id} is {one.state}')
        if self.released:
            raise refusal('InvalidAllocationID.NotFound')
        self.give_address(one)

    def stop_instances(self, by: Instance, lag: float, InstanceIds: List[str], Force: bool = False,
                       SkipOsShutdown: bool = False) -> Any:
        one, = self.known(*InstanceIds)
        if one.state not in ('running', 'stopping', 'stopped'):
            raise refusal('IncorrectInstanceState', f'{one.id} is {one.state}')
        self.stop(one, Force, by)

    def start_instances(self, by: Instance, lag: float, InstanceIds: List[str]) -> Any:
        one, = self.known(*InstanceIds)
        if one.state not in ('stopped', 'pending', 'running'):
            raise refusal('IncorrectInstanceState', f'{one.id} is {one.state}')
        if one.state == 'stopped' and self.fault('no capacity'):
            raise refusal('InsufficientInstanceCapacity')
        self.start(one)


class Client:
    """What boto3 gives the monitor: a call travels to EC2, takes effect there, and its answer travels back."""

    meta = types.SimpleNamespace(service_model=types.SimpleNamespace(  # so the program of before an upgrade asks
        operation_model=lambda action: types.SimpleNamespace(
            input_shape=types.SimpleNamespace(members={'SkipOsShutdown': None}))))

    def __init__(self, world: World, one: Instance) -> None:
        self.world, self.one = world, one
        self.void = world.hub.now < one.credentials_at  # made too early, it never gets any
        self.connected: Optional[int] = None            # by which public address

    def close(self) -> None:
        self.connected = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda **how: self.call(name, how)

    def call(self, name: str, how: Dict[str, Any]) -> Any:
        world, one, hub = self.world, self.one, self.world.hub
        if self.void:
            raise NoCredentialsError()
        sent_at, public = hub.now, one.public
        fault = world.fault('cut EC2', one) or world.fault('cut off', one)
        if fault or hub.now < one.public_at:
            hub.sleep(0.05 if fault and fault.how % 2 else CONNECT_TIMEOUT)
            raise (EndpointConnectionError if fault and fault.how % 2 else ConnectTimeoutError)(endpoint_url=ENDPOINT)
        stale = self.connected not in (None, public)
        there, back = world.travel(one, name)
        reply: List[Any] = []
        world.sends(one, name, how)
        if not stale:
            self.connected = public
            if there is not None:
                hub.at(there, world.arrives, one, name, how, reply)
        else:
            self.connected = None
        if stale or there is None or back is None or there + back > READ_TIMEOUT:
            hub.sleep(READ_TIMEOUT)
            raise ReadTimeoutError(endpoint_url=ENDPOINT)
        hub.sleep(there + back)
        if one.public != public or world.fault('cut EC2', one) or world.fault('cut off', one):
            hub.sleep(max(0.0, sent_at + READ_TIMEOUT - hub.now))
            raise ReadTimeoutError(endpoint_url=ENDPOINT)
        world.answers(one, name, sent_at, reply[0])
        if isinstance(reply[0], Exception):
            raise reply[0]
        return reply[0]
