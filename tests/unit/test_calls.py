"""Calls to EC2: side by side within a deadline, what comes back, and what is read from it."""
from __future__ import annotations

import contextlib
import datetime
import email.utils
import functools
import json
import math
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple, cast

import boto3
import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, NoCredentialsError
from botocore.stub import Stubber
from pytest import MonkeyPatch

from nat_monitor import (ABSENT, CONNECTIONS, FORCE, MAINTENANCE, NOBODY, OTHER, PEER, READ_TIMEOUT, SELF, STOP,
                         NoAnswer, NotSent, Observation, addresses_of, claim_table, clock_skew, code_of, connect,
                         describe_address, describe_networks, describe_pair, describe_states, describe_tables,
                         has_answered, in_words, lost_credentials, reason_of, run_together, tags_of, take_step)

from tests.unit.scene import at_rest
from tests.unit.web import Asked, Server, serving

LONG = 10.0  # s; no test waits that long
OWN, PEER_ID, TABLE = 'i-0fedcba9876543210', 'i-0123456789abcdef0', 'rtb-0123456789abcdef0'
ADDRESS, ALLOCATION = '198.51.100.7', 'eipalloc-0123456789abcdef0'


# Side by side

class Meanwhile:
    """What is done while answers are outstanding, each time that a pause is over; notes when it was asked for."""

    def __init__(self, *pauses: float, does: Callable[[], object] = lambda: None) -> None:
        self.pauses, self.does, self.due_at = iter(pauses), does, 0.0
        self.times: List[float] = []

    def __call__(self) -> float:
        self.times.append(time.monotonic())
        if self.times[-1] >= self.due_at:
            self.does()
            self.due_at = time.monotonic() + next(self.pauses)
        return max(0.0, self.due_at - time.monotonic())


def join_all_since(before: List[threading.Thread]) -> None:
    """Wait for the end of all threads that have begun since there were only those."""
    for thread in set(threading.enumerate()) - {*before}:
        thread.join(LONG)


def test_many_calls_share_the_connections_of_a_few() -> None:
    """A handshake for each would cost more than it saves; who waits for its turn is not forgotten."""
    before, threads = threading.active_count(), set()

    def call(number: int) -> int:
        threads.add(threading.active_count() - before)
        time.sleep(0.01)
        return number

    results = run_together({str(n): functools.partial(call, n) for n in range(3 * CONNECTIONS)}, LONG)

    assert results == {str(n): n for n in range(3 * CONNECTIONS)}
    assert 1 < max(threads) <= CONNECTIONS and run_together({}, LONG) == {}


def test_a_call_without_an_answer_in_time_holds_up_no_other_and_one_whose_turn_has_not_come_is_not_made() -> None:
    before, started_at = threading.enumerate(), time.monotonic()
    answer, later, meanwhile = threading.Event(), threading.Event(), Meanwhile(math.inf)
    held = {f'held {n}': lambda: answer.wait(LONG) for n in range(CONNECTIONS)}

    results = run_together({'quick': lambda: True, **held, 'later': later.set}, 2.0, meanwhile)

    assert time.monotonic() - started_at >= 2.0 and len(meanwhile.times) < 9  # it need not be called again
    assert results.pop('quick') and {type(result) for result in results.values()} == {NotSent}
    answer.set()
    join_all_since(before)
    assert not later.is_set()


def test_while_answers_are_outstanding_it_is_called_again_after_each_pause_and_not_without_end() -> None:
    """Answers that come meanwhile do not keep it waiting, and once all are in, it is called no more."""
    def answer_the_fourth_time() -> None:
        done.append(time.monotonic())
        if len(done) == 4:
            answer.set()
            join_all_since(before)

    before, answer = threading.enumerate(), threading.Event()
    meanwhile, done = Meanwhile(0.5, 0.0, 0.3, 0.0, does=answer_the_fourth_time), list[float]()
    calls = {str(number): lambda: True for number in range(20)}

    assert run_together({**calls, 'slow': lambda: answer.wait(LONG)}, LONG, meanwhile)['slow'] is True

    assert done[1] - done[0] < 5.0 and len(done) == 4 and len(meanwhile.times) < 4 + 2 * len(calls)


