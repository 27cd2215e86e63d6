"""One monitor with all its doors in virtual time: an EC2 and pings that follow a script."""
from __future__ import annotations

import json
import logging
import math
import types
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from botocore.exceptions import ClientError, ReadTimeoutError

from nat_monitor import CONNECTIONS, Monitor, NoAnswer, NotSent, Settings

PRIMARY, SECONDARY, OUTSIDE = 'i-0123456789abcdef0', 'i-0fedcba9876543210', 'i-00000000000000000'
TABLE, SECOND, ADDRESS = 'rtb-0123456789abcdef0', 'rtb-0123456789abcdef1', '198.51.100.7'
TARGET, PRIVATE = '192.0.2.1', {PRIMARY: '10.0.0.1', SECONDARY: '10.0.0.2'}
START = 1000.0
SHAPE = types.SimpleNamespace(members={'SkipOsShutdown': None})
CLAIMS = ('replace_route', 'create_route', 'associate_address')
LOST = ReadTimeoutError(endpoint_url='https://ec2.eu-west-1.amazonaws.com')


class Called(NamedTuple):
    at: float
    name: str
    how: Dict[str, Any]


class Ending(BaseException):
    """The end of a test's time."""


def refusal(code: str, message: str = 'said EC2') -> ClientError:
    return ClientError({'Error': {'Code': code, 'Message': message}}, 'Call')


class Cloud:
    """EC2 and its client: a call is done when it is sent, and answered `latency` seconds later."""

    meta = types.SimpleNamespace(service_model=types.SimpleNamespace(
        operation_model=lambda action: types.SimpleNamespace(input_shape=SHAPE)))

    def __init__(self, scene: Scene, holder: str) -> None:
        self.scene = scene
        self.routes: Dict[str, Optional[str]] = dict.fromkeys(scene.settings.route_table_ids, holder)
        self.owner: Optional[str] = holder
        self.allocated = True
        self.state, self.checks = dict.fromkeys(PRIVATE, 'running'), dict.fromkeys(PRIVATE, 'ok')
        self.tags: Dict[str, List[Dict[str, str]]] = {}
        self.checked: Set[str] = set()  # whose source/destination check is on
        self.hidden = ''  # left out of what describes the instances
        self.calls: List[Called] = []
        self.closed: List[float] = []
        self.slow: Dict[str, float] = {}
        self.errors: Dict[str, Any] = {}  # by call: what it raises, or a list of that (None: nothing)

    def close(self) -> None:
        self.closed.append(self.scene.now)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**how: Any) -> Any:
            self.calls.append(Called(self.scene.now, name, how))
            self.scene.lasts.append(self.slow.get(name, self.scene.latency))
            error = self.errors.get(name, self.errors.get('*'))
            if isinstance(error, list):
                error = error.pop(0) if error else None
            if isinstance(error, (ClientError, ConnectionError)) or error and how.get('DryRun'):
                raise error
            if how.get('DryRun'):
                raise refusal('DryRunOperation')
            answer = getattr(type(self), f'on_{name}')(self, **how)
            if error:
                raise error  # the answer is lost on its way
            return answer
        return call

    def on_describe_instance_status(self, InstanceIds: List[str], IncludeAllInstances: bool) -> Any:
        if not self.state.keys() >= set(InstanceIds):
            raise refusal('InvalidInstanceID.NotFound')
        return {'InstanceStatuses': [
            {'InstanceId': i, 'InstanceState': {'Name': self.state[i]}, 'InstanceStatus': {'Status': self.checks[i]},
             'SystemStatus': {'Status': self.checks[i]}} for i in InstanceIds]}

    def on_describe_instances(self, Filters: Any) -> Any:
        return {'Reservations': [{'Instances': [
            {'InstanceId': i, 'PrivateIpAddress': PRIVATE[i], 'Tags': self.tags.get(i, []),
             'SourceDestCheck': i in self.checked, 'NetworkInterfaces': [
                   {'NetworkInterfaceId': f'eni-{i}', 'PrivateIpAddresses': [{'PrivateIpAddress': PRIVATE[i]}]}]}]}
            for i in self.state if i != self.hidden]}

    def on_describe_route_tables(self, Filters: Any) -> Any:
        return {'RouteTables': [{'RouteTableId': table, 'Routes': [
            {'DestinationCidrBlock': '0.0.0.0/0', 'InstanceId': i, 'State': 'active'}] if i else [],
            'Associations': [{'Main': True}, {'SubnetId': f'subnet-{table}'}]} for table, i in self.routes.items()]}

    def on_describe_subnets(self, Filters: Any) -> Any:
        return {'Subnets': [{'SubnetId': i, 'CidrBlock': f'10.0.{n}.0/24'}
                            for n, i in enumerate(Filters[0]['Values'], 1)]}

    def on_describe_addresses(self, Filters: Any) -> Any:
        assert Filters == [{'Name': 'public-ip', 'Values': [ADDRESS]}]
        held = {'InstanceId': self.owner, 'AssociationId': 'eipassoc-1'} if self.owner else {}
        return {'Addresses': [{'PublicIp': ADDRESS, 'AllocationId': 'eipalloc-1', **held}] if self.allocated else []}

    def on_replace_route(self, RouteTableId: str, InstanceId: str, **_: Any) -> None:
        self.routes[RouteTableId] = InstanceId

    def on_associate_address(self, AllocationId: str, InstanceId: str, AllowReassociation: bool) -> None:
        assert AllowReassociation and AllocationId == 'eipalloc-1'
        self.owner = InstanceId

    def on_stop_instances(self, InstanceIds: List[str], **_: Any) -> None:
        self.state[InstanceIds[0]] = 'stopping'

    def on_start_instances(self, InstanceIds: List[str]) -> None:
        self.state[InstanceIds[0]] = 'running'


