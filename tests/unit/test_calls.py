"""Calls to EC2: side by side within a deadline, what comes back, and what is read from it."""
from __future__ import annotations

import contextlib
import email.utils
import datetime
import functools
import http.server
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
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

import boto3
import botocore.stub
import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, NoCredentialsError

from nat_monitor import (ABSENT, CONNECTIONS, FORCE, NOBODY, OTHER, PEER, READ_TIMEOUT, SELF, STOP, InstanceFacts,
                         NoAnswer, NotSent, clock_skew, code_of, connect, default_route, describe_address,
                         describe_pair, describe_tables, has_answered, holder_of, in_words, lost_credentials,
                         run_together, take_step)

LONG = 10.0  # s; no test waits that long
OWN, PEER_ID, TABLE = 'i-0fedcba9876543210', 'i-0123456789abcdef0', 'rtb-0123456789abcdef0'
ADDRESS, ALLOCATION = '198.51.100.7', 'eipalloc-0123456789abcdef0'


# Side by side

class Meanwhile:
    """What is done while answers are outstanding: notes when, and returns the pauses in turn, the last one again."""

    def __init__(self, *pauses: Any, does: Callable[[], object] = lambda: None) -> None:
        self.pauses, self.does = list(pauses), does
        self.times: List[float] = []

    def __call__(self) -> Any:
        self.times.append(time.monotonic())
        self.does()
        return self.pauses.pop(0) if len(self.pauses) > 1 else self.pauses[0]


@pytest.fixture
def answer() -> Any:
    """An event for which a call waits; it is set in the end, so that no thread outlives its test for long."""
    event = threading.Event()
    yield event
    event.set()


def test_calls_made_together_return_or_raise_each_under_its_name() -> None:
    error = ValueError('no')

    def fail() -> None:
        raise error

    assert run_together({'one': lambda: 1, 'two': fail}, LONG) == {'one': 1, 'two': error}
    assert run_together({}, LONG) == {}


def test_a_call_without_an_answer_in_time_holds_up_no_other(answer: threading.Event) -> None:
    started_at = time.monotonic()

    results = run_together({'slow': lambda: answer.wait(LONG), 'quick': lambda: 'here'}, 0.3)

    assert time.monotonic() - started_at >= 0.3
    assert results['quick'] == 'here'
    assert isinstance(results['slow'], NoAnswer)


def test_many_calls_share_the_connections_of_a_few(answer: threading.Event) -> None:
    """A handshake for each would cost more than it saves; who waits for its turn is not forgotten."""
    at_once: List[int] = []
    under_way: Set[int] = set()

    def call(number: int) -> int:
        under_way.add(number)
        at_once.append(len(under_way))
        time.sleep(0.01)
        under_way.discard(number)
        return number

    results = run_together({str(n): functools.partial(call, n) for n in range(3 * CONNECTIONS)}, LONG)

    assert results == {str(n): n for n in range(3 * CONNECTIONS)}
    assert 1 < max(at_once) <= CONNECTIONS


def test_calls_that_did_not_have_their_turn_in_time_are_not_made(answer: threading.Event) -> None:
    made: List[int] = []
    calls: Dict[str, Callable[[], Any]] = {f'held {n}': lambda: answer.wait(LONG) for n in range(CONNECTIONS)}

    before = set(threading.enumerate())

    results = run_together({**calls, 'later': lambda: made.append(1)}, 0.3)
    started = set(threading.enumerate()) - before
    answer.set()

    assert isinstance(results['later'], NoAnswer)
    for thread in started:
        thread.join(LONG)
    assert len(started) == CONNECTIONS and not made


def test_while_answers_are_outstanding_it_is_called_again_after_each_pause(answer: threading.Event) -> None:
    def answer_the_fifth_time() -> None:
        if len(meanwhile.times) == 5:
            answer.set()

    meanwhile = Meanwhile(0.2, 0.0, 0.0, 0.3, does=answer_the_fifth_time)

    assert run_together({'call': lambda: answer.wait(LONG)}, LONG, meanwhile) == {'call': True}

    pauses = [later - earlier for earlier, later in zip(meanwhile.times, meanwhile.times[1:])]
    assert pauses[0] >= 0.2 and pauses[3] >= 0.3


def test_it_is_called_once_if_it_need_not_be_called_again(answer: threading.Event) -> None:
    meanwhile = Meanwhile(math.inf)

    run_together({'call': lambda: answer.wait(LONG)}, 0.3, meanwhile)

    assert len(meanwhile.times) == 1


