"""The metadata service of an instance: IMDSv2 only."""

import http.server
import json
import socket
import threading
from typing import Any, Dict, Optional

ROLE = 'NAT_Monitor'
CREDENTIALS = 'iam/security-credentials/'
TOKEN = 'token'


def credentials(key: str, secret: str, token: str = 'token') -> str:
    """Return a role's credentials as the metadata service gives them."""
    return json.dumps({'Code': 'Success', 'Type': 'AWS-HMAC', 'AccessKeyId': key, 'SecretAccessKey': secret,
                       'Token': token, 'LastUpdated': '2020-01-01T00:00:00Z', 'Expiration': '2099-01-01T00:00:00Z'})


class Metadata(http.server.ThreadingHTTPServer):
    """Serves items at a listening socket; what goes wrong with it is set by its attributes, at any time."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, items: Dict[str, Any]) -> None:
        super().__init__(listening.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.items = listening, items
        self.status: Optional[int] = None  # an HTTP status for everything, e.g. 403: switched off
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True, name='metadata').start()

    def close(self) -> None:
        """End the service."""
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Token by PUT, items by GET with the token; 401 without it."""

    server: Metadata

    def do_PUT(self) -> None:
        self._reply(200, TOKEN)

    def do_GET(self) -> None:
        item = self.server.items.get(self.path.partition('/latest/meta-data/')[2])
        if self.headers.get('X-aws-ec2-metadata-token') != TOKEN:
            self._reply(401)
        else:
            self._reply(200 if item else 404, item or '')

    def _reply(self, status: int, text: str = '') -> None:
        self.send_response(self.server.status or status)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""
