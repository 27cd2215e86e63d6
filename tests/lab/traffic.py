"""The private host's traffic: a datagram every 10 ms to an echo server on the internet, and TCP connections to it.

The echo server returns each datagram with the address that it came from, so that every answer tells through whom the
private host reached the internet; over TCP it returns what it gets. All ends are processes of their own (this file,
run as a program): what the lab does meanwhile does not delay them.
"""

import bisect
import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple

INTERVAL = 0.01  # s
PORT = 7  # the echo service
FEED_PORT = 9  # of a server that talks by itself
NEVER = -1.0
LATE = 1.0  # s after which a datagram without an answer counts as lost


def echo(address: str) -> None:
    """Answer each datagram with itself and the address that it came from, and what comes over TCP with itself."""
    listening = socket.create_server((address, PORT), backlog=100)
    threading.Thread(target=echo_connections, args=(listening,), daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, PORT))
        print('ready', flush=True)
        while True:
            data, sender = server.recvfrom(64)
            with contextlib.suppress(OSError):
                server.sendto(data + socket.inet_aton(sender[0]), sender)


def echo_connections(listening: socket.socket) -> None:
    """Return what comes over TCP."""
    connections: List[socket.socket] = []
    while True:
        for ready in select.select([listening, *connections], [], [])[0]:
            if ready is listening:
                connections.append(listening.accept()[0])
                continue
            data = b''
            with contextlib.suppress(OSError):
                data = ready.recv(4096)
                ready.sendall(data)
            if not data:
                connections.remove(ready)
                ready.close()


def converse(source: str, server: str, count: str, apart: str, every: str) -> None:
    """Send a line on each of so many TCP connections *every* so many seconds, and follow what comes back."""
    connections = connect(source, server, PORT, count)
    threading.Thread(target=talk, args=(connections, float(apart), float(every)), daemon=True).start()
    follow(connections)


def listen(source: str, server: str, count: str) -> None:
    """Open so many TCP connections to what `feed()` runs, and follow what comes without sending anything."""
    follow(connect(source, server, FEED_PORT, count))


def connect(source: str, server: str, port: int, count: str) -> List[socket.socket]:
    connections = [socket.create_connection((server, port), 10, (source, 0)) for _ in range(int(count))]
    print('ready', flush=True)
    return connections


def feed(address: str, count: str, apart: str, every: str) -> None:
    """Accept so many TCP connections, send a line on each *every* so many seconds, and write which have ended."""
    with socket.create_server((address, FEED_PORT), backlog=100) as listening:
        print('ready', flush=True)
        connections = [listening.accept()[0] for _ in range(int(count))]
    threading.Thread(target=talk, args=(connections, float(apart), float(every)), daemon=True).start()
    follow(connections)


def follow(connections: List[socket.socket]) -> None:
    """Write what comes: the number of the connection and the line, or `lost` where the connection has ended."""
    for connection in connections:
        connection.setblocking(False)
    numbers = {connection: number for number, connection in enumerate(connections)}
    received = dict.fromkeys(connections, b'')
    while received:
        for connection in select.select(list(received), [], [], 0.1)[0]:
            try:
                data = connection.recv(4096)
            except OSError:
                data = b''
            *lines, received[connection] = (received[connection] + data).split(b'\n')
            for line in lines:
                print(numbers[connection], line.decode(), flush=True)
            if not data:
                print(numbers[connection], 'lost', flush=True)
                del received[connection]