def test_what_came_in_time_counts_though_what_was_done_meanwhile_took_longer() -> None:
    meanwhile = Meanwhile(0.0, does=lambda: time.sleep(2.6))

    results = run_together({'in time': lambda: 'here', 'late': lambda: time.sleep(2.3)}, 2.0, meanwhile)

    assert results['in time'] == 'here' and isinstance(results['late'], NoAnswer)
    assert len(meanwhile.times) == 1


@pytest.mark.parametrize('started', [0, 1])
def test_a_thread_that_cannot_start_leaves_its_calls_to_the_others(monkeypatch: MonkeyPatch, started: int) -> None:
    starts = [threading.Thread.start] * started

    def start(thread: threading.Thread) -> None:
        if not starts:
            raise RuntimeError("can't start new thread")
        starts.pop()(thread)

    monkeypatch.setattr(threading.Thread, 'start', start)

    results = run_together({str(number): lambda: 'here' for number in range(3)}, LONG if started else 0.1)

    assert [one if started else type(one) for one in results.values()] == ['here' if started else NotSent] * 3


# On their way

STOPPED = b'<StopInstancesResponse><requestId>1-2-3</requestId><instancesSet/></StopInstancesResponse>'


class Endpoint(Server):
    """EC2's endpoint; it answers what a test wants, once that lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.status, self.body, self.goes_on = 200, STOPPED, threading.Event()
        self.goes_on.set()

    @property
    def keys(self) -> List[str]:
        """The access keys with which its callers have signed."""
        return [one.headers['authorization'].partition('Credential=')[2].partition('/')[0] for one in self.asked]

    def answer(self, asked: Asked) -> Tuple[int, bytes]:
        self.goes_on.wait(LONG)
        return self.status, self.body


class Imds(Server):
    """The metadata service, as far as a role's credentials need it."""

    def __init__(self, key: str = 'ASIAROLE') -> None:
        super().__init__()
        self.role, self.key, self.lifetime = 'NAT_Monitor', key, datetime.timedelta(days=1)

    def answer(self, asked: Asked) -> Tuple[int, bytes]:
        expires = datetime.datetime.now(datetime.timezone.utc) + self.lifetime
        found = 'token' if 'PUT' in asked.what else self.role if asked.what.endswith('/') else json.dumps({
            'Code': 'Success', 'Type': 'AWS-HMAC', 'AccessKeyId': self.key, 'SecretAccessKey': 'secret',
            'Token': 'token', 'LastUpdated': '2020-01-01T00:00:00Z', 'Expiration': f'{expires:%Y-%m-%dT%H:%M:%SZ}'})
        return 200 if found else 404, found.encode()


@pytest.fixture
def imds(monkeypatch: MonkeyPatch, tmp_path: Path) -> Iterator[Imds]:
    """The metadata service; nothing else of AWS is set in the environment, nor in root's home directory."""
    for name in [name for name in os.environ if name.startswith('AWS_')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('HOME', str(tmp_path))
    with serving(Imds()) as server:
        monkeypatch.setenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
        yield server


@pytest.fixture
def endpoint(monkeypatch: MonkeyPatch, imds: Imds) -> Iterator[Endpoint]:
    with serving(Endpoint()) as server:
        monkeypatch.setenv('AWS_ENDPOINT_URL_EC2', f'http://localhost:{server.server_port}')
        yield server


@pytest.fixture
def tls(endpoint: Endpoint, monkeypatch: MonkeyPatch, tmp_path: Path) -> Endpoint:
    """The endpoint behind TLS, with a certificate of its own."""
    if not shutil.which('openssl') and not os.environ.get('CI'):
        pytest.skip('a certificate needs the command openssl')
    key, certificate = tmp_path / 'key.pem', tmp_path / 'certificate.pem'
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', certificate,
                    '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'], check=True,
                   capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    endpoint.socket = context.wrap_socket(endpoint.socket, server_side=True)
    monkeypatch.setenv('AWS_ENDPOINT_URL_EC2', f'https://localhost:{endpoint.server_port}')
    monkeypatch.setenv('AWS_CA_BUNDLE', str(certificate))
    return endpoint


@pytest.fixture(params=['endpoint', 'tls'])
def either(request: pytest.FixtureRequest) -> Endpoint:
    """The endpoint without and with TLS."""
    return cast(Endpoint, request.getfixturevalue(request.param))


def stop(client: Any, timeout: float = LONG, *rest: Any, **limits: Any) -> Any:
    """Return what came of StopInstances, for the peer, by a client."""
    call = functools.partial(client.stop_instances, InstanceIds=[PEER_ID])
    return run_together({'stop': call}, timeout, *rest, **limits)['stop']