def test_it_is_called_no_more_once_all_answers_are_in(answer: threading.Event) -> None:
    done = threading.Event()

    def call() -> str:
        answer.wait(LONG)
        done.set()
        return 'here'

    def let_it_answer() -> None:
        answer.set()
        done.wait(LONG)
        time.sleep(0.2)  # the time from the call's end to the queue

    meanwhile = Meanwhile(0.0, does=let_it_answer)

    assert run_together({'call': call}, LONG, meanwhile) == {'call': 'here'}
    assert len(meanwhile.times) == 1


def test_answers_wake_it_neither_early_nor_late(answer: threading.Event) -> None:
    def answer_the_second_time() -> None:
        if len(meanwhile.times) == 2:
            answer.set()

    meanwhile = Meanwhile(0.5, math.inf, does=answer_the_second_time)
    calls = {str(number): lambda: None for number in range(20)}

    run_together({**calls, 'slow': lambda: answer.wait(LONG)}, LONG, meanwhile)

    assert 0.5 <= meanwhile.times[1] - meanwhile.times[0] < 5.0


def test_it_is_called_no_more_after_the_deadline(answer: threading.Event) -> None:
    meanwhile = Meanwhile(0.0, does=lambda: time.sleep(0.4))

    results = run_together({'call': lambda: answer.wait(LONG)}, 0.3, meanwhile)

    assert len(meanwhile.times) == 1
    assert isinstance(results['call'], NoAnswer)


def test_what_came_in_time_counts_though_what_was_done_meanwhile_took_longer() -> None:
    meanwhile = Meanwhile(0.0, does=lambda: time.sleep(0.9))

    results = run_together({'in time': lambda: 'here', 'late': lambda: time.sleep(0.6)}, 0.3, meanwhile)

    assert results['in time'] == 'here'
    assert isinstance(results['late'], NoAnswer)


