"""The metadata client against a real HTTP server that behaves well and badly."""
from __future__ import annotations

import contextlib
import http.server
import threading
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import requests

import nat_monitor


class Service(http.server.BaseHTTPRequestHandler):
    """IMDSv2 in small: the class attributes say how it misbehaves and what it was asked."""

    token_status, item_status = 200, 200
    hang = threading.Event()
    asked: List[Tuple[str, str, Dict[str, str]]] = []

    def answer(self, status: int, text: str) -> None:
        self.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        self.answer(self.token_status, 'a-token')

    def do_GET(self) -> None:
        if self.item_status == 0:
            self.hang.wait(20)
            return
        known = self.headers.get('X-aws-ec2-metadata-token') == 'a-token'
        self.answer(self.item_status if known else 401, 'i-0123456789abcdef0\n')

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Service)
    Service.token_status = Service.item_status = 200
    Service.asked = []
    Service.hang = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    Service.hang.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_item_is_got_with_a_token(service: str) -> None:
    assert nat_monitor.Metadata(service).get('instance-id') == 'i-0123456789abcdef0'

    assert [(verb, path) for verb, path, _ in Service.asked] == [
        ('PUT', '/latest/api/token'), ('GET', '/latest/meta-data/instance-id')]
    assert 1 <= int(Service.asked[0][2]['x-aws-ec2-metadata-token-ttl-seconds']) <= 21600


@pytest.mark.parametrize('status', [401, 403, 404, 503])
def test_an_error_of_the_item_is_raised(service: str, status: int) -> None:
    Service.item_status = status

    with pytest.raises(requests.HTTPError, match=str(status)):
        nat_monitor.Metadata(service).get('instance-id')


@pytest.mark.parametrize('status', [403, 503])
def test_an_error_of_the_token_is_raised(service: str, status: int) -> None:
    Service.token_status = status

    with pytest.raises(requests.HTTPError, match=str(status)):
        nat_monitor.Metadata(service).get('instance-id')


def test_a_service_that_hangs_is_given_up(service: str) -> None:
    Service.item_status = 0

    with pytest.raises(requests.Timeout):
        nat_monitor.Metadata(service).get('instance-id')


def test_a_proxy_never_sees_the_token(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('http_proxy', 'HTTP_PROXY', 'ALL_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)

    assert nat_monitor.Metadata(service).get('instance-id') == 'i-0123456789abcdef0'


def test_the_service_follows_the_variable_of_the_aws_sdks(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(KeyError):
        monkeypatch.delenv('AWS_EC2_METADATA_SERVICE_ENDPOINT')
    assert nat_monitor.Metadata().base_url == 'http://169.254.169.254'

    monkeypatch.setenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', service + '/')

    assert nat_monitor.Metadata().get('instance-id') == 'i-0123456789abcdef0'