def user_timeouts(server: Endpoint) -> Set[int]:
    """Return how long (ms) the kernel repeats what is lost, on this process's connections to the server."""
    found = set()
    for descriptor in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):  # no socket, or one that has ended
            with socket.socket(fileno=os.dup(int(descriptor))) as one:
                if one.getpeername()[:2] == server.server_address[:2]:
                    found.add(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    return found


def names_take(monkeypatch: MonkeyPatch, seconds: float) -> None:
    """Let name resolution take so long from now on."""
    resolve = socket.getaddrinfo

    def resolve_slowly(*what: Any, **how: Any) -> Any:
        time.sleep(seconds)
        return resolve(*what, **how)

    monkeypatch.setattr(socket, 'getaddrinfo', resolve_slowly)


def test_the_limit_of_an_answer_counts_from_sending_and_the_kernel_repeats_nothing_for_longer(
        either: Endpoint, monkeypatch: MonkeyPatch) -> None:
    """What it takes before to find and reach EC2 would leave nothing of a second and a half."""
    names_take(monkeypatch, 1.0)
    client = connect('us-east-1')
    repeated: List[int] = []
    for timeout, after_sending in ((LONG, 2.5), (3.5, math.inf), (LONG, math.inf)):
        assert has_answered(stop(client, timeout, after_sending=after_sending))
        repeated += user_timeouts(either)

    assert 0 < repeated[0] <= 2500 and 0 < repeated[1] <= 3500 and repeated[2:] == [READ_TIMEOUT * 1000]
    assert len({one.caller for one in either.asked}) == 1, 'the connection was kept'


@pytest.mark.parametrize('held_up', [0.0, 1.5])
def test_a_call_whose_name_was_resolved_too_late_is_not_sent_and_known_not_to_be(
        either: Endpoint, monkeypatch: MonkeyPatch, held_up: float) -> None:
    """Also if something holds up who asks, and the call's thread has ended with an error of botocore's before."""
    names_take(monkeypatch, 0.7)
    client = connect('us-east-1')

    before = threading.enumerate()

    result = stop(client, 0.3, Meanwhile(math.inf, does=lambda: time.sleep(held_up)))

    join_all_since(before)
    assert isinstance(result, NotSent) and either.asked == []


@pytest.mark.parametrize('resolving, timeout, after_sending', [(0.0, LONG, 0.3), (0.5, 3.0, LONG)])
def test_a_call_that_was_sent_and_has_no_answer_by_then_may_have_been_done(
        endpoint: Endpoint, monkeypatch: MonkeyPatch, resolving: float, timeout: float, after_sending: float
        ) -> None:
    names_take(monkeypatch, resolving)
    endpoint.goes_on.clear()
    client, started_at = connect('us-east-1'), time.monotonic()

    result = stop(client, timeout, after_sending=after_sending)

    assert time.monotonic() - started_at >= 0.3
    endpoint.goes_on.set()
    assert type(result) is NoAnswer and len(endpoint.asked) == 1


def test_each_call_has_its_own_limit(endpoint: Endpoint) -> None:
    """One is sent at once and not answered; one that is sent later than the other's limit is."""
    client, other = connect('us-east-1'), connect('us-east-1')
    endpoint.goes_on.clear()

    def send_later() -> Any:
        time.sleep(3.0)
        endpoint.goes_on.set()
        return other.stop_instances(InstanceIds=[PEER_ID])

    results = run_together({'at once': lambda: client.stop_instances(InstanceIds=[OWN]), 'later': send_later}, LONG,
                           after_sending=2.5)

    assert type(results['at once']) is NoAnswer and has_answered(results['later'])


@pytest.mark.parametrize('pause, limit, sent', [(2.0, 3.5, 2), (3.0, 2.0, 1)])
def test_a_second_request_of_a_call_has_the_limit_anew_and_is_not_sent_once_that_is_over(
        endpoint: Endpoint, pause: float, limit: float, sent: int) -> None:
    client, before = connect('us-east-1'), threading.enumerate()

    def stop_twice() -> Any:
        client.stop_instances(InstanceIds=[PEER_ID])
        time.sleep(pause)
        return client.stop_instances(InstanceIds=[PEER_ID])

    result = run_together({'twice': stop_twice}, LONG, after_sending=limit)['twice']

    join_all_since(before)
    assert len(endpoint.asked) == sent and isinstance(result, NoAnswer) is (sent == 1)


# What comes back

PAGE = b'<html><body><h1>Bad Gateway</h1></body></html>'
ERROR = (b'<Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors>'
         b'<RequestID>1-2-3</RequestID></Response>')


def test_what_something_in_between_says_is_no_answer_of_ec2(endpoint: Endpoint) -> None:
    client = connect('us-east-1')
    for status, body, words in (
            (502, PAGE, '(502)'), (502, b'', '(502)'), (403, PAGE, '(Unknown)'), (302, PAGE, '(Unknown)'),
            (200, PAGE, 'HTTP 200'), (503, b'<!DOCTYPE html><html><body>Sorry<br></body></html>', 'Unable to parse'),
            *((status, body, 'Unable to parse') for status, body in (
                (403, b'Go away'), (403, b''), (200, b''), (200, STOPPED[:-5]), (400, ERROR[:50])))):
        endpoint.status, endpoint.body = status, body

        result = stop(client)

        assert isinstance(result, Exception) and not has_answered(result), (status, body)
        assert code_of(result) == '' and words in in_words(result), (status, body)


def test_an_error_with_a_code_and_a_success_are_answers_of_ec2(endpoint: Endpoint) -> None:
    client = connect('us-east-1')
    assert has_answered(stop(client))

    endpoint.status, endpoint.body = 503, ERROR % (b'Unavailable', b'Try again.\nLater.')
    result = stop(client)

    assert has_answered(result) and code_of(result) == 'Unavailable'
    assert in_words(result) == 'Unavailable: Try again. Later.'
    assert abs(clock_skew(result)) < 60.0
    endpoint.body = ERROR % (b'Unavailable', b'')
    assert in_words(stop(client)) == 'Unavailable'
    here, there = (OSError(f'<X object at 0x7f0{at}>: no') for at in (1, 2))
    assert in_words(here) == in_words(there)  # else each try would be news

    silent: Tuple[Any, ...] = ({}, {'Error': {}}, {'Error': {'Code': None}}, {'Error': {'Code': ''}})
    for error in (ClientError(response, 'StopInstances') for response in silent):
        assert 'when calling the StopInstances' in in_words(error) and not has_answered(error)


def refusal(code: str, **headers: str) -> ClientError:
    return ClientError({'Error': {'Code': code, 'Message': ''}, 'ResponseMetadata': {
        'HTTPStatusCode': 400, 'HTTPHeaders': headers}}, 'StopInstances')  # type: ignore[typeddict-item]


def test_credentials_that_are_refused_or_could_not_be_had_are_lost_and_nothing_else_is() -> None:
    refused = 'AuthFailure', 'InvalidClientTokenId', 'UnrecognizedClientException', 'ExpiredToken', 'RequestExpired'
    none = NoCredentialsError(), CredentialRetrievalError(provider='iam-role', error_msg='no')
    others: Tuple[Any, ...] = (refusal('UnauthorizedOperation'), NoAnswer('none'), {}, None)

    assert all(map(lost_credentials, [*map(refusal, refused), *none])) and not any(map(lost_credentials, others))


def test_the_skew_of_the_clock_comes_from_the_date_of_the_answer_if_there_is_one() -> None:
    for skew in (400.0, -400.0):
        date = email.utils.formatdate(time.time() - skew, usegmt=True)
        assert abs(clock_skew(refusal('AuthFailure', date=date)) - skew) < 3.0
    odd = [refusal('AuthFailure', date=date) for date in ('soon', '0', 'Sat')]
    for other in (refusal('AuthFailure'), *odd, NoAnswer('none'), None):
        assert clock_skew(other) == 0.0


# With which credentials

@pytest.fixture
def proxy(monkeypatch: MonkeyPatch) -> Iterator[Imds]:
    """A proxy on another instance, which has a role, too; no host is to be reached without it."""
    with serving(Imds('ASIAOFPROXY')) as server:
        for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
            for one in (name, name.upper()):
                monkeypatch.setenv(one, '' if name == 'no_proxy' else f'http://127.0.0.1:{server.server_port}')
        yield server


def key_of(client: Any) -> str:
    """Return the access key with which a client signs."""
    url = str(client.generate_presigned_url('stop_instances', {'InstanceIds': [PEER_ID]}))
    return next(key for key in ('ASIAROLE', 'ASIAOFPROXY', 'AKIAENVIRONMENT', 'AKIAFILE') if key in url)


@pytest.fixture
def administrator(imds: Imds, tmp_path: Path, monkeypatch: MonkeyPatch) -> Path:
    """The .aws in root's home directory; an administrator has left keys there and in the environment."""
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKIAENVIRONMENT')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    folder = tmp_path / '.aws'
    folder.mkdir()
    (folder / 'credentials').write_text('[default]\naws_access_key_id=AKIAFILE\naws_secret_access_key=secret\n')
    return folder


def test_the_role_alone_counts_whatever_an_administrator_has_left(endpoint: Endpoint, administrator: Path, imds: Imds,
                                                                  monkeypatch: MonkeyPatch) -> None:
    stop(connect('us-east-1'))
    monkeypatch.delenv('AWS_ENDPOINT_URL_EC2')
    assert endpoint.keys == ['ASIAROLE'] and key_of(connect('us-east-1')) == 'ASIAROLE'

    monkeypatch.delenv('AWS_ACCESS_KEY_ID')
    assert key_of(connect('us-east-1')) == 'ASIAROLE'

    monkeypatch.setenv('AWS_PROFILE', 'none-of-that-name')
    (administrator / 'config').write_text('[broken')
    assert key_of(connect('us-east-1')) == 'ASIAROLE'

    imds.role = ''
    result = stop(connect('us-east-1'))
    assert isinstance(result, NoCredentialsError) and lost_credentials(result)


def test_nothing_is_asked_of_a_proxy_not_even_credentials_for_those_that_expire(
        either: Endpoint, imds: Imds, proxy: Imds, monkeypatch: MonkeyPatch) -> None:
    """The command of NOTIFY_COMMAND may need it for calls of its own, so the environment stays as it is."""
    monkeypatch.setattr('random.randint', lambda least, most: least)  # by which botocore puts off what is urgent
    before = dict(os.environ)
    imds.lifetime, imds.key = datetime.timedelta(minutes=1), 'ASIAEARLIER'
    client = connect('us-east-1')
    imds.lifetime, imds.key = datetime.timedelta(days=1), 'ASIAROLE'

    assert has_answered(stop(client))

    assert either.keys == ['ASIAROLE'] and proxy.asked == [] and os.environ == before


@pytest.mark.parametrize('others', [
    {'AWS_ENDPOINT_URL': 'http://127.0.0.1:9', 'AWS_DATA_PATH': '/nowhere', 'AWS_METADATA_SERVICE_TIMEOUT': 'soon',
     'AWS_EC2_METADATA_DISABLED': 'true', 'AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE': 'IPv6',
     'AWS_DEFAULTS_MODE': 'none-of-that-name', 'AWS_RETRY_MODE': 'adaptive', 'AWS_CONFIG_FILE': '/nowhere'},
    {'AWS_USE_FIPS_ENDPOINT': 'true', 'AWS_USE_DUALSTACK_ENDPOINT': 'true', 'AWS_DEFAULT_REGION': 'eu-west-1',
     'AWS_REGION': 'eu-west-1', 'REQUESTS_CA_BUNDLE': '/nowhere'}], ids=['endpoint', 'kind of endpoint'])
def test_no_other_variable_and_no_file_of_settings_counts(
        imds: Imds, administrator: Path, others: Dict[str, str], monkeypatch: MonkeyPatch) -> None:
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    (administrator / 'config').write_text(
        '[default]\nendpoint_url = http://127.0.0.1:9\n' if 'AWS_ENDPOINT_URL' in others else
        '[default]\nuse_fips_endpoint = true\nservices = local\n'
        '[services local]\nec2 =\n  endpoint_url = http://127.0.0.1:9\n')

    client = connect('us-east-1')

    assert client.meta.endpoint_url == 'https://ec2.us-east-1.amazonaws.com'
    assert client.meta.config.retries['mode'] == 'standard'
    assert key_of(client) == 'ASIAROLE'


def test_a_bundle_of_authorities_counts_and_that_of_requests_does_not(tls: Endpoint, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', '/nowhere')
    assert has_answered(stop(connect('us-east-1')))

    monkeypatch.setenv('REQUESTS_CA_BUNDLE', os.environ['AWS_CA_BUNDLE'])
    monkeypatch.delenv('AWS_CA_BUNDLE')
    assert 'CERTIFICATE_VERIFY_FAILED' in in_words(stop(connect('us-east-1')))


# What is read from it, and what is done

@pytest.fixture(scope='module')
def client() -> Any:
    """One for all: to make it takes longer than all its calls."""
    client: Any = boto3.client('ec2', 'us-east-1', aws_access_key_id='key', aws_secret_access_key='secret')
    members_of_stop(client).setdefault('SkipOsShutdown', members_of_stop(client)['Force'])
    return client


@pytest.fixture
def ec2(client: Any) -> Iterator[Stubber]:
    """What EC2 answers to the calls of `client`."""
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def members_of_stop(client: Any) -> Any:
    """Return the parameters of StopInstances that a client knows."""
    return client.meta.service_model.operation_model('StopInstances').input_shape.members


# Also default routes, but not of this kind, or told by a gateway
OTHERS = [{'DestinationIpv6CidrBlock': '::/0', 'EgressOnlyInternetGatewayId': 'eigw-1', 'Origin': 'CreateRoute'},
          {'DestinationPrefixListId': 'pl-1', 'GatewayId': 'vpce-1', 'Origin': 'CreateRoute'},
          {'DestinationCidrBlock': '10.0.0.0/16', 'GatewayId': 'local', 'Origin': 'CreateRouteTable'},
          *({'DestinationCidrBlock': '0.0.0.0/0', 'GatewayId': 'vgw-1', 'Origin': origin, 'State': 'active'}
            for origin in ('EnableVgwRoutePropagation', 'Advertisement'))]
FACTS: Dict[str, Dict[str, Any]] = {
    OWN: {'PrivateIpAddress': '10.0.0.21', 'NetworkInterfaces': [
        {'NetworkInterfaceId': 'eni-1'}, {'NetworkInterfaceId': 'eni-2'}]},
    PEER_ID: {'PrivateIpAddress': '10.0.0.11', 'NetworkInterfaces': [{'NetworkInterfaceId': 'eni-3'}]}}


def test_what_this_host_does_not_tell_of_itself_is_not_put_on_ec2() -> None:
    scene = at_rest(holder=OWN)
    scene.monitor.ec2.nat_fault = lambda *_: str(1 // 0)
    assert scene.run(250.0).said('EC2 does not tell') == 0


def test_a_subnet_of_ipv6_alone_has_no_network(client: Any, ec2: Stubber) -> None:
    links = [{'SubnetId': f'subnet-{n}'} for n in (1, 2)]
    ec2.add_response('describe_route_tables', {'RouteTables': [{'RouteTableId': TABLE, 'Associations': links}]})
    ec2.add_response('describe_subnets', {'Subnets': [{**links[0], 'CidrBlock': '10.0.1.0/24'}, links[1]]})
    assert describe_networks(client, (TABLE,)) == ['10.0.1.0/24']


@pytest.mark.parametrize('named, holder', [
    ({'InstanceId': OWN}, SELF), ({'InstanceId': PEER_ID}, PEER), ({'InstanceId': 'i-of-others'}, OTHER),
    ({'NetworkInterfaceId': 'eni-2'}, SELF), ({'NetworkInterfaceId': 'eni-3', 'InstanceId': ''}, PEER),
    ({'NetworkInterfaceId': 'eni-4'}, OTHER), ({'NatGatewayId': 'nat-1'}, OTHER),
    ({'InstanceId': OWN, 'State': 'blackhole'}, NOBODY), (None, NOBODY)])
def test_who_is_named_by_id_or_by_a_network_interface_alone_holds_a_table(
        client: Any, ec2: Stubber, named: Any, holder: str) -> None:
    routes = [*OTHERS, {'DestinationCidrBlock': '0.0.0.0/0', **named}, *OTHERS] if named else OTHERS
    ec2.add_response('describe_route_tables', {'RouteTables': [{'RouteTableId': TABLE, 'Routes': routes}]})

    assert describe_tables(client, (TABLE, 'rtb-gone'), OWN, PEER_ID, FACTS) == {TABLE: holder, 'rtb-gone': ABSENT}


@pytest.mark.parametrize('named, facts, holder', [
    ({'InstanceId': OWN}, {}, SELF), ({'NetworkInterfaceId': 'eni-3'}, FACTS, PEER),
    ({'NetworkInterfaceId': 'eni-3'}, {}, OTHER), ({}, FACTS, NOBODY),
    # All traffic leaves with the primary private address.
    ({'InstanceId': PEER_ID, 'PrivateIpAddress': '10.0.0.11'}, FACTS, PEER),
    ({'InstanceId': PEER_ID, 'PrivateIpAddress': '10.0.0.12'}, FACTS, NOBODY),
    ({'NetworkInterfaceId': 'eni-3', 'PrivateIpAddress': '10.0.0.13'}, FACTS, NOBODY),  # a new one
    ({'InstanceId': OWN, 'PrivateIpAddress': '10.0.0.21'}, {}, SELF),
    ({'InstanceId': 'i-of-others', 'PrivateIpAddress': '10.0.0.12'}, FACTS, OTHER)])
def test_an_address_is_held_by_whose_primary_private_one_it_is_for(
        client: Any, ec2: Stubber, named: Any, facts: Any, holder: str) -> None:
    association = {'AssociationId': 'eipassoc-1'} if named else {}
    ec2.add_response('describe_addresses', {'Addresses': [
        {'PublicIp': ADDRESS, 'AllocationId': ALLOCATION, **association, **named}]})
    ec2.add_response('describe_addresses', {'Addresses': []})

    assert describe_address(client, ADDRESS, OWN, PEER_ID, facts) == (holder, ALLOCATION)
    assert describe_address(client, ADDRESS, OWN, PEER_ID, facts) == (ABSENT, '')


def test_both_of_the_pair_are_described_by_one_call(client: Any, ec2: Stubber) -> None:
    own, peer = {'InstanceId': OWN}, {'InstanceId': PEER_ID}
    ec2.add_response('describe_instances', {'Reservations': [{'Instances': [own]}, {'Instances': [peer]}]},
                     {'Filters': [{'Name': 'instance-id', 'Values': [OWN, PEER_ID]}]})

    assert describe_pair(client, OWN, PEER_ID) == {OWN: own, PEER_ID: peer}


def test_an_instance_has_all_addresses_of_its_interfaces_its_tags_and_a_reason_for_its_state() -> None:
    whole = {'NetworkInterfaces': [{'PrivateIpAddresses': [{'PrivateIpAddress': '10.0.0.11'}]},
                                   {'PrivateIpAddresses': [{'PrivateIpAddress': '10.0.0.12'}]}],
             'Tags': [{'Key': 'Name', 'Value': 'nat'}], 'StateTransitionReason': 'User initiated',
             'StateReason': {'Message': 'Client.InternalError: Client error on launch'}}

    assert (addresses_of(whole), tags_of(whole)) == (['10.0.0.11', '10.0.0.12'], {'Name': 'nat'})
    assert reason_of(whole) == 'Client.InternalError: Client error on launch'
    assert reason_of({'StateTransitionReason': 'User initiated'}) == 'User initiated'
    assert (addresses_of({}), tags_of({}), reason_of({})) == ([], {}, '')


def test_an_unknown_instance_is_gone_and_hides_no_other(client: Any, ec2: Stubber) -> None:
    unknown = 'describe_instance_status', 'InvalidInstanceID.NotFound'
    for checks in (('ok', 'impaired'), ('ok', 'initializing')):
        ec2.add_client_error(*unknown, expected_params={'InstanceIds': (OWN, PEER_ID), 'IncludeAllInstances': True})
        ec2.add_response('describe_instance_status', {'InstanceStatuses': [{
            'InstanceId': OWN, 'InstanceState': {'Name': 'running'}, 'InstanceStatus': {'Status': checks[0]},
            'SystemStatus': {'Status': checks[1]}}]}, {'InstanceIds': (OWN,), 'IncludeAllInstances': True})
        ec2.add_client_error(*unknown, expected_params={'InstanceIds': (PEER_ID,), 'IncludeAllInstances': True})

    assert describe_states(client, OWN, PEER_ID) == {OWN: ('running', 'impaired'), PEER_ID: ('gone', '')}
    assert describe_states(client, OWN, PEER_ID)[OWN] == ('running', 'initializing and ok')
    ec2.add_response('describe_instance_status', {'InstanceStatuses': [
        {'InstanceId': OWN, 'InstanceState': {'Name': 'running'}, 'SystemStatus': {}}]})
    assert describe_states(client, OWN) == {OWN: ('running', '')}  # whatever EC2 leaves out


def test_a_route_that_is_not_there_is_created_and_no_other_refusal_is_passed_over(client: Any, ec2: Stubber) -> None:
    route = {'RouteTableId': TABLE, 'DestinationCidrBlock': '0.0.0.0/0', 'InstanceId': OWN}
    ec2.add_response('replace_route', {}, route)
    claim_table(client, TABLE, OWN)
    ec2.add_client_error('replace_route', 'InvalidParameterValue')
    ec2.add_response('create_route', {}, route)
    claim_table(client, TABLE, OWN)

    ec2.add_client_error('replace_route', 'UnauthorizedOperation')
    with pytest.raises(ClientError, match='UnauthorizedOperation'):
        claim_table(client, TABLE, OWN)
    ec2.add_client_error('replace_route', 'InvalidParameterValue')  # another fault than a missing route
    ec2.add_client_error('create_route', 'RouteAlreadyExists')
    with pytest.raises(ClientError, match='RouteAlreadyExists'):
        claim_table(client, TABLE, OWN)


SKIP = {'SkipOsShutdown': True}


@pytest.mark.parametrize('step, force', [(STOP, False), (FORCE, True)])
@pytest.mark.parametrize('code', ['OperationNotPermitted', 'UnsupportedOperation', 'InvalidParameterCombination',
                                  'UnknownParameter', 'InternalError'])
def test_a_step_that_is_refused_with_an_option_is_taken_at_once_without_it_and_so_are_later_ones(
        client: Any, ec2: Stubber, step: str, force: bool, code: str) -> None:
    options, plain = dict(SKIP), {'InstanceIds': [PEER_ID], 'Force': force}
    ec2.add_response('stop_instances', {}, {**plain, **SKIP})
    take_step(client, PEER_ID, step, options)
    ec2.add_client_error('stop_instances', code, expected_params={**plain, **SKIP})
    ec2.add_response('stop_instances', {}, plain)
    take_step(client, PEER_ID, step, options)
    ec2.assert_no_pending_responses()

    ec2.add_response('stop_instances', {}, plain)
    take_step(client, PEER_ID, step, options)

    for codes in (['IncorrectInstanceState'], [code, 'UnauthorizedOperation']):
        for one in codes:
            ec2.add_client_error('stop_instances', one)
        with pytest.raises(ClientError, match=codes[-1]):
            take_step(client, PEER_ID, step, dict(SKIP) if len(codes) == 2 else options)


def test_what_only_an_earlier_answer_said_of_the_peer_moves_nothing_and_ends_no_pings() -> None:
    scene = at_rest(holder=OWN)
    for on, tags in ({PEER_ID}, {}), (set(), {PEER_ID: [{'Key': MAINTENANCE, 'Value': ''}]}):
        scene.cloud.hidden, scene.cloud.checked, scene.cloud.tags = '', on, tags
        scene.run(130.0).cloud.hidden, scene.cloud.routes, scene.cloud.owner = PEER_ID, {TABLE: PEER_ID}, PEER_ID
        assert not scene.run(300.0).claims() and scene.said('over after') == bool(tags)
        scene.cloud.routes, scene.cloud.owner = {TABLE: OWN}, OWN
        assert ('under maintenance' in scene.run(130.0).status['decision']) is bool(tags)
    scene.cloud.hidden, scene.cloud.errors['describe_instance_status'] = '', refusal('InvalidInstanceID.NotFound')
    assert scene.run(130.0).said('missed') == 0  # it is described, all the same
    assert Observation(0.0, own_state='running').told == 'EC2 answered without it'


@pytest.mark.parametrize('is_known, body, left', [(False, STOPPED, {}), (True, b'the page of a proxy', SKIP)])
def test_an_option_that_the_client_does_not_know_is_left_out_and_a_lost_answer_takes_none_away(
        endpoint: Endpoint, is_known: bool, body: bytes, left: Any) -> None:
    """What was sent may have been done."""
    client, options = connect('us-east-1'), dict(SKIP)
    members_of_stop(client).pop('SkipOsShutdown', None)
    if is_known:
        members_of_stop(client)['SkipOsShutdown'] = members_of_stop(client)['Force']
    endpoint.body = body

    result = run_together({'stop': lambda: take_step(client, PEER_ID, FORCE, options)}, LONG)['stop']

    assert options == left and len(endpoint.asked) == 1 and has_answered(result) is not is_known
