"""The metadata client against a real HTTP server that behaves well and badly."""
from __future__ import annotations

import threading
from typing import Iterator, Tuple

import pytest
import requests

from nat_monitor import Metadata

from tests.unit.web import Asked, Server, serving


class Service(Server):
    """IMDSv2 in small; a status says how it misbehaves, 0: it hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.token_status, self.item_status, self.ends = 200, 200, threading.Event()
        self.url = f'http://127.0.0.1:{self.server_port}'

    def answer(self, asked: Asked) -> Tuple[int, bytes]:
        if asked.what.startswith('PUT'):
            return self.token_status, b'a-token'
        if not self.item_status:
            self.ends.wait(100)
        known = asked.headers.get('x-aws-ec2-metadata-token') == 'a-token'
        return self.item_status if known else 401, b'i-0123456789abcdef0\n'


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(Service()) as server:
        yield server
        server.ends.set()


def test_an_item_is_got_with_a_token(service: Service) -> None:
    assert Metadata(service.url).get('instance-id') == 'i-0123456789abcdef0'

    assert [one.what for one in service.asked] == ['PUT /latest/api/token', 'GET /latest/meta-data/instance-id']
    assert 1 <= int(service.asked[0].headers['x-aws-ec2-metadata-token-ttl-seconds']) <= 21600


@pytest.mark.parametrize('token, item', [(403, 200), (503, 200), (200, 401), (200, 403), (200, 404), (200, 503)])
def test_an_error_is_raised(service: Service, token: int, item: int) -> None:
    service.token_status, service.item_status = token, item

    with pytest.raises(requests.HTTPError, match=str(max(token, item))):
        Metadata(service.url).get('instance-id')


def test_a_service_that_hangs_is_given_up(service: Service) -> None:
    service.item_status = 0

    with pytest.raises(requests.Timeout):
        Metadata(service.url).get('instance-id')


def test_a_proxy_never_sees_the_token(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('http_proxy', 'HTTP_PROXY', 'ALL_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)

    assert Metadata(service.url).get('instance-id') == 'i-0123456789abcdef0'


def test_the_service_follows_the_variable_of_the_aws_sdks(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', raising=False)
    assert Metadata().base_url == 'http://169.254.169.254'

    monkeypatch.setenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', service.url + '/')

    assert Metadata().get('instance-id') == 'i-0123456789abcdef0'
