"""EC2 of the lab: moto's, and in front of it a layer that adds what moto lacks: time, life, effects, failures.

What the two instances ask arrives here over HTTPS; moto keeps the records and writes the answers. After each call
the network is made to do what the records say, so that it does not matter which call changed them.
"""

import contextlib
import fnmatch
import functools
import http.server
import itertools
import socket
import ssl
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple

import trustme
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_network_interfaces import NetworkInterface as MotoInterface
from moto.ec2.models.instances import Instance as MotoInstance
from moto.ec2.models.instances import InstanceState
from moto.ec2.models.route_tables import Route as MotoRoute
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.test import Client

from .network import ELASTIC_IP, ENDPOINT, INSTANCE_ADDRESSES, Network

if TYPE_CHECKING:
    from .lab import Instance as Machine

ACCOUNT = '123456789012'
REGION = 'us-east-1'
ANYWHERE = '0.0.0.0/0'
STATES = {'pending': 0, 'running': 16, 'stopping': 64, 'stopped': 80}
LONGEST_SILENCE = 120.0  # s, for which a call without an answer keeps its connection


@dataclass
class Times:
    """How long things take in this EC2, in seconds; may be changed at any time."""

    round_trip: float = 0.001  # between an instance and EC2: for each connection, TLS handshake and call
    latency: float = 0.15  # of a call: half of it before its effect, half after
    pending: float = 1.0  # from StartInstances to `running`
    boot: float = 2.0  # from StartInstances until the instance answers a ping
    job_delay: float = 0.5  # from there to its @reboot job
    stop: float = 2.0  # from StopInstances to `stopped`
    checks: float = 5.0  # from `running` until the status checks say `ok`
    impaired: float = 60.0  # from the loss of an instance until the status checks say so
    new_public_address: float = 1.0  # until who lost the Elastic IP has another address


@dataclass
class Call:
    """One call that reached EC2; `result` is `ok`, an error code, `no answer`, or empty while it is under way."""

    at: float  # monotonic
    instance: str  # 'primary' or 'secondary', or else the address that it came from
    action: str
    parameters: Dict[str, str]
    dry_run: bool
    result: str = ''
    seconds: float = 0.0

    def __str__(self) -> str:
        what = ' '.join(f'{name}={value}' for name, value in self.parameters.items())
        dry = ' (dry run)' if self.dry_run else ''
        return f'{self.instance}: {self.action}{dry} {what} -> {self.result or "..."}'


@dataclass
class Fault:
    """Something that goes wrong with some calls, until it is removed or used up."""

    kind: str
    action: str = '*'
    instance: Optional[str] = None
    times: float = float('inf')

    def hits(self, call: Call) -> bool:
        """Tell whether *call* is one of those, and count it; a rehearsal, which may come at any time, uses up none."""
        if (self.times < 1 or call.dry_run and self.times < float('inf') or self.instance not in (None, call.instance)
                or not fnmatch.fnmatchcase(call.action, self.action)):
            return False
        self.times -= 1
        return True

    def close(self) -> None:
        """End it; `contextlib.closing()` does that."""
        self.times = 0


class Route(MotoRoute):
    """A route of moto's that knows of its target's state.

    As moto finds the parts of an answer by the class's name, this one and the next have the same names as moto's.
    """

    @property
    def state(self) -> str:
        """EC2 calls a route whose target cannot take packets a blackhole; a `stopping` one still can."""
        return 'blackhole' if self.instance and self.instance.state == 'stopped' else 'active'


class NetworkInterface(MotoInterface):
    """An interface that tells whose its public address is: the account's if it was allocated, else Amazon's."""

    @property
    def association(self) -> Dict[str, Any]:
        found = super().association
        return found if not found or 'allocationId' in found else {**found, 'ipOwnerId': 'amazon'}


class Instance(MotoInstance):
    """An instance of moto's that takes its time."""

    life: 'Life'

    def start(self) -> InstanceState:
        return self.life.start()

    def stop(self) -> InstanceState:
        return self.life.stop()

    @property
    def instance_status(self) -> Dict[str, Any]:
        return self.life.checks()


