"""A web server at the loopback interface, of which a test says what it answers."""
from __future__ import annotations

import contextlib
import http.server
import threading
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple, TypeVar


class Asked(NamedTuple):
    """A request: its names of headers are in small letters."""

    what: str  # verb and path
    caller: Tuple[str, int]
    headers: Dict[str, str]


class Server(http.server.ThreadingHTTPServer):
    """Notes what it is asked, by connections that are kept."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('localhost', 0), Handler)
        self.asked: List[Asked] = []

    def answer(self, asked: Asked) -> Tuple[int, bytes]:
        """Return the status and the body of the answer."""
        raise NotImplementedError


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers['Content-Length'] or 0))
        asked = Asked(f'{self.command} {self.path}', self.client_address,
                      {name.lower(): value for name, value in self.headers.items()})
        self.server.asked.append(asked)
        status, body = self.server.answer(asked)
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_CONNECT = do_POST

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


Some = TypeVar('Some', bound=Server)


@contextlib.contextmanager
def serving(server: Some) -> Iterator[Some]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