def talk(connections: List[socket.socket], apart: float, every: float) -> None:
    """Send the lines, for ever, on one connection *apart* seconds after the other; all of it fits into buffers."""
    line, due = 0, time.monotonic()
    while True:
        for number, connection in enumerate(connections):
            time.sleep(max(0.0, due + number * apart - time.monotonic()))
            with contextlib.suppress(OSError):
                connection.send(f'{line}\n'.encode())
        line, due = line + 1, max(due + every, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def probe(source: str, server: str) -> None:
    """Send datagrams; write a line for each one sent (number, time) and received (number, time, egress address)."""
    with contextlib.suppress(OSError):
        os.nice(-10)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        client.connect((server, PORT))
        client.setblocking(False)
        print('ready', flush=True)
        number, due = 0, time.monotonic()
        while True:
            now = time.monotonic()
            if now >= due:
                with contextlib.suppress(OSError):
                    client.send(struct.pack('!Q', number))
                print('S', number, now, flush=True)
                number += 1
                due = max(due + INTERVAL, now)
            if select.select([client], [], [], max(0.0, due - time.monotonic()))[0]:
                with contextlib.suppress(OSError):
                    data = client.recv(64)
                    print('R', struct.unpack('!Q', data[:8])[0], time.monotonic(), socket.inet_ntoa(data[8:12]),
                          flush=True)


@dataclass
class Packet:
    """One datagram; times are monotonic."""

    sent_at: float
    received_at: Optional[float] = None
    egress: Optional[str] = None  # the address that the internet saw

    @property
    def served(self) -> bool:
        return self.received_at is not None


if __name__ == '__main__':
    programs: Dict[str, Callable[..., None]] = {'echo': echo, 'probe': probe, 'converse': converse,
                                                'listen': listen, 'feed': feed}
    programs[sys.argv[1]](*sys.argv[2:])
    sys.exit()


from .network import ECHO, PRIVATE, Network  # noqa: E402 - not needed by the program


def start(network: Network, node: str, *arguments: str) -> 'subprocess.Popen[str]':
    """Run this file in a node, and wait until it is ready."""
    process = subprocess.Popen([*network.nodes[node].enter(), sys.executable, '-IS', __file__, *arguments],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout and process.stdout.readline() == 'ready\n'
    return process


class Traffic:
    """The datagrams of the private host, from when it is made until `close()`."""

    def __init__(self, network: Network) -> None:
        """Start the echo server and the probe."""
        self._packets: List[Packet] = []
        self._told_at = 0.0  # the latest time of which the probe has told, however late it is read
        self._processes = [start(network, 'internet', 'echo', ECHO), start(network, 'private', 'probe', PRIVATE, ECHO)]
        probing = self._processes[1]
        threading.Thread(target=self._read, args=(probing,), daemon=True, name='traffic').start()

    def _read(self, probing: 'subprocess.Popen[str]') -> None:
        assert probing.stdout
        with contextlib.suppress(ValueError):  # closed
            for line in probing.stdout:
                kind, number, at, *rest = line.split()
                self._told_at = float(at)
                if kind == 'S':
                    self._packets.append(Packet(float(at)))
                else:
                    packet = self._packets[int(number)]
                    packet.egress = rest[0]
                    packet.received_at = float(at)

    def packets(self, since: float = 0.0, until: float = float('inf')) -> List[Packet]:
        """Return the datagrams sent between two times; the last ones may still be on their way."""
        packets = self._packets
        start = bisect.bisect_left(packets, since, key=lambda packet: packet.sent_at)
        return [packet for packet in packets[start:] if packet.sent_at <= until]

    def outages(self, since: float = 0.0, until: float = float('inf')) -> List[Tuple[float, float]]:
        """Return when nothing was served: from the last datagram before to the first one after; the longest first.

        An outage that has not ended lasts until now, or until *until*.
        """
        now = self._told_at
        found = []
        last, lost = since or None, False
        for packet in self.packets(since, until):
            if packet.served:
                if lost and last is not None:
                    found.append((last, packet.sent_at))
                last, lost = packet.sent_at, False
            else:
                last = packet.sent_at if last is None else last
                lost = True
        if lost and last is not None and now - last > LATE:
            found.append((last, min(now, until)))
        return sorted(found, key=lambda outage: outage[0] - outage[1])

    def outage(self, since: float = 0.0, until: float = float('inf')) -> float:
        """Return the seconds of the longest outage; 0 if no datagram was lost."""
        return next((end - start for start, end in self.outages(since, until)), 0.0)

    def lost(self, since: float = 0.0, until: float = float('inf')) -> int:
        """Return how many datagrams were lost."""
        return sum(not packet.served and self._told_at - packet.sent_at > LATE
                   for packet in self.packets(since, until))

    def egress(self) -> Optional[str]:
        """Return the address through which the private host reaches the internet now; None while it does not."""
        for packet in reversed(self.packets(self._told_at - 0.3)):
            if packet.served:
                return packet.egress
        return None

    def close(self) -> None:
        """End echo server and probe."""
        for process in self._processes:
            process.kill()
            process.wait()


class Connections:
    """TCP connections of the private host to a server, on which one of the two sends all the time; a context manager.

    Either the private host sends, and the server returns it, or with *by_server* the server, and the private host only
    acknowledges.
    """

    def __init__(self, network: Network, count: int, by_server: bool = False, in_turn: bool = False,
                 every: float = 0.1) -> None:
        """Open them; *every* so many seconds all send at the same moment, or *in_turn*, each with its own chance."""
        self.heard_at = [NEVER] * count  # when the latest line came on each to the private host (monotonic)
        self.stalls = [0.0] * count  # the longest time between two lines
        self.lost = [False] * count  # ended at either side
        pace = str(every / count if in_turn else 0.0), str(every)
        client = PRIVATE, ECHO, str(count)
        self._processes = [start(network, 'internet', 'feed', ECHO, str(count), *pace)] if by_server else []
        self._processes.append(start(network, 'private', 'listen', *client) if by_server else
                               start(network, 'private', 'converse', *client, *pace))
        for process in self._processes:
            threading.Thread(target=self._read, args=(process,), daemon=True, name='connections').start()

    def _read(self, process: 'subprocess.Popen[str]') -> None:
        assert process.stdout
        with contextlib.suppress(ValueError):  # closed
            for line in process.stdout:
                number, what, now = int(line.split()[0]), line.split()[1], time.monotonic()
                if what == 'lost':
                    self.lost[number] = True
                    continue
                if self.heard_at[number] != NEVER:
                    self.stalls[number] = max(self.stalls[number], now - self.heard_at[number])
                self.heard_at[number] = now

    def survivors(self, since: float) -> List[int]:
        """Return the numbers of those on which something has come since then, and that have not ended."""
        return [number for number, at in enumerate(self.heard_at) if at >= since and not self.lost[number]]

    def alive(self, since: float) -> int:
        """Return how many those are."""
        return len(self.survivors(since))

    def __enter__(self) -> 'Connections':
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # what it has started ends with the lab; the reader waits for that
            process.wait()