class Scene(logging.Handler):
    """All doors of one monitor; a scripted `outcome` tells by the time what becomes of a ping."""

    def __init__(self, primary: bool = False, holder: str = PRIMARY, tables: Tuple[str, ...] = (TABLE,),
                 **settings: Any) -> None:
        super().__init__()
        self.now = START
        self.lines: List[Tuple[str, str]] = []
        self.settings = Settings(PRIMARY, SECONDARY, tables, **{'elastic_ip': ADDRESS, **settings})
        self.own_id, self.peer_id = (PRIMARY, SECONDARY) if primary else (SECONDARY, PRIMARY)
        self.cloud = Cloud(self, holder)
        self.latency = 0.1
        self.resolving = 0.0                        # before a call is sent
        self.side_by_side: List[int] = []           # the most calls of each go
        self.lasts: List[float] = []                # what calls of the present go say that they take
        self.pings: List[float] = []
        self.outcome: Callable[[float], Any] = lambda now: True
        self.probes: List[Tuple[float, bool]] = []  # when, through the peer or not
        self.probed: Callable[[float, bool], Any] = lambda now, through: True
        self.peer_pings = True                      # the peer's monitor does
        self.metadata: Dict[str, Any] = {'instance-id': self.own_id, 'placement/region': 'eu-west-1'}
        self.fault, self.until = '', math.inf
        self.judged: List[str] = []                 # networks for which this host is asked whether it can NAT
        self.jitter: List[Tuple[float, float]] = []
        self.connections: List[Any] = []            # what to raise instead of a client
        self.made = 0
        self.status: Dict[str, Any] = {}
        log = logging.Logger('test', logging.INFO)
        log.addHandler(self)
        self.monitor = Monitor(
            self.settings, clock=self, ping=self.ping, metadata=types.SimpleNamespace(get=self.tell), log=log,
            connect=self.connect, run_together=self.run_together, nat_fault=self.nat_fault, probe=self.probe,
            chance=self, requests_from=self.requests_from, publish=self.publish)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))

    def said(self, words: str) -> int:
        return sum(words in message for _, message in self.lines)

    def levels(self, words: str) -> List[str]:
        return [level for level, message in self.lines if words in message]

    def publish(self, status: Dict[str, Any]) -> None:
        self.status = json.loads(json.dumps(status, allow_nan=False))

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0.0
        self.now += seconds
        if self.now >= self.until:
            raise Ending

    def uniform(self, low: float, high: float) -> float:
        self.jitter.append((low, high))
        return (low + high) / 2

    def tell(self, item: str) -> str:
        return str(self.connect_or_raise(self.metadata[item]))

    def connect(self, region: str) -> Any:
        assert region == 'eu-west-1'
        self.made += 1
        return self.connect_or_raise(self.connections.pop(0) if self.connections else self.cloud)

    def connect_or_raise(self, what: Any) -> Any:
        if isinstance(what, list):
            what = what.pop(0)
        if isinstance(what, Exception):
            raise what
        return what

    def ping(self, address: str, own_addresses: Sequence[str]) -> bool:
        assert address == PRIVATE[self.peer_id]
        assert tuple(own_addresses) in ((PRIVATE[self.own_id],), ())
        self.pings.append(self.now)
        outcome = self.outcome(self.now)
        if isinstance(outcome, Exception):
            raise outcome
        self.now += 0.001 if outcome is True else outcome or self.settings.ping_timeout
        return outcome is True

    def nat_fault(self, networks: Sequence[str]) -> str:
        self.judged = list(networks)
        return self.fault

    def requests_from(self, address: str) -> bool:
        assert address == PRIVATE[self.peer_id]
        return self.peer_pings

    def probe(self, target: str, through: Optional[str] = None) -> bool:
        assert target == TARGET and through in (None, PRIVATE[self.peer_id])
        self.probes.append((self.now, bool(through)))
        outcome = self.probed(self.now, bool(through))
        if isinstance(outcome, Exception):
            raise outcome
        self.lasts.append(0.01 if outcome else self.settings.ping_timeout)
        return bool(outcome)

    def run_together(self, calls: Dict[str, Callable[[], Any]], timeout: float,
                     meanwhile: Callable[[], float] = lambda: math.inf, after_sending: float = math.inf,
                     at_once: int = CONNECTIONS) -> Dict[str, Any]:
        results: Dict[str, Any] = dict.fromkeys(calls, NotSent('no answer in time'))
        self.side_by_side.append(at_once)
        self.lasts.clear()
        for name, call in calls.items() if self.resolving <= timeout else ():
            try:
                results[name] = call()
            except Exception as error:
                results[name] = error
        takes = max(self.lasts, default=self.latency)
        until = self.now + min(self.resolving + min(takes, after_sending), timeout)
        while True:
            pause = meanwhile()
            if self.now >= until:
                break
            self.now = min(until, self.now + pause)
        if takes > min(timeout, after_sending) and self.resolving <= timeout:
            return dict.fromkeys(calls, NoAnswer('no answer in time'))
        return results

    def run(self, seconds: float) -> Scene:
        """Let the monitor live for so long, from its start on."""
        until = self.now + seconds
        if not self.monitor.own_id:
            self.monitor.identify()
        while self.now < until:
            before = self.now
            self.monitor.turn()
            assert self.now > before or self.settings.probe_address, 'the loop spins'
        return self

    def silence(self, after: float = 0.0, lasts: float = 1e9) -> float:
        """Let the peer be silent from then on; return when the first ping of it will be missed."""
        begins = self.now + after
        self.outcome = lambda now: not begins <= now < begins + lasts
        return begins

    def times(self, *names: str, since: float = 0.0, dry: bool = False) -> List[float]:
        return [each.at for each in self.cloud.calls
                if each.name in names and each.at >= since and bool(each.how.get('DryRun')) is dry]

    def questions(self, since: float = 0.0) -> List[float]:
        return self.times('describe_instance_status', since=since)

    def claims(self, since: float = 0.0) -> List[float]:
        return self.times(*CLAIMS, since=since)

    def steps(self) -> List[str]:
        return [f'{each.name}{" by force" * each.how.get("Force", False)}' for each in self.cloud.calls
                if each.name in ('stop_instances', 'start_instances') and not each.how.get('DryRun')]