class Life:
    """The states of one instance. All methods are called with the lock of EC2 held."""

    def __init__(self, ec2: 'Ec2', record: Any, machine: 'Machine') -> None:
        self.ec2, self.record, self.machine = ec2, record, machine
        self.force = False  # a parameter of the StopInstances call under way
        self.running_at = time.monotonic() - 3600
        self.automatic: Optional[str] = None  # its public address while it has no Elastic IP
        self.no_public_before = 0.0
        self._steps = 0

    @property
    def state(self) -> str:
        return str(self.record.state)

    def before(self) -> InstanceState:
        """Return the state as it is now, which a call's answer tells as the one before."""
        return InstanceState(self.state, STATES[self.state])

    def enter(self, state: str) -> InstanceState:
        """Change the state; whatever was due in the old one is off. Return the old one."""
        before = self.before()
        self.record._state = InstanceState(state, STATES[state])
        self._steps += 1
        self.ec2.note(f'{self.machine.name} {self.record.id} is {state}')
        if state == 'running':
            self.running_at = time.monotonic()
        if state == 'stopped':
            self.automatic = None
        self.ec2.sync()
        return before

    def later(self, delay: float, step: Callable[[], object]) -> None:
        """Do *step* after *delay* seconds, unless the state has changed by then."""
        steps = self._steps

        def run() -> None:
            with self.ec2.lock:
                if self._steps == steps:
                    step()

        self.ec2.later(delay, run)

    def _must_be(self, *states: str) -> None:
        if self.state not in states:
            raise EC2ClientError('IncorrectInstanceState', f"'{self.record.id}' is {self.state}.")

    def start(self) -> InstanceState:
        if self.state in ('pending', 'running'):
            return self.before()
        self._must_be('stopped')
        before = self.enter('pending')
        self.later(self.ec2.times.pending, self._run)
        return before

    def _run(self) -> None:
        self.no_public_before = 0.0
        self.enter('running')
        times = self.ec2.times

        def boot() -> None:
            self.machine.boot()
            self.later(times.job_delay, self.machine.run_boot_job)

        self.later(max(0.0, times.boot - times.pending), boot)

    def stop(self) -> InstanceState:
        force, self.force = self.force, False
        if self.state == 'stopped' or self.state == 'stopping' and not force:
            return self.before()
        self._must_be('running', 'stopping')
        before = self.enter('stopping')
        if force:
            self.machine.power_off()
        else:
            self.machine.shut_down()
            self.later(self.ec2.times.stop / 2, self.machine.power_off)
        self.later(self.ec2.times.stop, lambda: self.enter('stopped'))
        return before

    def checks(self) -> Dict[str, Any]:
        """Return the status checks as EC2 words them; they lag behind what they tell of."""
        now = time.monotonic()
        lost_at = self.machine.unreachable_at
        if self.state != 'running':
            return {'Status': 'not-applicable'}
        if lost_at is not None and now - max(lost_at, self.running_at) > self.ec2.times.impaired:
            status = 'impaired'
        elif now - self.running_at < self.ec2.times.checks:
            status = 'initializing'
        else:
            status = 'ok'
        detail = {'ok': 'passed', 'impaired': 'failed'}.get(status, status)
        return {'Status': status, 'Details': [{'Name': 'reachability', 'Status': detail}]}


