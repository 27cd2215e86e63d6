"""Calls that were given up, with a real resolver, real packets and a kernel that repeats what was lost."""
import contextlib
import socket
import struct
import threading
import time
from typing import Any, Iterator, List

import pytest

from .lab import ENDPOINT, Lab
from .lab.lab import Instance
from .lab.network import NAME_SERVER
from .test_failover import CLAIMS, knows, serves, serving_pair

pytestmark = pytest.mark.lab

NEVER = 10.0  # s without the call after which it does not come any more

# Stops an instance as the monitor does, when told to, and lives on.
STOP = '''
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location('nat_monitor', '/usr/local/sbin/nat_monitor.py')
monitor = importlib.util.module_from_spec(spec)
sys.modules['nat_monitor'] = monitor
spec.loader.exec_module(monitor)
client = monitor.connect('us-east-1')
if 'kept' in sys.argv:
    client.describe_instance_status(InstanceIds=[sys.argv[1]])
print('ready', flush=True)
sys.stdin.readline()
results = monitor.run_together({'stop': lambda: client.stop_instances(InstanceIds=[sys.argv[1]])},
                               monitor.CALL_DEADLINE)
print(monitor.failures_in(results), flush=True)
time.sleep(60)
'''


class Stop:
    """A call of StopInstances by an instance, made by hand with the monitor's functions."""

    def __init__(self, caller: Instance, peer: Instance, python: str, connection: str = '') -> None:
        self.process = caller.popen(python, '-c', STOP, peer.id, connection, stdin=-1, stdout=-1, text=True)
        assert self.process.stdout and self.process.stdout.readline() == 'ready\n'

    def make(self) -> str:
        """Make the call and return what went wrong."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        return str(self.process.stdout.readline())


@contextlib.contextmanager
def slow_name_server(lab: Lab, seconds: float) -> Iterator[List[bytes]]:
    """Let the name server exist, and answer each question after that time; yield what it has answered."""
    internet = lab.network.nodes['internet']
    internet.run('ip', 'address', 'add', f'{NAME_SERVER}/32', 'dev', 'eth0')
    server = internet.socket(socket.SOCK_DGRAM, NAME_SERVER, 53)
    answered: List[bytes] = []

    def answer(question: bytes, asker: Any) -> None:
        end = question.index(b'\0', 12) + 5
        is_ipv4 = question[end - 4:end - 2] == b'\0\1'
        record = b'\xc0\x0c' + struct.pack('!HHIH', 1, 1, 60, 4) + socket.inet_aton(ENDPOINT)
        header = question[:2] + struct.pack('!HHHHH', 0x8180, 1, int(is_ipv4), 0, 0)
        with contextlib.suppress(OSError):  # it is over
            server.sendto(header + question[12:end] + record * is_ipv4, asker)
            answered.append(question)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while (received := server.recvfrom(512))[0]:
                threading.Timer(seconds, answer, received).start()

    threading.Thread(target=serve, daemon=True, name='name server').start()
    try:
        yield answered
    finally:
        with contextlib.suppress(OSError):  # it wakes who receives, though there is no connection to end
            server.shutdown(socket.SHUT_RDWR)
        server.close()


def test_all_parts_are_claimed_at_once_and_once_however_slow_the_name_server_is(python: str) -> None:
    with serving_pair(python, by_name=True, tables=10) as lab, slow_name_server(lab, 2.0):
        lab.secondary.names_hang()
        since = time.monotonic()

        lab.primary.crash()

        serves(lab, lab.secondary)
        lab.wait_until(lambda: knows(lab.secondary, lab.secondary), 'the secondary knows that it serves')
        claims = [call for call in lab.ec2.calls(instance='secondary', since=since) if call.action in CLAIMS]
        assert sorted(call.action for call in claims) == ['AssociateAddress', *['ReplaceRoute'] * 10]
        looks = lab.ec2.calls('Describe*', 'secondary', since=claims[0].at)
        assert not [call for call in looks if call.at < claims[-1].at]  # none is needed in between


def test_a_call_given_up_while_its_name_was_resolved_is_not_sent_later(python: str) -> None:
    with Lab(start=False, by_name=True) as lab, slow_name_server(lab, 15.0) as answered:
        lab.primary.names_hang()
        with (lab.primary.node.root / 'etc/resolv.conf').open('a') as file:
            file.write('options timeout:30 attempts:1\n')
        stop = Stop(lab.primary, lab.secondary, python)

        assert 'no answer' in stop.make() and not answered

        lab.wait_until(lambda: len(answered) == 2, 'the name is known, for IPv4 and for IPv6')
        lab.stays(lambda: not lab.ec2.calls('StopInstances'), NEVER, 'it is not sent')


def test_a_call_given_up_on_a_lossy_path_is_not_delivered_later(python: str) -> None:
    with Lab(start=False) as lab:
        stop = Stop(lab.primary, lab.secondary, python, 'kept')
        lab.primary.cut_off()

        assert stop.make() != '\n'

        lab.primary.reconnect()
        lab.stays(lambda: not lab.ec2.calls('StopInstances'), NEVER, 'it is not delivered')


def test_a_call_on_a_path_that_was_lossy_for_a_second_is_delivered(python: str) -> None:
    with Lab(start=False) as lab:
        stop = Stop(lab.primary, lab.secondary, python, 'kept')
        lab.primary.cut_off()
        lab.ec2.later(1.0, lab.primary.reconnect)

        assert stop.make() == '\n'
        assert [call.result for call in lab.ec2.calls('StopInstances')] == ['ok']