def at_rest(primary: bool = False, holder: str = PRIMARY, **settings: Any) -> Scene:
    """Return a scene in which all has been well for a while, and EC2 is not to be asked soon."""
    scene = Scene(primary, holder, **settings).run(100.0)
    scene.monitor.look_now()
    scene.run(20.0)
    scene.lines.clear()
    scene.cloud.calls.clear()
    scene.pings.clear()
    scene.probes.clear()
    return scene


def gaps(times: List[float]) -> List[float]:
    return [round(later - earlier, 1) for earlier, later in zip(times, times[1:])]


def silent(primary: bool = False, holder: str = PRIMARY, **settings: Any) -> Scene:
    """Return a scene at rest whose peer falls silent now."""
    scene = at_rest(primary, holder, **settings)
    scene.silence()
    return scene


def probing(outcome: Any = True, primary: bool = False, **settings: Any) -> Scene:
    """Return a scene at rest in which the peer was probed with success, until now."""
    scene = at_rest(primary, **{'probe_address': TARGET, **settings})
    scene.probed = outcome if callable(outcome) else lambda now, by_peer: outcome
    return scene


def forwards_not(now: float, by_peer: bool) -> bool:
    return not by_peer


def through(scene: Scene) -> List[float]:
    return [at for at, by_peer in scene.probes if by_peer]
