"""What the monitor does beside the rows: driven through its doors, with an EC2 and pings that follow a script."""
from __future__ import annotations

import email.utils
import logging
import time
import types
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from nat_monitor import CALL_DEADLINE, CONNECTIONS, Monitor, NoAnswer, NoNeighbour, OwnFault, Probed, Settings

PRIMARY, SECONDARY, OUTSIDE = 'i-0123456789abcdef0', 'i-0fedcba9876543210', 'i-00000000000000000'
TABLE, SECOND, ADDRESS = 'rtb-0123456789abcdef0', 'rtb-0123456789abcdef1', '198.51.100.7'
TARGET, PEERS_ADDRESS = '192.0.2.1', '10.0.0.1'
START = 1000.0
CLAIMS = ('replace_route', 'create_route', 'associate_address')


class Called(NamedTuple):
    at: float
    name: str
    how: Dict[str, Any]


class Ending(BaseException):
    """The end of a test's time."""


def refusal(code: str) -> ClientError:
    return ClientError({'Error': {'Code': code, 'Message': 'said EC2'}}, 'Call')


LOST = ReadTimeoutError(endpoint_url='https://ec2.eu-west-1.amazonaws.com')


class Cloud:
    """EC2 and its client: a call is done when it is sent, and answered `latency` seconds later."""

    def __init__(self, scene: Scene, holder: str) -> None:
        self.scene = scene
        self.routes: Dict[str, Optional[str]] = dict.fromkeys(scene.settings.route_table_ids, holder)
        self.owner: Optional[str] = holder
        self.allocated = True
        self.state = {PRIMARY: 'running', SECONDARY: 'running'}
        self.checks = {PRIMARY: 'ok', SECONDARY: 'ok'}
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
            if isinstance(error, ClientError) or error and how.get('DryRun'):
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
            {'InstanceId': i, 'PrivateIpAddress': PEERS_ADDRESS, 'Tags': self.tags.get(i, []),
             'SourceDestCheck': i in self.checked}]}
            for i in self.state if i != self.hidden]}

    def on_describe_route_tables(self, Filters: Any) -> Any:
        return {'RouteTables': [{'RouteTableId': table, 'Routes': [
            {'DestinationCidrBlock': '0.0.0.0/0', 'InstanceId': i, 'State': 'active'}] if i else []}
            for table, i in self.routes.items()]}

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
        self.lasts: List[float] = []            # what calls of the present go say that they take
        self.pings: List[float] = []
        self.outcome: Callable[[float], Any] = lambda now: True
        self.probes: List[Tuple[float, bool]] = []  # when, through the peer or not
        self.probed: Callable[[float, bool], Any] = lambda now, through: True
        self.metadata: Dict[str, Any] = {'instance-id': self.own_id, 'placement/region': 'eu-west-1'}
        self.fault, self.until = '', float('inf')
        self.jitter: List[Tuple[float, float]] = []
        self.connections: List[Any] = []        # what to raise instead of a client
        self.made = 0
        log = logging.Logger('test', logging.INFO)
        log.addHandler(self)
        self.monitor = Monitor(
            self.settings, clock=self, ping=self.ping, metadata=types.SimpleNamespace(get=self.tell), log=log,
            connect=self.connect, run_together=self.run_together, nat_fault=lambda: self.fault, probe=self.probe,
            chance=self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))

    def said(self, words: str) -> int:
        return sum(words in message for _, message in self.lines)

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

    def ping(self, address: str) -> bool:
        assert address == PEERS_ADDRESS
        self.pings.append(self.now)
        outcome = self.outcome(self.now)
        if isinstance(outcome, Exception):
            raise outcome
        self.now += 0.001 if outcome is True else outcome or self.settings.ping_timeout
        return outcome is True

    def probe(self, target: str, through: Optional[str] = None) -> Probed:
        assert target == TARGET and through in (None, PEERS_ADDRESS)
        self.probes.append((self.now, bool(through)))
        outcome = self.probed(self.now, bool(through))
        if isinstance(outcome, Exception):
            raise outcome
        self.lasts.append(0.01 if outcome else self.settings.ping_timeout)
        return Probed(0.01 if outcome else None)

    def run_together(self, calls: Dict[str, Callable[[], Any]], timeout: float,
                     meanwhile: Optional[Callable[[], float]] = None, at_once: int = CONNECTIONS) -> Dict[str, Any]:
        """Make the calls, two rounds of them where few may be made at once."""
        results: Dict[str, Any] = {}
        self.lasts.clear()
        for name, call in calls.items():
            try:
                results[name] = call()
            except Exception as error:
                results[name] = error
        takes = max(self.lasts, default=self.latency * min(2, -(-len(calls) // at_once)))
        until = self.now + min(takes, timeout)
        while True:
            pause = meanwhile() if meanwhile else float('inf')
            if self.now >= until:
                break
            self.now = min(until, self.now + pause)
        return dict.fromkeys(calls, NoAnswer('no answer in time')) if takes > timeout else results

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
    return scene


def test_while_all_is_well_it_pings_asks_now_and_then_and_says_who_holds() -> None:
    scene = Scene().run(400.0)

    assert {round(later - earlier, 3) for earlier, later in zip(scene.pings, scene.pings[1:])} == {0.251}
    assert [round(b - a) for a, b in zip(scene.questions(), scene.questions()[1:])] == [120, 120, 120]
    assert [message for _, message in scene.lines] == [f'{PRIMARY} holds tables and address', f'{PRIMARY} answers']
    assert not scene.claims() and not scene.steps()


# Silence and judgement

@pytest.mark.parametrize('latency', [0.1, 1.4, 4.0])
def test_the_ping_that_decides_is_sent_after_ec2_has_answered(latency: float) -> None:
    scene = at_rest()
    scene.latency, begins = latency, scene.silence()

    scene.run(15.0)

    claimed = scene.claims()[0]
    decisive = max(sent for sent in scene.pings if sent < claimed)
    answered = max(asked + latency for asked in scene.questions() if asked + latency <= claimed)
    assert decisive >= answered - 1e-6
    assert claimed - begins < 0.3 + 2.0 + max(1.0, latency) + 0.1
    assert scene.said(f'{PRIMARY} missed 3 pings in a row') == 1


def test_a_start_pings_before_it_judges_what_ec2_tells_at_last() -> None:
    """Until then the peer's address was not known; the next look would be two minutes later."""
    scene = Scene(primary=True, holder=SECONDARY)
    scene.monitor.chance = types.SimpleNamespace(uniform=lambda low, high: 1.5)  # no ping is due when EC2 answers
    for question in ('status', 's'):
        scene.cloud.errors[f'describe_instance{"_" * (question == "status")}{question}'] = [LOST] * 3
    scene.run(60.0)

    assert set(scene.claims()) and scene.said('is the primary and has started: claiming') == 1


@pytest.mark.parametrize('error', [LOST, NoAnswer('a page of a proxy')])
def test_who_is_cut_off_from_ec2_decides_nothing(error: Exception) -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['*'] = error

    scene.run(100.0)

    assert not scene.claims() and not scene.steps()
    assert scene.said('EC2 does not answer this monitor') == 2
    assert (1.0, 3.0) in scene.jitter
    assert max(b - a for a, b in zip(scene.questions(), scene.questions()[1:])) < 3.5


@pytest.mark.parametrize('primary, misses', [(False, 3), (True, 6)])
def test_the_primary_waits_for_twice_as_many_misses(primary: bool, misses: int) -> None:
    scene = at_rest(primary, SECONDARY if primary else PRIMARY, fail_back=False)
    begins = scene.silence()

    scene.run(20.0)

    assert misses - 0.1 < scene.claims()[0] - begins < misses + 0.4
    assert scene.said(f'missed {misses} pings in a row') == 1


@pytest.mark.parametrize('num_pings, asked', [(3, [1]), (4, [1]), (12, [1, 7, 11])])
def test_ec2_is_asked_at_the_first_miss_and_before_the_last_but_not_twice_within_seconds(
        num_pings: int, asked: List[int]) -> None:
    scene = at_rest(num_pings=num_pings)
    begins = scene.silence()

    scene.run(num_pings + 0.3)

    assert [round(at - begins) for at in scene.questions()] == asked


def test_a_question_just_before_the_silence_puts_off_the_next_one_but_not_beyond_the_last_ping() -> None:
    scene = at_rest()
    scene.monitor.look_now()
    scene.run(0.2)
    begins = scene.silence()

    scene.run(3.5)

    assert [round(at - begins) for at in scene.questions()] == [0, 2]


def test_ec2_is_asked_once_in_three_seconds_though_half_of_all_pings_are_lost() -> None:
    scene = at_rest()
    lost = {'next': False}

    def every_other(now: float) -> bool:
        lost['next'] = not lost['next']
        return lost['next']
    scene.outcome = every_other

    scene.run(60.0)

    assert 15 <= len(scene.questions()) <= 20
    assert not scene.claims()


def test_an_observation_from_before_the_silence_judges_nobody() -> None:
    """One that is in flight when the path is cut tells of before."""
    scene = at_rest()
    scene.silence(0.5)
    scene.cloud.errors['describe_instance_status'] = [None] + [LOST] * 9
    scene.latency = 1.0
    scene.monitor.look_now()

    scene.run(12.0)

    assert not scene.claims()


def test_an_observation_serves_once() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['replace_route'] = refusal('UnauthorizedOperation')

    scene.run(60.0)

    claims, questions = scene.times('replace_route'), scene.questions()
    assert len(claims) > 5
    assert all(any(before <= asked < after for asked in questions) for before, after in zip(claims, claims[1:]))


def test_an_observation_that_is_too_old_judges_nobody() -> None:
    scene = at_rest(num_pings=10)
    scene.silence()
    scene.cloud.errors['describe_instance_status'] = [None] + [LOST] * 4

    scene.run(13.0)
    assert not scene.claims()

    scene.run(20.0)
    assert scene.claims()


@pytest.mark.parametrize('between', [OwnFault('no buffer space'), 60.0])
def test_a_ping_that_could_not_leave_or_a_suspension_starts_the_run_of_misses_anew(between: Any) -> None:
    scene = at_rest()
    outcomes = [False, False, between, False, False]
    scene.outcome = lambda now: outcomes.pop(0) if outcomes else True

    scene.run(70.0)

    assert not scene.said('missed') and not scene.claims()
    assert scene.said('could not leave this host (no buffer space): trying again') == isinstance(between, OwnFault)


def test_a_ping_that_could_not_leave_is_tried_again_a_second_later() -> None:
    scene = at_rest()
    scene.outcome = lambda now: OwnFault('no route')

    scene.run(125.0)

    assert 100 < len(scene.pings) < 127
    assert scene.said('no route') == 3  # once a minute
    scene.outcome = lambda now: True
    scene.run(2.0)
    assert scene.said('over after 12') == 1


@pytest.mark.parametrize('takes, counts', [(2.9, True), (3.1, False)])
def test_a_ping_that_took_a_second_longer_than_it_can_was_suspended(takes: float, counts: bool) -> None:
    scene = at_rest(ping_timeout=2.0)
    outcomes = [False, False, takes]
    scene.outcome = lambda now: outcomes.pop(0) if outcomes else True

    scene.run(20.0)

    assert scene.said('missed 3 pings') == counts


@pytest.mark.parametrize('jump, counts', [(6.9, True), (7.1, False), (55.0, False)])
def test_a_suspension_between_two_pings_starts_the_run_anew_too(jump: float, counts: bool) -> None:
    """A late call does not: the two are told apart by the time that a call may take."""
    scene = at_rest(num_pings=6)
    scene.silence(lasts=jump + 7.0)
    scene.run(3.5)

    scene.now += jump
    scene.run(10.0)

    assert scene.said('missed 6 pings') == counts


def test_the_end_of_a_silence_is_told_and_that_the_peer_is_back() -> None:
    scene = at_rest(primary=True)
    scene.silence(lasts=2.5)

    scene.run(20.0)

    assert scene.said(f'{SECONDARY} answers again after 3 missed pings') == 1
    scene.silence(lasts=1.5)
    scene.run(20.0)
    assert scene.said('answers again') == 1
    assert all(message for _, message in scene.lines)


# Claims

def test_a_claim_moves_tables_and_address_at_the_same_moment() -> None:
    scene = at_rest(tables=(TABLE, SECOND))
    scene.silence()

    scene.run(10.0)

    assert len(scene.claims()) == 3 and len(set(scene.claims())) == 1
    assert (scene.cloud.routes, scene.cloud.owner) == (dict.fromkeys((TABLE, SECOND), SECONDARY), SECONDARY)
    assert [scene.said(f'{part} is at {SECONDARY} now') for part in (TABLE, SECOND, ADDRESS)] == [1, 1, 1]
    claimed = scene.claims()[0]
    assert any(claimed < at < scene.questions(since=claimed)[0] for at in scene.cloud.closed)
    assert scene.said(f'taking over {TABLE} and {SECOND} and {ADDRESS}') == 1
    assert not scene.said('could not be moved')


def test_the_address_waits_for_a_table_that_was_refused() -> None:
    scene = at_rest(ping_timeout=0.1)
    scene.silence()
    scene.cloud.errors['replace_route'] = [refusal('RequestLimitExceeded')] * 4
    scene.cloud.errors['associate_address'] = [refusal('RequestLimitExceeded')]

    scene.run(60.0)

    tables, addresses = scene.times('replace_route'), scene.times('associate_address')
    assert addresses[0] == tables[0]
    assert len(tables) == 5 and 0.0 < addresses[1] - tables[4] < 0.6
    assert scene.cloud.owner == SECONDARY
    assert scene.said(f'{TABLE} could not be moved to {SECONDARY} (RequestLimitExceeded: said EC2): trying again') == 1


def test_the_address_follows_a_table_that_was_refused_before_without_another_question() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['replace_route'] = scene.cloud.errors['associate_address'] = [
        refusal('RequestLimitExceeded')] * 2

    scene.run(20.0)

    moved, followed = scene.times('replace_route')[-1], scene.times('associate_address')[-1]
    assert moved < followed < moved + 1.5
    assert not [at for at in scene.questions() if moved <= at <= followed]
    assert scene.cloud.owner == SECONDARY


def test_a_move_of_the_address_without_an_answer_is_not_repeated_while_ec2_throttles() -> None:
    scene = at_rest()
    begins = scene.silence()
    scene.cloud.errors['associate_address'] = LOST
    scene.cloud.errors['describe_addresses'] = refusal('RequestLimitExceeded')

    scene.run(60.0)

    assert scene.cloud.owner == SECONDARY and len(scene.times('associate_address')) == 1
    scene.cloud.errors['describe_addresses'] = LOST
    scene.run(70.0)
    assert len(scene.times('associate_address', since=begins + 60.0)) > 1


def test_the_address_does_not_come_alone_where_the_peer_keeps_the_route() -> None:
    scene = at_rest(primary=True, holder=SECONDARY, fail_back=False)
    scene.cloud.routes[TABLE] = OUTSIDE
    scene.run(130.0)
    assert scene.said(f'{TABLE} is at something outside the pair') == 1
    scene.silence()

    scene.run(20.0)

    assert scene.cloud.owner == PRIMARY and scene.cloud.routes[TABLE] == OUTSIDE


def test_a_claim_without_an_answer_is_asked_about_at_once() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['associate_address'] = [LOST]

    scene.run(10.0)

    claimed = scene.claims()[0]
    assert scene.questions(since=claimed)[0] - claimed < 1.1
    assert scene.said('asking EC2 where it is') == 1
    assert scene.cloud.owner == SECONDARY


def test_a_claim_that_was_answered_is_looked_after_three_seconds_later() -> None:
    scene = at_rest()
    scene.silence()

    scene.run(10.0)

    claimed = scene.claims()[0]
    assert 2.5 < scene.questions(since=claimed)[0] - claimed < 4.1


@pytest.mark.parametrize('call, deadline', [('associate_address', 1.5), ('replace_route', CALL_DEADLINE)])
def test_the_answer_to_a_move_of_the_address_is_not_awaited_for_long(call: str, deadline: float) -> None:
    scene = at_rest(ping_timeout=0.1, elastic_ip=ADDRESS if deadline == 1.5 else None)
    scene.silence()
    scene.cloud.slow[call] = 9.0

    scene.run(10.0)

    claimed = scene.claims()[0]
    assert scene.questions(since=claimed)[0] - claimed == pytest.approx(deadline, abs=0.2)
    assert bool(scene.said('EC2 does not answer this monitor')) is (deadline == CALL_DEADLINE)


def refused_for_long(code: str) -> List[float]:
    """Return the pauses between the claims of a table that EC2 refuses with this code."""
    scene = at_rest(elastic_ip=None, ping_timeout=0.4)
    scene.silence()
    scene.cloud.state[PRIMARY] = 'pending'
    scene.cloud.errors['replace_route'] = refusal(code)
    scene.run(2500.0)
    assert (0.0, 5.0) in scene.jitter and not scene.times('describe_addresses')
    return [later - earlier for earlier, later in zip(scene.claims(), scene.claims()[1:])]


def test_claims_that_are_refused_slow_down() -> None:
    pauses = refused_for_long('UnauthorizedOperation')

    assert pauses[0] < 1.3
    assert all(2.0 < pause < 8.0 for pause in pauses[1:19])
    assert all(60.0 <= pause < 67.0 for pause in pauses[20:30])
    assert all(300.0 <= pause < 307.0 for pause in pauses[30:]) and len(pauses) > 32


def test_claims_do_not_slow_down_where_ec2_is_only_busy() -> None:
    assert max(refused_for_long('RequestLimitExceeded')) < 9.0


def test_an_accepted_claim_ends_the_count_of_refusals() -> None:
    scene = at_rest(ping_timeout=0.1)
    scene.silence()
    scene.cloud.errors['replace_route'] = [refusal('RequestLimitExceeded')] * 3
    scene.run(40.0)
    scene.cloud.routes[TABLE], since = None, scene.now
    scene.cloud.errors['replace_route'] = [refusal('RequestLimitExceeded')] * 2

    scene.run(30.0)

    first, second = scene.times('replace_route', since=since)[:2]
    assert second - first < 0.6


# Restart

def test_a_peer_that_stays_silent_is_stopped_started_and_awaited() -> None:
    scene = at_rest()
    begins = scene.silence()
    scene.run(50.0)
    assert not scene.steps() and not scene.monitor.left_stopped
    assert scene.said(f'{PRIMARY} is to be stopped if it stays silent') == 1  # a reason is told when it is news

    scene.run(25.0)
    assert scene.steps() == ['stop_instances']
    assert scene.times('stop_instances')[0] - begins >= 60.0
    assert scene.monitor.left_stopped
    assert scene.said(f'{PRIMARY} is being stopped: starting it once it is stopped') == 1

    scene.run(65.0)
    assert scene.steps() == ['stop_instances', 'stop_instances by force']
    stops = [each.how for each in scene.cloud.calls if each.name == 'stop_instances']
    assert [each.get('SkipOsShutdown') for each in stops] == [None, True]
    assert scene.said(f'{PRIMARY} is being forced: starting it once it is stopped') == 1

    scene.cloud.state[PRIMARY] = 'stopped'
    scene.run(7.0)
    assert scene.steps()[2:] == ['start_instances']
    assert scene.said(f'{PRIMARY} is being started: waiting for its answer') == 1
    assert scene.monitor.left_stopped

    scene.outcome = lambda now: True
    scene.run(3.0)
    assert not scene.monitor.left_stopped
    assert scene.lines[-1] == ('INFO', f'{PRIMARY} answers')


def test_a_type_of_instance_without_an_option_is_stopped_without_it_from_then_on() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.checks[PRIMARY] = 'impaired'
    scene.cloud.errors['stop_instances'] = [refusal('OperationNotPermitted')]

    scene.run(140.0)

    assert [each.how for each in scene.cloud.calls if each.name == 'stop_instances'] == [
        {'InstanceIds': [PRIMARY], 'Force': False, 'SkipOsShutdown': True},
        {'InstanceIds': [PRIMARY], 'Force': False}, {'InstanceIds': [PRIMARY], 'Force': True}]
    assert not scene.said('could not be')


def test_a_step_that_is_refused_is_asked_for_again_later_and_later() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['stop_instances'] = refusal('UnauthorizedOperation')

    scene.run(300.0)

    asked = scene.times('stop_instances')
    assert [round((later - earlier) / 60.0) for earlier, later in zip(asked, asked[1:])] == [1, 2]
    assert scene.said(f'{PRIMARY} could not be stopped: UnauthorizedOperation') >= 1
    assert not scene.said('is being stopped')
    scene.cloud.state[PRIMARY] = 'stopping'  # by somebody
    scene.run(10.0)
    assert not scene.monitor.left_stopped


def test_a_step_for_which_ec2_is_too_busy_is_asked_for_again_after_one_to_two_minutes() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.state[PRIMARY] = 'stopped'
    scene.cloud.errors['start_instances'] = refusal('RequestLimitExceeded')

    scene.run(400.0)

    asked = scene.times('start_instances')
    assert (60.0, 120.0) in scene.jitter and len(asked) == 5
    assert all(90.0 <= later - earlier < 98.0 for earlier, later in zip(asked, asked[1:]))


def test_a_step_without_an_answer_may_have_been_taken() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['stop_instances'] = [LOST]

    scene.run(75.0)

    assert scene.monitor.left_stopped
    assert len(scene.steps()) == 1
    assert any(0.0 <= at - scene.times('stop_instances')[0] < 1.2 for at in scene.cloud.closed)


def test_only_a_peer_that_this_monitor_has_stopped_is_one_that_it_left_stopped() -> None:
    assert not Scene().monitor.left_stopped
    scene = at_rest()
    scene.silence()
    scene.cloud.state[PRIMARY] = 'stopped'

    scene.run(15.0)

    assert scene.steps() == ['start_instances'] and not scene.monitor.left_stopped


# Observing

def test_sighup_asks_ec2_at_once() -> None:
    scene = at_rest()

    scene.monitor.look_now()
    scene.run(0.5)

    assert len(scene.questions()) == 1


def test_a_question_that_ec2_does_not_answer_is_asked_again_after_a_while() -> None:
    scene = at_rest()
    scene.cloud.errors['*'] = LOST
    scene.monitor.look_now()

    scene.run(46.0)

    assert [round(b - a) for a, b in zip(scene.questions(), scene.questions()[1:])] == [15, 15, 15]
    assert scene.said('EC2 does not answer this monitor') == 1
    scene.cloud.errors.clear()
    scene.run(15.0)
    assert scene.said('over after ') == 1


def test_a_miss_while_ec2_is_asked_lets_it_be_asked_again_soon() -> None:
    scene = at_rest(num_pings=10)
    scene.latency = 4.0
    scene.monitor.look_now()
    scene.silence(0.3)

    scene.run(8.0)

    assert 4.0 <= scene.questions()[1] - scene.questions()[0] < 6.5


def test_an_error_of_ec2_about_the_states_is_an_answer() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors['describe_instance_status'] = refusal('RequestLimitExceeded')

    scene.run(10.0)

    assert scene.claims()
    assert scene.said(f'{PRIMARY} is silent, and EC2 answered RequestLimitExceeded: said EC2: taking over') == 1


@pytest.mark.parametrize('call, pauses', [('describe_instance_status', (5.0, 15.0)),
                                          ('describe_route_tables', (5.0, 120.0))])
def test_who_has_nothing_to_claim_asks_a_throttling_ec2_later(call: str, pauses: Tuple[float, float]) -> None:
    scene = at_rest()
    scene.silence()
    scene.run(10.0)
    assert scene.cloud.owner == SECONDARY
    since = scene.now
    scene.cloud.errors[call] = refusal('RequestLimitExceeded')

    scene.run(300.0)

    asked = scene.questions(since=since)
    assert pauses in scene.jitter and not scene.steps()
    assert all(sum(pauses) / 2 <= later - earlier < sum(pauses) / 2 + 4.0
               for earlier, later in zip(asked[1:], asked[2:]))


def test_claims_do_not_wait_for_an_ec2_that_throttles_the_questions() -> None:
    scene = at_rest()
    scene.silence()
    scene.cloud.errors.update(dict.fromkeys(
        ('describe_instance_status', 'describe_route_tables', 'describe_addresses', 'replace_route'),
        refusal('RequestLimitExceeded')))

    scene.run(100.0)

    claims = scene.times('replace_route')
    assert len(claims) > 10 and max(b - a for a, b in zip(claims, claims[1:])) < 9.0


def test_nobody_is_pinged_before_ec2_has_told_its_address() -> None:
    scene = Scene()
    scene.cloud.errors['*'] = LOST

    scene.run(60.0)

    assert scene.pings == [] and not scene.said('missed')


def test_a_clock_that_is_wrong_is_told() -> None:
    scene, date = at_rest(), email.utils.formatdate(time.time() + 3600.0)
    answer: Any = {'Error': {'Code': 'RequestExpired'}, 'ResponseMetadata': {'HTTPHeaders': {'date': date}}}
    scene.cloud.errors['describe_instance_status'] = [ClientError(answer, 'Call')]

    scene.run(250.0)

    assert [scene.said(f'{words}the clock of this host is off by ') for words in ('', 'over after 120 s: ')] == [2, 1]


def test_each_question_has_a_connection_of_its_own() -> None:
    scene = at_rest()
    scene.cloud.closed.clear()

    scene.run(250.0)

    assert scene.cloud.closed == scene.questions() and len(scene.questions()) == 2


def test_a_client_without_credentials_is_made_anew_and_one_that_cannot_be_made_is_told() -> None:
    scene = at_rest()
    scene.cloud.errors['describe_instance_status'] = [refusal('AuthFailure')]
    scene.connections = [OSError('no memory')]

    scene.run(250.0)

    assert scene.made == 3
    assert scene.said('no EC2 client could be made (client: OSError: no memory): trying again') == 1
    assert scene.said('EC2 does not tell states: AuthFailure: said EC2: asking again') == 1


def test_what_ec2_does_not_know_is_told_and_looked_for_soon() -> None:
    scene = at_rest()
    scene.cloud.allocated = False
    del scene.cloud.state[PRIMARY]
    scene.monitor.look_now()

    scene.run(40.0)

    assert scene.said(f'EC2 does not know {ADDRESS} and {PRIMARY}: looking for it again') == 1
    assert scene.said(f'{PRIMARY} missed 3 pings in a row') == 1
    assert scene.cloud.routes[TABLE] == SECONDARY


def test_a_peer_that_one_answer_leaves_out_is_pinged_as_before() -> None:
    scene = at_rest()
    scene.cloud.hidden = PRIMARY
    scene.monitor.look_now()

    scene.run(300.0)

    assert scene.said('EC2 does not know') == scene.said('missed') == 0


def test_an_absent_address_is_looked_for_every_fifteen_seconds() -> None:
    scene = at_rest()
    scene.cloud.allocated = False
    scene.monitor.look_now()

    scene.run(61.0)

    assert len(scene.questions()) == 5


NO_CHECK = 'aws ec2 modify-instance-attribute --instance-id {} --no-source-dest-check'


@pytest.mark.parametrize('primary, own, peer', [(True, PRIMARY, SECONDARY), (False, SECONDARY, PRIMARY)])
def test_who_has_its_source_check_on_claims_nothing_and_stops_nobody_until_it_is_off(
        primary: bool, own: str, peer: str) -> None:
    scene = at_rest(primary, peer, fail_back=False)
    scene.cloud.checked.add(own)
    scene.silence()

    scene.run(1000.0)

    assert not scene.claims() and not scene.steps()
    assert scene.said(f'{own} cannot NAT (') and scene.said(NO_CHECK.format(own))

    scene.cloud.checked.clear()
    scene.run(20.0)
    assert scene.claims()
    assert scene.said('over after') and scene.cloud.owner == own


@pytest.mark.parametrize('primary, own', [(True, PRIMARY), (False, SECONDARY)])
def test_who_holds_with_its_source_check_on_stops_nobody_whose_checks_pass(primary: bool, own: str) -> None:
    scene = at_rest(primary, own)
    scene.cloud.checked.add(own)
    scene.silence()

    scene.run(1000.0)

    assert not scene.steps()


def test_who_has_its_source_check_on_as_it_starts_owes_itself_everything_until_it_is_off() -> None:
    scene = Scene(True, SECONDARY)
    scene.cloud.checked.add(PRIMARY)
    scene.run(300.0)
    assert not scene.claims()

    scene.cloud.checked.clear()
    scene.run(130.0)
    assert scene.cloud.owner == PRIMARY and scene.cloud.routes == {TABLE: PRIMARY}


def test_a_fault_of_the_host_is_told_rather_than_its_source_check() -> None:
    scene = at_rest()
    scene.cloud.checked.add(SECONDARY)
    scene.fault = 'net.ipv4.ip_forward is 0'

    scene.run(130.0)

    assert scene.said('cannot NAT (net.ipv4.ip_forward is 0)') and not scene.said('--no-source-dest-check')


def test_a_peer_that_holds_with_its_source_check_on_is_relieved_at_the_next_look_each_time() -> None:
    scene = at_rest()
    for _ in range(3):
        scene.cloud.checked, since = {PRIMARY}, scene.now
        scene.run(130.0)
        assert scene.times('replace_route', since=since) and scene.times('associate_address', since=since)
        scene.cloud.checked = set()
        scene.run(130.0)
        scene.cloud.routes, scene.cloud.owner = {TABLE: PRIMARY}, PRIMARY
        scene.run(130.0)

    assert not scene.steps()
    errors = [words for level, words in scene.lines if level == 'ERROR']
    assert errors and all(PRIMARY in words and NO_CHECK.format(PRIMARY) in words for words in errors)


def test_where_both_have_their_source_check_on_nothing_moves() -> None:
    scene = at_rest()
    scene.cloud.checked = {PRIMARY, SECONDARY}

    scene.run(600.0)

    assert not scene.claims() and not scene.steps()
    assert scene.said(NO_CHECK.format(PRIMARY)) and scene.said(NO_CHECK.format(SECONDARY))


def test_a_host_that_cannot_nat_says_so_and_claims_nothing() -> None:
    scene = at_rest()
    scene.silence()
    scene.fault = 'net.ipv4.ip_forward is 0'

    scene.run(20.0)
    assert scene.said(f'{SECONDARY} cannot NAT (net.ipv4.ip_forward is 0): it claims nothing until then') == 1
    assert not scene.claims()

    scene.fault = ''
    scene.run(20.0)
    assert scene.claims()


def test_a_part_outside_the_pair_is_told_unless_this_start_claims_it() -> None:
    scene = Scene(primary=True, holder=OUTSIDE).run(60.0)

    assert not scene.said('outside the pair') and scene.cloud.owner == PRIMARY
    assert scene.said(f'{TABLE} is at {PRIMARY} now') == 1
    scene = Scene(holder=OUTSIDE).run(300.0)
    assert scene.said(f'{TABLE} is at something outside the pair') == 1 and not scene.said('holds tables')
    scene = Scene(primary=True, holder=PRIMARY).run(10.0)
    assert scene.said(f'{PRIMARY} holds tables and address') == 1


def test_who_this_is_is_asked_for_as_long_as_it_takes() -> None:
    scene = Scene()
    scene.metadata['instance-id'] = [OSError('no route'), OSError('no route'), SECONDARY]
    scene.until = START + 30.0

    with pytest.raises(Ending):
        scene.monitor.run()

    assert scene.said('the metadata service does not tell instance-id: OSError: no route: asking again') == 1
    assert scene.jitter[:2] == [(0.5, 3.0)] * 2
    assert scene.said('over after ') == 1
    assert scene.said(f'watching {PRIMARY} from {SECONDARY}, the secondary') == 1


def test_what_is_unforeseen_is_logged_with_its_traceback_and_the_loop_goes_on() -> None:
    scene = Scene()
    outcomes: List[Any] = [True, RuntimeError('odd'), True]
    scene.outcome = lambda now: outcomes.pop(0) if outcomes else True
    scene.until = START + 30.0

    with pytest.raises(Ending):
        scene.monitor.run()

    errors = [message for level, message in scene.lines if level == 'ERROR']
    assert errors[0].startswith('Traceback') and 'RuntimeError: odd' in errors[-1]
    assert scene.pings[2] - scene.pings[1] == pytest.approx(5.0, abs=0.01)
    assert len(scene.pings) > 50


# Rehearsals

def test_all_calls_of_a_failover_are_rehearsed_ten_at_a_time_and_once() -> None:
    scene = Scene(tables=tuple(f'rtb-0000000{n}' for n in range(6))).run(600.0)

    rehearsed = [(each.at, each.name) for each in scene.cloud.calls if each.how.get('DryRun')]
    first = rehearsed[0][0]
    assert [at for at, _ in rehearsed[:10]] == [first] * 10 and len(rehearsed) == 15
    assert 15.0 <= rehearsed[10][0] - first < 16.0
    assert {name for _, name in rehearsed} == {*CLAIMS, 'stop_instances', 'start_instances'}


@pytest.mark.parametrize('code, every', [('UnauthorizedOperation', 120.0), ('RequestLimitExceeded', 120.0), ('', 15.0)])
def test_what_is_not_allowed_is_an_error_and_is_rehearsed_until_it_is(code: str, every: float) -> None:
    scene = Scene()
    scene.cloud.errors['start_instances'] = refusal(code) if code else LOST
    scene.run(300.0)
    denied = code == 'UnauthorizedOperation'

    asked = scene.times('start_instances', dry=True)
    assert [b - a for a, b in zip(asked, asked[1:])] == pytest.approx([every] * (len(asked) - 1), abs=1.0)
    assert len(asked) > 2
    assert len(scene.times('stop_instances', dry=True)) == 1
    told = [(level, message) for level, message in scene.lines if 'does not allow' in message]
    assert told[:1] == denied * [('ERROR', (
        f'the role of {SECONDARY} does not allow StartInstances on {PRIMARY}: a failover would fail; attach the '
        'policy in iam_policy.json'))]

    del scene.cloud.errors['start_instances']
    scene.run(140.0)
    rehearsed = len(scene.times('start_instances', dry=True))
    scene.run(300.0)
    assert len(scene.times('start_instances', dry=True)) == rehearsed
    assert not code or scene.said('over after') == denied


def test_nothing_is_rehearsed_while_the_peer_is_silent() -> None:
    scene = Scene()
    scene.cloud.errors['start_instances'] = refusal('UnauthorizedOperation')
    scene.run(50.0).cloud.calls.clear()
    scene.silence()
    scene.cloud.state[PRIMARY] = 'terminated'

    scene.run(200.0)

    assert not [each for each in scene.cloud.calls if each.how.get('DryRun')]
    assert scene.said('is gone (EC2 calls it terminated)') == 1


# Probes

def probing(**settings: Any) -> Scene:
    scene = at_rest(probe_address=TARGET, **settings)
    scene.probes.clear()
    return scene


def gaps(scene: Scene) -> List[float]:
    through = [at for at, peer in scene.probes if peer]
    return [round(later - earlier, 1) for earlier, later in zip(through, through[1:])]


def test_who_does_not_hold_probes_the_peer_every_five_seconds_and_delays_no_ping() -> None:
    scene = probing().run(60.0)

    assert {through for _, through in scene.probes} == {True}
    assert len(scene.probes) in (11, 12, 13) and all(4.9 <= gap <= 5.3 for gap in gaps(scene))
    assert all(b - a < 0.27 for a, b in zip(scene.pings, scene.pings[1:]) if a not in scene.questions())


@pytest.mark.parametrize('scene', [probing(primary=True), at_rest()], ids=['holder', 'no address'])
def test_who_holds_sends_no_probe(scene: Scene) -> None:
    assert scene.run(60.0).probes == []


def test_nobody_is_probed_who_misses_pings() -> None:
    scene = probing(primary=True, holder=SECONDARY, fail_back=False, num_pings=10)
    begins = scene.silence(lasts=12.0)

    scene.run(12.0)

    assert not [at for at, _ in scene.probes if at > begins + 1.0]


def test_nobody_is_probed_who_has_not_answered_yet() -> None:
    scene = Scene(probe_address=TARGET)
    scene.outcome = lambda now: OwnFault('no route')

    assert scene.run(30.0).probes == []


def test_a_peer_that_forwards_no_more_is_relieved_after_probes_beside_it_and_ec2s_answer() -> None:
    scene = probing()
    broke = scene.now
    scene.probed = lambda now, through: not through

    scene.run(20.0)

    claimed = scene.claims()[0]
    through = [at for at, peer in scene.probes if peer and broke <= at <= claimed]
    beside = [at for at, peer in scene.probes if not peer and broke <= at <= claimed]
    assert len(through) == 3 and beside == through[1:]             # at once after a miss, one beside each further one
    assert through[1] - through[0] == pytest.approx(1.0, abs=0.3)
    asked = max(at for at in scene.questions() if at < claimed)
    assert through[1] < asked and asked + scene.latency <= through[2] + 1e-6
    assert (scene.cloud.routes[TABLE], scene.cloud.owner) == (SECONDARY, SECONDARY)
    assert scene.said(f'{PRIMARY} answers pings, but lost 3 probes in a row') == 1
    assert scene.said(f'a packet through {PRIMARY} to {TARGET} did not come back: probing again') == 1
    assert not scene.steps() and max(b - a for a, b in zip(scene.pings, scene.pings[1:])) < 0.27


def test_a_peer_that_was_given_back_what_it_had_is_not_relieved_again_within_the_hour() -> None:
    scene = probing()
    scene.probed = lambda now, through: not through
    scene.run(20.0)
    scene.cloud.routes[TABLE] = scene.cloud.owner = PRIMARY
    scene.monitor.look_now()
    scene.probed = lambda now, through: True
    since = scene.run(60.0).now
    scene.probed = lambda now, through: not through

    scene.run(600.0)

    assert not scene.claims(since) and len(scene.probes) > 100


@pytest.mark.parametrize('own_way', [False, OwnFault('no route')])
def test_a_probe_that_gets_nowhere_by_the_own_route_either_says_nothing_of_the_peer(own_way: Any) -> None:
    scene = probing()
    scene.probed = lambda now, through: False if through else own_way

    scene.run(120.0)

    assert not scene.claims() and len(scene.questions()) < 3


@pytest.mark.parametrize('outcome', [OwnFault('no buffer'), NoNeighbour('not in this subnet')])
def test_a_probe_that_could_not_be_sent_is_no_miss(outcome: Exception) -> None:
    scene = probing()
    scene.probed = lambda now, through: outcome if through else True

    scene.run(120.0)

    assert not scene.claims()
    assert scene.said(str(outcome)) == 1


def test_misses_count_only_once_a_probe_was_answered() -> None:
    scene = Scene(probe_address=TARGET)
    scene.probed = lambda now, through: not through

    scene.run(300.0)

    assert not scene.claims()
    assert min(gaps(scene)) > 4.8 and len(scene.questions()) < 5
    assert scene.said('so it cannot be probed here: nothing is decided by that') == 1


def test_a_probe_that_was_lost_alone_is_told_and_that_the_next_one_was_answered() -> None:
    scene = probing()
    begins = scene.now
    scene.probed = lambda now, through: now > begins + 5.5

    scene.run(30.0)

    assert [scene.said(f'{words}a packet through {PRIMARY}') for words in ('', 'over after ')] == [2, 0]
    assert not scene.claims() and not scene.questions()


# What a monitor must not get stuck in

def test_an_error_in_the_middle_of_a_look_does_not_end_all_looking() -> None:
    scene = at_rest()
    scene.outcome = lambda now: MemoryError('no memory') if scene.cloud.calls else True
    scene.monitor.look_now()
    scene.cloud.slow['describe_instances'] = 1.0
    with pytest.raises(MemoryError):
        scene.run(10.0)
    scene.outcome = lambda now: True

    scene.run(20.0)

    assert len(scene.questions()) > 1


def test_a_reason_with_braces_is_told_as_it_is() -> None:
    scene = at_rest()
    scene.cloud.errors['describe_instance_status'] = ClientError(
        {'Error': {'Code': 'Unavailable', 'Message': 'see {x}'}}, 'Call')
    scene.silence()

    scene.run(20.0)

    assert scene.said('Unavailable: see {x}') > 0 and scene.cloud.routes[TABLE] == SECONDARY


def test_a_start_that_ec2_refuses_asks_no_more_often_than_it_claims() -> None:
    scene = Scene(primary=True, holder=SECONDARY)
    scene.cloud.errors.update(dict.fromkeys(('replace_route', 'create_route'), refusal('UnauthorizedOperation')))
    scene.run(600.0).cloud.calls.clear()

    scene.run(1200.0)

    assert len(scene.questions()) < 60 and len(scene.claims()) > 5


def test_many_that_are_denied_keep_none_from_being_rehearsed() -> None:
    scene = Scene(tables=tuple(f'rtb-0000000{n}' for n in range(8)))
    scene.cloud.errors.update(dict.fromkeys(('replace_route', 'create_route'), refusal('UnauthorizedOperation')))

    scene.run(400.0)

    rehearsed = [each.name for each in scene.cloud.calls if each.how.get('DryRun')]
    assert {'stop_instances', 'start_instances', 'associate_address'} <= set(rehearsed)
    assert len(scene.questions()) < 10
    told = [message for _, message in scene.lines if 'does not allow' in message][-1]
    assert told.count('ReplaceRoute') == told.count('CreateRoute') == 8


def test_a_peer_that_is_probed_no_more_leaves_no_trouble() -> None:
    scene = at_rest(probe_address=TARGET)
    scene.probed = lambda now, through: not through

    scene.run(60.0)

    assert scene.cloud.routes[TABLE] == SECONDARY
    assert not scene.monitor.lasting.troubles


def test_a_client_that_comes_too_late_serves_the_next_time() -> None:
    scene = Scene()
    scene.run(10.0)
    scene.monitor.ec2.client = None
    scene.latency = 7.0  # the making takes longer than a call may
    made = scene.made
    scene.monitor.look_now()
    scene.run(8.0)
    scene.latency = 0.1

    scene.run(60.0)

    assert scene.made == made + 1


def test_a_stop_by_somebody_else_is_not_this_monitors() -> None:
    scene = at_rest()
    scene.silence()
    scene.run(75.0)
    assert scene.monitor.left_stopped
    scene.cloud.state[PRIMARY] = 'running'
    scene.outcome = lambda now: True
    scene.run(10.0)

    scene.cloud.state[PRIMARY] = 'stopped'
    scene.silence()
    scene.run(10.0)

    assert not scene.monitor.left_stopped
