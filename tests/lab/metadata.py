"""The metadata service of an instance: IMDSv2 only, at 169.254.169.254 inside it."""

import http.server
import json
import secrets
import socket
import threading
import time
from typing import Any, Dict, Optional

from .network import METADATA, Node

ROLE = 'NAT_Monitor'
CREDENTIALS = 'iam/security-credentials/'


class Metadata(http.server.ThreadingHTTPServer):
    """Serves one instance; what goes wrong with it is set by its attributes, at any time."""

    daemon_threads = True

    def __init__(self, node: Node, instance_id: str, region: str) -> None:
        super().__init__((METADATA, 80), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = node.socket(socket.SOCK_STREAM, METADATA, 80)
        self.status: Optional[int] = None  # an HTTP status for everything, e.g. 403: switched off
        self.has_credentials = True
        self.tokens: Dict[str, float] = {}  # and when they expire, monotonic
        self.items = {'instance-id': instance_id, 'placement/region': region}
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True, name=f'metadata {node.name}').start()

    def item(self, name: str) -> Optional[str]:
        """Return the value of an item, or None if there is no such item now."""
        if name.startswith(CREDENTIALS) and self.has_credentials:
            if name == CREDENTIALS:
                return ROLE
            if name == CREDENTIALS + ROLE:
                return json.dumps({
                    'Code': 'Success', 'Type': 'AWS-HMAC', 'AccessKeyId': 'ASIAEXAMPLE', 'SecretAccessKey': 'secret',
                    'Token': 'token', 'LastUpdated': '2020-01-01T00:00:00Z', 'Expiration': '2099-01-01T00:00:00Z'})
        return self.items.get(name)

    def close(self) -> None:
        """End the service."""
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Token by PUT, items by GET with the token; 401 without a valid one."""

    server: Metadata

    def do_PUT(self) -> None:
        seconds = self.headers.get('X-aws-ec2-metadata-token-ttl-seconds', '')
        if self.path != '/latest/api/token':
            self._reply(404)
        elif not seconds.isdigit() or not 1 <= int(seconds) <= 21600:
            self._reply(400)
        else:
            token = secrets.token_urlsafe(24)
            self.server.tokens[token] = time.monotonic() + int(seconds)
            self._reply(200, token)

    def do_GET(self) -> None:
        token = self.headers.get('X-aws-ec2-metadata-token', '')
        value = self.server.item(self.path.removeprefix('/latest/meta-data/'))
        if self.server.tokens.get(token, 0.0) < time.monotonic():
            self._reply(401)
        elif value is None:
            self._reply(404)
        else:
            self._reply(200, value)

    def _reply(self, status: int, text: str = '') -> None:
        self.send_response(self.server.status or status)
        self.send_header('Content-Length', str(0 if self.server.status else len(text)))
        self.end_headers()
        self.wfile.write(b'' if self.server.status else text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""