class Ec2:
    """The API, its records, and the outside world that changes them without a call of the instances."""

    def __init__(self, network: Network, times: Times, machines: List['Machine'], tables: int,
                 note: Callable[[str, str], None]) -> None:
        """Create a VPC with the instances, route tables without a default route, and a free Elastic IP."""
        self.network, self.times = network, times
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.connections: List[str] = []  # that were opened: by whom
        self.log: List[Call] = []
        self.faults: List[Fault] = []
        self._note = note
        self._automatic = (f'198.51.100.{number}' for number in itertools.cycle(range(100, 250)))
        self.callers: Dict[str, str] = {}  # by public address: the name of the instance that calls from it
        self.backend: Any = ec2_backends[ACCOUNT][REGION]
        self.backend.reset()
        self._moto = Client(create_backend_app('ec2'))
        self.lives: Dict[str, Life] = {}
        self._build(machines, tables)
        self._server = Server(network.nodes['internet'].socket(socket.SOCK_STREAM, ENDPOINT, 443), self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name='EC2').start()

    def _build(self, machines: List['Machine'], tables: int) -> None:
        backend = self.backend
        vpc = backend.create_vpc('10.0.0.0/16')
        gateway = backend.create_internet_gateway()
        backend.attach_internet_gateway(gateway.id, vpc.id)
        subnet = backend.create_subnet(vpc.id, '10.0.0.0/24', availability_zone=f'{REGION}a')
        for machine in machines:
            status, _ = self._ask_moto({'Action': 'RunInstances', 'ImageId': 'ami-12345678', 'MinCount': '1',
                                        'MaxCount': '1', 'SubnetId': subnet.id,
                                        'PrivateIpAddress': INSTANCE_ADDRESSES[machine.name]})
            assert status == 200
            [record] = list(backend.reservations.values())[-1].instances
            record.__class__, record.nics[0].__class__ = Instance, NetworkInterface
            record.source_dest_check = False
            record.life = self.lives[machine.name] = Life(self, record, machine)
        self.tables: List[str] = []
        for table in range(tables):
            private = backend.create_subnet(vpc.id, f'10.0.{table + 1}.0/24', availability_zone=f'{REGION}a')
            record = backend.create_route_table(vpc.id)
            backend.associate_route_table(record.id, subnet_id=private.id)
            self.tables.append(record.id)
        backend.allocate_address('vpc', address=ELASTIC_IP)
        self.sync()

    # ---- effects

    def note(self, text: str) -> None:
        self._note('EC2', text)

    def later(self, delay: float, step: Callable[[], object]) -> None:
        """Do *step* in a thread of its own after *delay* seconds, unless the lab is closed by then."""
        def run() -> None:
            try:
                if not self.closing.is_set():
                    step()
            except Exception:
                if not self.closing.is_set():
                    raise

        timer = threading.Timer(delay, run)
        timer.daemon = True
        timer.start()

    def default_route(self, table: int) -> Any:
        """Return the record of a table's default route, or None."""
        record = self.backend.route_tables.get(self.tables[table])
        for route in record._routes.values() if record else ():
            if route.destination_cidr_block == ANYWHERE:
                return route
        return None

    def name(self, instance_id: Optional[str]) -> Optional[str]:
        """Return the name of the instance of that id; what is not of the pair keeps its id."""
        for name, life in self.lives.items():
            if life.record.id == instance_id:
                return name
        return instance_id or None

    def address_owner(self) -> Optional[str]:
        """Return the name of the instance whose traffic leaves with the Elastic IP, or None."""
        for address in self.backend.addresses:
            if address.public_ip == ELASTIC_IP:
                return self.name(address.instance_id)
        return None

    def route_target(self, table: int = 0) -> Optional[str]:
        """Return the name of the instance that a table's default route leads to, another target's id, or None."""
        route = self.default_route(table)
        if route is None:
            return None
        return self.name(route.instance_id) or route.nat_gateway_id or route.gateway_id or 'unknown'

    def sync(self) -> None:
        """Make the network do what the records say."""
        self._update()
        self.network.apply()

    def _update(self) -> None:
        with self.lock:
            for table in range(len(self.tables)):
                route = self.default_route(table)
                if route is not None:
                    route.__class__ = Route
            target = self.route_target()
            forwards = target in self.lives and not self.lives[target].record.source_dest_check
            self.network.target = target if forwards else None
            self._update_addresses()

    def _update_addresses(self) -> None:
        now = time.monotonic()
        owner = self.address_owner()
        for name, life in self.lives.items():
            if name == owner:
                life.automatic, life.no_public_before = None, 0.0
            elif life.state == 'running' and life.automatic is None:
                if self.network.links[name].public == ELASTIC_IP:  # it has just lost that
                    life.no_public_before = now + self.times.new_public_address
                    self.later(self.times.new_public_address, self.sync)
                if life.no_public_before <= now:
                    life.automatic = next(self._automatic)
            public = ELASTIC_IP if name == owner else life.automatic
            if public != self.network.links[name].public:
                self.note(f'{name} has the public address {public}')
            life.record.nics[0].public_ip = self.network.links[name].public = public
        # Older addresses stay, as a call sent from one may just be arriving; only the Elastic IP changes its user.
        self.callers.update({link.public: name for name, link in self.network.links.items() if link.public})

    # ---- answering

    def answer(self, caller: str, headers: Dict[str, str], body: bytes) -> Optional[Tuple[int, bytes]]:
        """Answer one call: HTTP status and body, or None for no answer at all."""
        parameters = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        action = parameters.pop('Action', '?')
        parameters.pop('Version', None)
        dry_run = parameters.pop('DryRun', 'false') == 'true'
        now = time.monotonic()
        call = Call(now, caller, action, parameters, dry_run)
        self.log.append(call)
        with self.lock:
            kinds = {fault.kind for fault in self.faults if fault.hits(call)}
        latency = self.times.round_trip + self.times.latency
        self.closing.wait(latency / 2)
        result = (0, b'') if 'silent' in kinds else self._perform(call, headers)
        if kinds:
            call.result, call.seconds = 'no answer', time.monotonic() - now
            self._note('call', str(call))
            self.closing.wait(LONGEST_SILENCE)
            return None
        self.closing.wait(latency / 2)
        call.seconds = time.monotonic() - now
        self._note('call', f'{call} ({call.seconds:.2f} s)')
        return result

    def _perform(self, call: Call, headers: Dict[str, str]) -> Tuple[int, bytes]:
        with self.lock:
            refusal = self._refuse(call)
            if refusal:
                call.result = refusal[0]
                return error(*refusal)
            if call.action == 'StopInstances':
                for life in self.lives.values():
                    life.force = call.parameters.get('Force') == 'true'
            status, text = self._ask_moto({'Action': call.action, **call.parameters},
                                          headers.get('Authorization', ''))
            call.result = 'ok' if status == 200 else error_code(text)
            self._update()
        self.network.apply()  # without the lock: calls that come together take effect together
        return status, text

    def _ask_moto(self, form: Dict[str, str], authorization: str = '') -> Tuple[int, bytes]:
        response = self._moto.post('/', data={'Version': '2016-11-15', **form},
                                   base_url=f'http://ec2.{REGION}.amazonaws.com/',
                                   headers={'Authorization': authorization} if authorization else {})
        return response.status_code, response.get_data()

    def _refuse(self, call: Call) -> Optional[Tuple[str, str]]:
        """Return the error that EC2 would answer with where moto would not."""
        if call.dry_run:
            return 'DryRunOperation', 'Request would have succeeded, but DryRun flag is set.'
        if call.action == 'AssociateAddress':
            name = self.name(call.parameters.get('InstanceId'))
            if name in self.lives and self.lives[name].state not in ('running', 'stopped', 'stopping'):
                return 'InvalidInstanceID', f"The instance is not in a valid state for this operation: {name}"
        return None

    # ---- what goes wrong

    def inject(self, kind: str, action: str = '*', instance: Optional[str] = None,
               times: float = float('inf')) -> Fault:
        """Let calls go wrong: those of *action* (a pattern) by *instance* (a name), *times* times.

        *kind* is 'silent' (no effect, no answer) or 'lost' (the effect, but no answer).
        """
        fault = Fault(kind, action, instance, times)
        with self.lock:
            self.faults.append(fault)
        self._note('lab', f'EC2 from now on: {kind} for {action} of {instance or "everybody"}')
        return fault

    def calls(self, action: str = '*', instance: Optional[str] = None, *, since: float = 0.0,
              dry_run: Optional[bool] = False) -> List[Call]:
        """Return the calls so far, in order; with *dry_run* None, those with and without it."""
        return [call for call in list(self.log)
                if call.at >= since and fnmatch.fnmatchcase(call.action, action)
                and instance in (None, call.instance) and dry_run in (None, call.dry_run)]

    # ---- the outside world: not in the log of calls

    @contextlib.contextmanager
    def _by_hand(self, what: str) -> Iterator[Any]:
        with self.lock:
            self._note('operator', what)
            yield self.backend
            self.sync()

    def set_route(self, target: Optional[str], table: int = 0) -> None:
        """Lead a table's default route to an instance, by name, or delete it (None)."""
        with self._by_hand(f'default route of {self.tables[table]}: {target}') as backend:
            route = self.default_route(table)
            if route is not None:
                backend.delete_route(self.tables[table], ANYWHERE)
            if target is not None:
                backend.create_route(self.tables[table], ANYWHERE, instance_id=self.lives[target].record.id)

    def set_address(self, owner: str) -> None:
        """Associate the Elastic IP with an instance, by name."""
        with self._by_hand(f'{ELASTIC_IP} to {owner}') as backend:
            backend.associate_address(instance=self.lives[owner].record, address=ELASTIC_IP, reassociate=True)

    def tag(self, name: str, key: str, value: str = '') -> None:
        """Set a tag on an instance, by name."""
        with self._by_hand(f'tags {name} {key}') as backend:
            backend.create_tags([self.lives[name].record.id], {key: value})

    def untag(self, name: str, key: str) -> None:
        """Remove a tag from an instance."""
        with self._by_hand(f'removes the tag {key} of {name}') as backend:
            backend.delete_tags([self.lives[name].record.id], {key: None})

    def start(self, name: str) -> None:
        """Start an instance, as an operator does."""
        with self._by_hand(f'starts {name}'):
            self.lives[name].start()

    def stop(self, name: str) -> None:
        """Stop an instance, as an operator does."""
        with self._by_hand(f'stops {name}'):
            self.lives[name].stop()

    def close(self) -> None:
        """End the server and everything that is still due."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@functools.cache
def authority() -> trustme.CA:
    """Return the certificate authority that the instances know."""
    return trustme.CA()


def error(code: str, message: str) -> Tuple[int, bytes]:
    """Return an error as EC2 answers it."""
    return 400, (f'<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{code}</Code><Message>{message}'
                 '</Message></Error></Errors><RequestID>lab</RequestID></Response>').encode()


def error_code(answer: bytes) -> str:
    """Return the error code of an answer of EC2."""
    return answer.decode().partition('<Code>')[2].partition('</Code>')[0] or 'error'


class Handler(http.server.BaseHTTPRequestHandler):
    """HTTP with connections that are kept, as EC2 keeps them (moto's own server closes each)."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    server: 'Server'

    def setup(self) -> None:
        super().setup()
        self.caller = self.server.ec2.callers.get(self.client_address[0], self.client_address[0])
        self.server.ec2.connections.append(self.caller)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        answer = self.server.ec2.answer(self.caller, dict(self.headers), body)
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer[0])
        self.send_header('Content-Type', 'text/xml;charset=UTF-8')
        self.send_header('Content-Length', str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: calls have a log of their own."""


class Server(http.server.ThreadingHTTPServer):
    """A server on a socket that is open already; round trips are waited for here, as few kernels can delay packets."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, ec2: Ec2) -> None:
        super().__init__(listening.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.ec2, self.tls = ec2, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority().issue_cert(ENDPOINT).configure_cert(self.tls)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in a thread of its own."""
        with contextlib.ExitStack() as connection:
            connection.enter_context(contextlib.suppress(OSError))  # whoever asked is gone
            time.sleep(2 * self.ec2.times.round_trip)  # connection and handshake
            request = connection.enter_context(self.tls.wrap_socket(request, server_side=True))
            super().finish_request(request, client_address)