@pytest.mark.parametrize('started', [0, 1])
def test_a_thread_that_cannot_start_is_an_answer(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    start, left = threading.Thread.start, [None] * started

    def start_some(thread: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, 'start', start_some)
    calls = {str(number): lambda: 'here' for number in range(3)}

    results = run_together(calls, LONG)

    assert list(results) == list(calls)
    assert all(isinstance(result, RuntimeError) or result == 'here' and started for result in results.values())


# On their way

STOPPED = b'<StopInstancesResponse><requestId>1-2-3</requestId><instancesSet/></StopInstancesResponse>'


class Endpoint(http.server.ThreadingHTTPServer):
    """EC2's endpoint at the loopback interface, with connections that are kept; it answers what a test wants."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('localhost', 0), Handler)
        self.status, self.body = 200, STOPPED
        self.headers: Dict[str, str] = {}
        self.callers: List[Tuple[str, int]] = []  # of each call, by the port of its connection
        self.goes_on = threading.Event()  # answers wait for it
        self.goes_on.set()
        self.signed_by: List[str] = []            # the access key of each


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: Endpoint

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers['Content-Length']))
        self.server.callers.append(self.client_address)
        self.server.goes_on.wait(LONG)
        self.server.signed_by.append(self.headers['Authorization'].partition('Credential=')[2].partition('/')[0])
        self.send_response(self.server.status)
        self.send_header('Content-Length', str(len(self.server.body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def serving(server: http.server.HTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Root's home directory; nothing of AWS is set there, nor in the environment."""
    for name in [name for name in os.environ if name.startswith('AWS_')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('HOME', str(tmp_path))
    return tmp_path


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, imds: Imds) -> Iterator[Endpoint]:
    server = Endpoint()
    monkeypatch.setenv('AWS_ENDPOINT_URL_EC2', f'http://localhost:{server.server_port}')
    with serving(server):
        yield server


@pytest.fixture
def tls(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Endpoint:
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


def stop(client: Any, deadline: float = LONG) -> Any:
    return run_together({'stop': lambda: client.stop_instances(InstanceIds=[PEER_ID])}, deadline)['stop']


def user_timeouts(server: Endpoint) -> Set[int]:
    """Return how long (ms) the kernel repeats what is lost, on this process's connections to the server."""
    found = set()
    for descriptor in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):  # no socket, or one that has ended
            with socket.socket(fileno=os.dup(int(descriptor))) as one:
                if one.getpeername()[:2] == server.server_address[:2]:
                    found.add(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    return found


@pytest.mark.parametrize('kind', ['endpoint', 'tls'])
def test_the_kernel_repeats_a_call_no_longer_than_it_may_take(kind: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(kind)
    client = connect('us-east-1')

    assert has_answered(stop(client, 3.0))
    [first] = user_timeouts(server)
    assert has_answered(stop(client, LONG))
    [second] = user_timeouts(server)

    assert 2000 < first <= 3000
    assert second == READ_TIMEOUT * 1000
    assert len(set(server.callers)) == 1, 'the connection was kept'


@contextlib.contextmanager
def names_take(seconds: float) -> Iterator[None]:
    """Let name resolution take so long."""
    resolve = socket.getaddrinfo

    def resolve_slowly(*args: Any, **names: Any) -> Any:
        time.sleep(seconds)
        return resolve(*args, **names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, 'getaddrinfo', resolve_slowly)
        yield


@pytest.mark.parametrize('kind', ['endpoint', 'tls'])
def test_a_call_whose_name_was_resolved_too_late_is_not_sent(kind: str, request: pytest.FixtureRequest) -> None:
    server, ended = request.getfixturevalue(kind), threading.Event()
    client = connect('us-east-1')

    def call() -> None:
        try:
            client.stop_instances(InstanceIds=[PEER_ID])
        finally:
            ended.set()

    with names_take(1.0):
        assert isinstance(run_together({'stop': call}, 0.5)['stop'], NotSent)
        assert ended.wait(LONG)
    assert server.callers == []


def test_what_was_not_sent_is_known_though_something_else_held_up_who_asks(endpoint: Endpoint) -> None:
    """The thread of the call ends, with an error of botocore's, before the caller gives it up."""
    client = connect('us-east-1')

    with names_take(0.5):
        result = run_together({'stop': lambda: client.stop_instances(InstanceIds=[PEER_ID])}, 0.3,
                              Meanwhile(0.0, does=lambda: time.sleep(1.5)))['stop']

    assert isinstance(result, NotSent) and endpoint.callers == []


def stop_after_sending(client: Any, seconds: float, timeout: float = LONG) -> Any:
    """Stop the peer, and wait for the answer so long from sending."""
    return run_together({'stop': lambda: client.stop_instances(InstanceIds=[PEER_ID])}, timeout,
                        after_sending=seconds)['stop']


@pytest.mark.parametrize('kind', ['endpoint', 'tls'])
def test_the_limit_of_an_answer_counts_from_sending(kind: str, request: pytest.FixtureRequest) -> None:
    """What it takes before to find and reach EC2 would leave nothing of a second and a half."""
    server = request.getfixturevalue(kind)
    client = connect('us-east-1')

    with names_take(1.0):
        assert has_answered(stop_after_sending(client, 0.9))
    [repeated] = user_timeouts(server)
    assert 0 < repeated <= 900


def test_a_call_that_was_sent_and_has_no_answer_by_then_may_have_been_done(endpoint: Endpoint) -> None:
    endpoint.goes_on.clear()
    started_at = time.monotonic()

    result = stop_after_sending(connect('us-east-1'), 0.3)

    assert 0.3 <= time.monotonic() - started_at < READ_TIMEOUT
    endpoint.goes_on.set()
    assert isinstance(result, NoAnswer) and not isinstance(result, NotSent)
    assert len(endpoint.callers) == 1


def test_the_deadline_bounds_what_is_sent_late(endpoint: Endpoint) -> None:
    endpoint.goes_on.clear()
    started_at = time.monotonic()

    with names_take(0.5):
        result = stop_after_sending(connect('us-east-1'), LONG, timeout=0.8)

    assert time.monotonic() - started_at < READ_TIMEOUT
    endpoint.goes_on.set()
    assert isinstance(result, NoAnswer) and not isinstance(result, NotSent)


def test_each_call_has_its_own_limit(endpoint: Endpoint) -> None:
    """One is sent at once and not answered; one that is sent later than the other's limit is."""
    client, other = connect('us-east-1'), connect('us-east-1')
    endpoint.goes_on.clear()

    def send_later() -> Any:
        time.sleep(1.0)
        endpoint.goes_on.set()
        return other.stop_instances(InstanceIds=[PEER_ID])

    results = run_together({'at once': lambda: client.stop_instances(InstanceIds=[OWN]), 'later': send_later}, LONG,
                           after_sending=0.6)

    assert type(results['at once']) is NoAnswer
    assert has_answered(results['later'])


def test_a_second_request_of_a_call_has_the_limit_anew_and_is_not_sent_once_that_is_over(endpoint: Endpoint) -> None:
    client, ended = connect('us-east-1'), threading.Event()

    def stop_twice(pause: float) -> Any:
        client.stop_instances(InstanceIds=[PEER_ID])
        time.sleep(pause)
        try:
            return client.stop_instances(InstanceIds=[PEER_ID])
        finally:
            ended.set()

    assert has_answered(run_together({'twice': lambda: stop_twice(0.6)}, LONG, after_sending=1.5)['twice'])
    ended.clear()
    given_up = run_together({'twice': lambda: stop_twice(1.0)}, LONG, after_sending=0.5)['twice']

    assert isinstance(given_up, NoAnswer)
    assert ended.wait(LONG) and len(endpoint.callers) == 3


# What comes back

PAGE = b'<html><body><h1>Bad Gateway</h1></body></html>'
ERROR = (b'<Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors>'
         b'<RequestID>1-2-3</RequestID></Response>')


@pytest.mark.parametrize('status, body, words', [
    (502, PAGE, 'HTTP 502'),
    (502, b'', 'HTTP 502'),
    (403, PAGE, 'HTTP 403'),
    (302, PAGE, 'HTTP 302'),
    (200, PAGE, 'HTTP 200'),
    (503, b'<!DOCTYPE html><html><body>Sorry<br></body></html>', 'Unable to parse'),
    (403, b'Go away', 'Unable to parse'),
    (403, b'', 'Unable to parse'),
    (200, b'', 'Unable to parse'),
    (200, STOPPED[:-5], 'Unable to parse'),
    (400, ERROR[:50], 'Unable to parse')])
def test_what_something_in_between_says_is_no_answer_of_ec2(endpoint: Endpoint, status: int, body: bytes,
                                                            words: str) -> None:
    endpoint.status, endpoint.body = status, body

    result = stop(connect('us-east-1'))

    assert isinstance(result, Exception)
    assert not has_answered(result)
    assert code_of(result) == ''
    assert words in in_words(result)


def test_an_error_with_a_code_and_a_success_are_answers_of_ec2(endpoint: Endpoint) -> None:
    client = connect('us-east-1')
    assert has_answered(stop(client))

    endpoint.status, endpoint.body = 503, ERROR % (b'Unavailable', b'Try again.\nLater.')
    result = stop(client)

    assert has_answered(result)
    assert code_of(result) == 'Unavailable'
    assert in_words(result) == 'Unavailable: Try again. Later.'


def refusal(code: str, **headers: str) -> ClientError:
    return ClientError({'Error': {'Code': code, 'Message': ''}, 'ResponseMetadata': {
        'HTTPStatusCode': 400, 'HTTPHeaders': headers}}, 'StopInstances')  # type: ignore[typeddict-item]


@pytest.mark.parametrize('response', [{}, {'Error': {}}, {'Error': {'Code': None}}, {'Error': {'Code': ''}}])
def test_an_error_that_tells_nothing_is_told_too(response: Any) -> None:
    error = ClientError(response, 'StopInstances')

    assert in_words(error) == 'HTTP error without an error code'
    assert code_of(error) == ''


@pytest.mark.parametrize('code', ['AuthFailure', 'InvalidClientTokenId', 'UnrecognizedClientException', 'ExpiredToken',
                                  'RequestExpired'])
def test_refused_credentials_are_lost(code: str) -> None:
    assert lost_credentials(refusal(code))


def test_credentials_that_could_not_be_had_are_lost_and_nothing_else_is() -> None:
    assert lost_credentials(NoCredentialsError())
    assert lost_credentials(CredentialRetrievalError(provider='iam-role', error_msg='no'))
    others: List[Any] = [refusal('UnauthorizedOperation'), NoAnswer('none'), {}, None]
    for result in others:
        assert not lost_credentials(result)


def test_the_skew_of_the_clock_comes_from_the_date_of_the_answer(endpoint: Endpoint) -> None:
    for skew in (400.0, -400.0):
        date = email.utils.formatdate(time.time() - skew, usegmt=True)
        assert abs(clock_skew(refusal('AuthFailure', date=date)) - skew) < 3.0

    endpoint.status, endpoint.body = 401, ERROR % (b'AuthFailure', b'')
    assert abs(clock_skew(stop(connect('us-east-1')))) < 60.0


@pytest.mark.parametrize('result', [refusal('AuthFailure'), refusal('AuthFailure', date='soon'),
                                    ClientError({}, 'StopInstances'), NoAnswer('none'), None, {}])
def test_no_skew_is_known_without_a_date(result: object) -> None:
    assert clock_skew(result) == 0.0


# With which credentials

class Imds(http.server.ThreadingHTTPServer):
    """The metadata service, as far as a role's credentials need it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), ImdsHandler)
        self.role, self.key, self.lifetime = 'NAT_Monitor', 'ASIAROLE', datetime.timedelta(days=1)
        self.asked: List[str] = []


class ImdsHandler(http.server.BaseHTTPRequestHandler):
    server: Imds

    def do_PUT(self) -> None:
        self.reply('token')

    def do_GET(self) -> None:
        name = self.path.rpartition('/')[2]
        expires = datetime.datetime.now(datetime.timezone.utc) + self.server.lifetime
        self.reply(self.server.role if not name else json.dumps({
            'Code': 'Success', 'Type': 'AWS-HMAC', 'AccessKeyId': self.server.key, 'SecretAccessKey': 'secret',
            'Token': 'token', 'LastUpdated': '2020-01-01T00:00:00Z', 'Expiration': f'{expires:%Y-%m-%dT%H:%M:%SZ}'}))

    def do_POST(self) -> None:  # to a proxy
        self.reply('')

    do_CONNECT = do_POST

    def reply(self, text: str) -> None:
        self.server.asked.append(f'{self.command} {self.path}')
        self.send_response(200 if text else 404)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch, surroundings: Path) -> Iterator[Imds]:
    server = Imds()
    monkeypatch.setenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    with serving(server):
        yield server


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Imds]:
    """A proxy on another instance, which has a role, too; no host is to be reached without it."""
    server = Imds()
    server.key = 'ASIAOFPROXY'
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    with serving(server):
        yield server


def key_of(client: Any) -> str:
    """Return the access key with which a client signs."""
    url = str(client.generate_presigned_url('stop_instances', {'InstanceIds': [PEER_ID]}))
    return next(key for key in ('ASIAROLE', 'ASIAOFPROXY', 'AKIAENVIRONMENT', 'AKIAFILE') if key in url)


def left_behind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave an administrator's keys in the environment and in root's home directory."""
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKIAENVIRONMENT')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    (home / '.aws').mkdir()
    (home / '.aws/credentials').write_text('[default]\naws_access_key_id=AKIAFILE\naws_secret_access_key=secret\n')


def test_the_role_alone_counts_whatever_an_administrator_has_left(imds: Imds, surroundings: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(surroundings, monkeypatch)
    assert key_of(connect('us-east-1')) == 'ASIAROLE'

    monkeypatch.delenv('AWS_ACCESS_KEY_ID')
    assert key_of(connect('us-east-1')) == 'ASIAROLE'

    monkeypatch.setenv('AWS_PROFILE', 'none-of-that-name')
    (surroundings / '.aws/config').write_text('[broken')
    assert key_of(connect('us-east-1')) == 'ASIAROLE'


def test_without_a_role_nothing_else_is_taken_instead(imds: Imds, surroundings: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(surroundings, monkeypatch)
    imds.role = ''

    result = stop(connect('us-east-1'))

    assert isinstance(result, NoCredentialsError)
    assert lost_credentials(result)
    imds.role = 'NAT_Monitor'
    assert key_of(connect('us-east-1')) == 'ASIAROLE'


def test_with_an_endpoint_of_its_own_the_role_counts_too(endpoint: Endpoint, surroundings: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(surroundings, monkeypatch)

    stop(connect('us-east-1'))

    assert endpoint.signed_by == ['ASIAROLE']


@pytest.mark.parametrize('name', ['http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'])
@pytest.mark.parametrize('kind', ['endpoint', 'tls'])
def test_nothing_is_asked_of_a_proxy(kind: str, name: str, request: pytest.FixtureRequest, proxy: Imds,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    server = request.getfixturevalue(kind)
    monkeypatch.setenv(name, f'http://127.0.0.1:{proxy.server_port}')

    assert has_answered(stop(connect('us-east-1')))

    assert server.signed_by == ['ASIAROLE']
    assert proxy.asked == []


def test_credentials_that_expire_are_fetched_past_the_proxy_too(imds: Imds, proxy: Imds, endpoint: Endpoint,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('http_proxy', f'http://127.0.0.1:{proxy.server_port}')
    monkeypatch.setattr('random.randint', lambda least, most: least)  # by which botocore puts off what is urgent
    imds.lifetime = datetime.timedelta(minutes=1)
    imds.key = 'ASIAEARLIER'
    client = connect('us-east-1')
    imds.lifetime, imds.key = datetime.timedelta(days=1), 'ASIAROLE'

    stop(client)

    assert endpoint.signed_by == ['ASIAROLE']
    assert proxy.asked == []


@pytest.mark.parametrize('name, value', [
    ('AWS_EC2_METADATA_DISABLED', 'true'), ('AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE', 'IPv6'),
    ('AWS_ENDPOINT_URL', 'http://127.0.0.1:9'), ('AWS_USE_FIPS_ENDPOINT', 'true'),
    ('AWS_USE_DUALSTACK_ENDPOINT', 'true'), ('AWS_DEFAULT_REGION', 'eu-west-1'), ('AWS_REGION', 'eu-west-1'),
    ('AWS_DATA_PATH', '/nowhere'), ('AWS_DEFAULTS_MODE', 'none-of-that-name'), ('AWS_RETRY_MODE', 'adaptive'),
    ('AWS_METADATA_SERVICE_TIMEOUT', 'soon'), ('AWS_CONFIG_FILE', '/nowhere'), ('REQUESTS_CA_BUNDLE', '/nowhere')])
def test_no_other_variable_counts(imds: Imds, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    client: Any = connect('us-east-1')

    assert client.meta.endpoint_url == 'https://ec2.us-east-1.amazonaws.com'
    assert client.meta.config.retries['mode'] == 'standard'
    assert key_of(client) == 'ASIAROLE'


@pytest.mark.parametrize('text', ['endpoint_url = http://127.0.0.1:9', 'use_fips_endpoint = true',
                                  'services = local\n[services local]\nec2 =\n  endpoint_url = http://127.0.0.1:9'])
def test_no_file_of_settings_counts(imds: Imds, surroundings: Path, text: str) -> None:
    (surroundings / '.aws').mkdir()
    (surroundings / '.aws/config').write_text(f'[default]\n{text}\n')

    assert connect('us-east-1').meta.endpoint_url == 'https://ec2.us-east-1.amazonaws.com'


def test_a_bundle_of_authorities_counts_and_that_of_requests_does_not(tls: Endpoint, monkeypatch: pytest.MonkeyPatch
                                                                      ) -> None:
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', '/nowhere')
    assert has_answered(stop(connect('us-east-1')))

    monkeypatch.setenv('REQUESTS_CA_BUNDLE', os.environ['AWS_CA_BUNDLE'])
    monkeypatch.delenv('AWS_CA_BUNDLE')
    assert 'CERTIFICATE_VERIFY_FAILED' in in_words(stop(connect('us-east-1')))


def test_the_environment_stays_as_it_is_for_programs_that_are_started(imds: Imds, monkeypatch: pytest.MonkeyPatch
                                                                      ) -> None:
    """The command of NOTIFY_COMMAND may need the proxy for calls of its own."""
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    before = dict(os.environ)

    key_of(connect('us-east-1'))

    assert os.environ == before


# What is read from it

@pytest.fixture
def client() -> Any:
    return boto3.client('ec2', 'us-east-1', aws_access_key_id='key', aws_secret_access_key='secret')


@pytest.fixture
def ec2(client: Any) -> Iterator[botocore.stub.Stubber]:
    """What EC2 answers to the calls of `client`."""
    with botocore.stub.Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


STATIC = {'DestinationCidrBlock': '0.0.0.0/0', 'InstanceId': OWN, 'Origin': 'CreateRoute', 'State': 'active'}
OTHER_KINDS = [{'DestinationIpv6CidrBlock': '::/0', 'EgressOnlyInternetGatewayId': 'eigw-1', 'Origin': 'CreateRoute'},
               {'DestinationPrefixListId': 'pl-1', 'GatewayId': 'vpce-1', 'Origin': 'CreateRoute'},
               {'DestinationCidrBlock': '10.0.0.0/16', 'GatewayId': 'local', 'Origin': 'CreateRouteTable'}]


def tables_with(routes: List[Dict[str, Any]]) -> Dict[str, Any]:
    return {'RouteTables': [{'RouteTableId': TABLE, 'Routes': routes}]}


@pytest.mark.parametrize('origin', ['EnableVgwRoutePropagation', 'Advertisement'])
@pytest.mark.parametrize('order', [1, -1])
def test_a_default_route_that_a_gateway_tells_does_not_count(client: Any, ec2: botocore.stub.Stubber, origin: str,
                                                             order: int) -> None:
    told = {'DestinationCidrBlock': '0.0.0.0/0', 'GatewayId': 'vgw-1', 'Origin': origin, 'State': 'active'}
    ec2.add_response('describe_route_tables', tables_with([told, STATIC][::order]))
    ec2.add_response('describe_route_tables', tables_with([told]))

    assert describe_tables(client, (TABLE,), OWN, PEER_ID) == {TABLE: SELF}
    assert describe_tables(client, (TABLE,), OWN, PEER_ID) == {TABLE: NOBODY}


@pytest.mark.parametrize('order', [1, -1])
def test_default_routes_of_other_kinds_change_nothing(order: int) -> None:
    assert default_route({'Routes': [*OTHER_KINDS, STATIC][::order]}) == STATIC
    assert default_route({'Routes': OTHER_KINDS[::order]}) == {}


INTERFACES = {'eni-1': OWN, 'eni-2': OWN, 'eni-3': PEER_ID}


@pytest.mark.parametrize('named, holder', [
    ({'NetworkInterfaceId': 'eni-2'}, SELF), ({'NetworkInterfaceId': 'eni-3'}, PEER),
    ({'NetworkInterfaceId': 'eni-3', 'InstanceId': ''}, PEER), ({'NetworkInterfaceId': 'eni-4'}, OTHER),
    ({'NetworkInterfaceId': 'eni-1', 'InstanceId': PEER_ID}, PEER), ({'NatGatewayId': 'nat-1'}, OTHER)])
def test_who_is_named_by_a_network_interface_alone_holds_it_too(client: Any, ec2: botocore.stub.Stubber,
                                                                named: Dict[str, str], holder: str) -> None:
    ec2.add_response('describe_route_tables', tables_with([{'DestinationCidrBlock': '0.0.0.0/0', **named}]))

    assert describe_tables(client, (TABLE,), OWN, PEER_ID, INTERFACES) == {TABLE: holder}
    assert holder_of(named, OWN, PEER_ID, INTERFACES) == holder


def test_an_address_at_a_network_interface_alone_has_its_holder(client: Any, ec2: botocore.stub.Stubber) -> None:
    answer = {'Addresses': [{'PublicIp': ADDRESS, 'AllocationId': ALLOCATION, 'AssociationId': 'eipassoc-1',
                             'NetworkInterfaceId': 'eni-3'}]}
    ec2.add_response('describe_addresses', answer)
    ec2.add_response('describe_addresses', answer)
    ec2.add_response('describe_addresses', {'Addresses': []})

    assert describe_address(client, ADDRESS, OWN, PEER_ID, INTERFACES) == (PEER, ALLOCATION)
    assert describe_address(client, ADDRESS, OWN, PEER_ID) == (OTHER, ALLOCATION)
    assert describe_address(client, ADDRESS, OWN, PEER_ID) == (ABSENT, '')


def test_both_of_the_pair_are_described_by_one_call(client: Any, ec2: botocore.stub.Stubber) -> None:
    own = {'InstanceId': OWN, 'PrivateIpAddress': '10.0.0.11', 'Tags': [{'Key': 'Name', 'Value': 'nat'}],
           'NetworkInterfaces': [{'NetworkInterfaceId': 'eni-1'}, {'NetworkInterfaceId': 'eni-2'}],
           'StateTransitionReason': '', 'SourceDestCheck': True}
    peer = {'InstanceId': PEER_ID, 'StateTransitionReason': 'User initiated', 'StateReason': {
        'Code': 'Client.InternalError', 'Message': 'Client.InternalError: Client error on launch'}}
    ec2.add_response('describe_instances', {'Reservations': [{'Instances': [own]}, {'Instances': [peer]}]},
                     {'Filters': [{'Name': 'instance-id', 'Values': [OWN, PEER_ID]}]})

    assert describe_pair(client, OWN, PEER_ID) == {
        OWN: InstanceFacts('10.0.0.11', ('eni-1', 'eni-2'), {'Name': 'nat'}, '', True),
        PEER_ID: InstanceFacts('', (), {}, 'Client.InternalError: Client error on launch', False)}


def test_an_instance_that_ec2_does_not_know_is_missing(client: Any, ec2: botocore.stub.Stubber) -> None:
    ec2.add_response('describe_instances', {'Reservations': [
        {'Instances': [{'InstanceId': OWN, 'StateTransitionReason': 'User initiated'}]}]})

    assert describe_pair(client, OWN, PEER_ID) == {OWN: InstanceFacts('', (), {}, 'User initiated', False)}


SKIP = {'SkipOsShutdown': True}


def members_of_stop(client: Any) -> Any:
    """Return the parameters of StopInstances that a client knows."""
    return client.meta.service_model.operation_model('StopInstances').input_shape.members


@pytest.mark.parametrize('step, arguments', [(STOP, {'Force': False}), (FORCE, {'Force': True})])
@pytest.mark.parametrize('code', ['OperationNotPermitted', 'UnsupportedOperation', 'InvalidParameterCombination',
                                  'UnknownParameter', 'InternalError'])
def test_a_step_that_is_refused_with_an_option_is_taken_at_once_without_it_and_so_are_later_ones(
        client: Any, ec2: botocore.stub.Stubber, step: str, arguments: Any, code: str) -> None:
    members_of_stop(client).setdefault('SkipOsShutdown', members_of_stop(client)['Force'])
    options: Dict[str, Any] = dict(SKIP)
    stop = {'InstanceIds': [PEER_ID], **arguments}
    ec2.add_response('stop_instances', {}, {**stop, **SKIP})
    take_step(client, PEER_ID, step, options)
    ec2.add_client_error('stop_instances', code, expected_params={**stop, **SKIP})
    ec2.add_response('stop_instances', {}, stop)
    take_step(client, PEER_ID, step, options)
    ec2.assert_no_pending_responses()

    ec2.add_response('stop_instances', {}, stop)
    take_step(client, PEER_ID, step, options)


def test_a_step_that_is_refused_without_an_option_is_refused(client: Any, ec2: botocore.stub.Stubber) -> None:
    ec2.add_client_error('stop_instances', 'IncorrectInstanceState', expected_params={
        'InstanceIds': [PEER_ID], 'Force': False})
    with pytest.raises(ClientError, match='IncorrectInstanceState'):
        take_step(client, PEER_ID, STOP, {})

    members_of_stop(client).setdefault('SkipOsShutdown', members_of_stop(client)['Force'])
    ec2.add_client_error('stop_instances', 'OperationNotPermitted')
    ec2.add_client_error('stop_instances', 'UnauthorizedOperation')
    with pytest.raises(ClientError, match='UnauthorizedOperation'):
        take_step(client, PEER_ID, FORCE, dict(SKIP))


def test_a_stop_goes_without_an_option_that_is_newer_than_the_client(endpoint: Endpoint) -> None:
    client, options = connect('us-east-1'), dict(SKIP)
    members_of_stop(client).pop('SkipOsShutdown', None)

    take_step(client, PEER_ID, FORCE, options)

    assert options == {} and len(endpoint.callers) == 1


def test_an_answer_that_is_lost_takes_no_option_away(endpoint: Endpoint) -> None:
    """The step may have been taken."""
    client, options = connect('us-east-1'), dict(SKIP)
    members_of_stop(client).setdefault('SkipOsShutdown', members_of_stop(client)['Force'])
    endpoint.body = b'the page of a proxy'

    with pytest.raises(Exception):
        take_step(client, PEER_ID, FORCE, options)

    assert options == SKIP and len(endpoint.callers) == 1


def test_an_address_at_a_secondary_private_address_is_held_by_nobody(client: Any, ec2: botocore.stub.Stubber) -> None:
    """All traffic leaves with the primary one."""
    facts = {PEER_ID: InstanceFacts('10.0.0.11', ('10.0.0.11', '10.0.0.12'), ('eni-3',))}
    for private in ('10.0.0.12', '10.0.0.11'):
        ec2.add_response('describe_addresses', {'Addresses': [{
            'PublicIp': ADDRESS, 'AllocationId': ALLOCATION, 'AssociationId': 'eipassoc-1', 'InstanceId': PEER_ID,
            'PrivateIpAddress': private}]})

    assert describe_address(client, ADDRESS, OWN, PEER_ID, facts) == (NOBODY, ALLOCATION)
    assert describe_address(client, ADDRESS, OWN, PEER_ID, facts) == (PEER, ALLOCATION)
