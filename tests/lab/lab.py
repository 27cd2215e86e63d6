"""The lab as a whole: two instances that can fail in many ways, and what can be seen of them."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from . import network as net
from .ec2 import REGION, Ec2, Life, Times, authority
from .metadata import CREDENTIALS, ROLE, Metadata, credentials
from .network import Network
from .traffic import Traffic

REPOSITORY = Path(__file__).resolve().parents[2]
SBIN = 'usr/local/sbin'
LOG = 'var/log/nat_monitor.log'
AUTHORITY = f'{SBIN}/ca.pem'  # whose certificates the instances accept
GUARD = 600.0  # s: what has not come by then never will, however busy the machine is
ERRORS = 'var/log/errors'  # what a job wrote elsewhere than to its log; cron would send it by mail


class Event(NamedTuple):
    """Something that happened: at a monotonic time, to or by *source* (an instance, 'EC2', 'call', 'lab', …)."""

    at: float
    source: str
    text: str


class Instance:
    """A NAT instance: its machine, what can happen to it, and its life in EC2."""

    life: Life

    def __init__(self, lab: 'Lab', name: str) -> None:
        self.lab, self.name = lab, name
        self.node = lab.network.nodes[name]
        self.link = lab.network.links[name]
        self.address = net.INSTANCE_ADDRESSES[name]
        self.unreachable_at: Optional[float] = None
        self.forwards_at_boot = True
        self.runs_boot_job = True
        self._popen: List['subprocess.Popen[Any]'] = []

    @property
    def peer(self) -> 'Instance':
        return next(one for one in self.lab.instances.values() if one is not self)

    @property
    def id(self) -> str:
        return str(self.life.record.id)

    @property
    def state(self) -> str:
        """What EC2 calls it."""
        return self.life.state

    # ---- programs in it

    def run(self, *command: str, check: bool = False, **options: Any) -> 'subprocess.CompletedProcess[str]':
        """Run a command to its end and return the result, output as text."""
        return self.node.run(*command, check=check, env=self.lab.environment, **options)

    def popen(self, *command: str, **options: Any) -> 'subprocess.Popen[Any]':
        """Start a command. A signal sent to the result does not reach it: use `kill_monitor()` or `run('kill', …)`."""
        process = subprocess.Popen([*self.node.enter(), *command], env=self.lab.environment, **options)
        self._popen.append(process)
        return process

    def terminal(self, *command: str) -> 'Terminal':
        """Start a command (a shell, unless told otherwise) in a terminal, a real pty."""
        return Terminal(self, command or ('sh', '-i'))

    @property
    def monitor_command(self) -> List[str]:
        """The beginning of a command that starts the monitor with the Python under test."""
        return [*([self.lab.python] if self.lab.python else []), f'/{SBIN}/nat_monitor.py']

    def start_monitor(self) -> None:
        """Run the @reboot job, in the background."""
        script = f'exec >>/{ERRORS} 2>&1 </dev/null; exec setsid --fork sh -c "$0"'
        self.run('sh', '-c', script, self.lab.boot_job, check=True, stdout=None, stderr=None, capture_output=False)

    @property
    def monitor_pid(self) -> Optional[int]:
        """The monitor's PID inside the instance; None while it does not run."""
        for directory in (self.node.root / 'proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):
                name, command = ((directory / item).read_text() for item in ('comm', 'cmdline'))
                if name == 'nat_monitor.py\n' and command:  # a zombie has none
                    return int(directory.name)
        return None

    def look(self) -> None:
        """Let its monitor ask EC2 now, and wait until it has been answered."""
        since = time.monotonic()
        self.kill_monitor(signal.SIGHUP)
        self.lab.wait_until(lambda: any(call.result for call in self.lab.ec2.calls(
            'DescribeRouteTables', self.name, since=since)), f'{self.name} looks')

    def kill_monitor(self, number: int = signal.SIGKILL) -> None:
        """Send the monitor a signal."""
        self.run('kill', f'-{int(number)}', str(self.monitor_pid), check=True)

    def proc(self, item: str) -> str:
        """Return a file of the running monitor in /proc, e.g. 'stat' or 'status'."""
        return (self.node.root / f'proc/{self.monitor_pid}/{item}').read_text()

    def _read(self, path: str) -> str:
        with contextlib.suppress(OSError):
            return (self.node.root / path).read_text(errors='replace')
        return ''

    @property
    def log(self) -> str:
        """All that the monitor has logged, also before a reboot."""
        return self._read(LOG)

    @property
    def errors(self) -> str:
        """What the boot job wrote elsewhere than to the log."""
        return self._read(ERRORS)

    def configure(self) -> None:
        """Write nat_config.py: the lab's settings."""
        (self.node.root / SBIN / 'nat_config.py').write_text(
            ''.join(f'{name} = {value!r}\n' for name, value in self.lab.settings.items()))

    def install(self) -> None:
        """Copy the monitor to /usr/local/sbin, unmodified, and write its settings and whom it is to trust."""
        program = self.node.root / SBIN / 'nat_monitor.py'
        program.write_bytes((REPOSITORY / 'nat_monitor.py').read_bytes())
        program.chmod(0o755)
        (self.node.root / AUTHORITY).write_bytes(self.lab.bundle + authority().cert_pem.bytes())
        self.configure()

    # ---- its life, as EC2 wants it

    def boot(self) -> None:
        """Come up: an empty /run, a fresh network; programs are started by `run_boot_job()`."""
        self.node.run('sh', '-ec', f'''
            umount -l /run; mount -t tmpfs -o mode=0755 tmpfs /run
            echo {int(self.forwards_at_boot)} >/proc/sys/net/ipv4/ip_forward''')
        self.lab.network.bring_up(self.name)
        self._set_link(dead=False)

    def run_boot_job(self) -> None:
        if self.runs_boot_job:
            self.start_monitor()

    def shut_down(self) -> None:
        """Ask all programs to end, as an orderly shutdown does first."""
        if not self.link.dead:
            self._kill_all('TERM')

    def power_off(self) -> None:
        """End all programs and the network, at once."""
        self._set_link(dead=True)
        self._kill_all('KILL')

    def _kill_all(self, name: str) -> None:
        self.node.run('sh', '-c', f'kill -{name} -1', check=False)  # fails when there is no process

    # ---- what can happen to it

    def _set_link(self, **values: Any) -> None:
        self.lab.note('lab', f'{self.name}: ' + ', '.join(f'{key} = {value}' for key, value in values.items()))
        for name, value in values.items():
            setattr(self.link, name, value)
        self.lab.network.apply()
        unreachable = self.link.dead or self.link.cut_off
        self.unreachable_at = (self.unreachable_at or time.monotonic()) if unreachable else None

    def crash(self) -> float:
        """Let the kernel die: silence, while EC2 says `running`. Return the monotonic time of that."""
        at = time.monotonic()
        self.power_off()
        return at

    def hang(self) -> None:
        """Freeze the machine until `thaw()`."""
        self._set_link(dead=True)
        self._kill_all('STOP')

    def thaw(self) -> None:
        """End a hang."""
        self._kill_all('CONT')
        self._set_link(dead=False)

    def cut_off(self) -> None:
        """Let all its packets vanish, until `reconnect()` (a restart does not help)."""
        self._set_link(cut_off=True)

    def reconnect(self) -> None:
        """End `cut_off()`."""
        self._set_link(cut_off=False)

    def block_ping(self) -> None:
        """Drop echo requests to it and from it."""
        self._set_link(blocks_pings=True)

    def allow_ping(self) -> None:
        """End `block_ping()`."""
        self._set_link(blocks_pings=False)

    def forwarding(self, on: bool) -> None:
        """Switch net.ipv4.ip_forward, now and at the next boot."""
        self.forwards_at_boot = on
        self.lab.note('lab', f'{self.name}: ip_forward = {int(on)}')
        self.node.run('sh', '-c', f'echo {int(on)} >/proc/sys/net/ipv4/ip_forward')

    def close(self) -> None:
        """End what `popen()` has started."""
        for process in self._popen:
            process.kill()
            process.wait()


class Terminal:
    """A program in a pty of its own, inside an instance; type into it and read what it shows."""

    def __init__(self, instance: Instance, command: Any) -> None:
        script = 'import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))'
        python = os.path.realpath('/proc/self/exe')
        self._process = instance.popen(python, '-ISc', script, *command, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.output = ''
        self._reader = threading.Thread(target=self._read, daemon=True, name='terminal')
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            while data := os.read(self._stdout.fileno(), 4096):
                self.output += data.decode(errors='replace')

    def type(self, text: str) -> None:
        """Type *text*; '\\x03' is Ctrl-C, '\\x1a' Ctrl-Z, '\\n' the return key.

        What is typed before the program has dealt with a Ctrl-C may be lost with it, as in any terminal.
        """
        self._stdin.write(text.encode())
        self._stdin.flush()

    @property
    def exit_code(self) -> Optional[int]:
        """The exit code of the program; None while it runs, or not all that it shows has been read."""
        return None if self._reader.is_alive() else self._process.poll()


class Lab:
    """Two NAT instances with the monitor, a private host that they serve, the internet, and EC2."""

    _open = threading.Lock()  # moto keeps its records in the process, so there is one lab at a time

    def __init__(self, settings: Optional[Dict[str, Any]] = None, *, tables: int = 1,
                 holder: Optional[str] = 'primary', start: bool = True, python: Optional[str] = None,
                 boot_job: Optional[str] = None, bundle: bytes = b'',
                 environment: Optional[Dict[str, str]] = None, **times: Any) -> None:
        """Describe a lab; it is built when a with statement is entered.

        *settings* are added to those of nat_config.py; *holder* has routes and address at the beginning (None:
        there is no default route, and the address is free); with *start*, the @reboot job of both instances runs
        (*boot_job*, or else the one of nat_monitor.cron); *python* runs the monitor instead of its first line's;
        *bundle* are further authorities (PEM) that the instances trust, as AWS clients load a hundred and more at each
        handshake; *environment* is added to that of all programs in the instances; *times* are those of `Times`.
        """
        self.times = Times(**times)
        self.bundle, self._settings, self._tables = bundle, settings or {}, tables
        self._holder, self._start, self.python = holder, start, python
        self.boot_job = boot_job or self._cron_command()
        self.environment = {
            'PATH': '/usr/bin:/bin', 'SHELL': '/bin/sh', 'LOGNAME': 'root',
            'HOME': '/run',  # no AWS settings of whoever runs the lab
            'AWS_ENDPOINT_URL_EC2': f'https://{net.ENDPOINT}',
            'AWS_CA_BUNDLE': f'/{AUTHORITY}', **(environment or {})}
        self.settings: Dict[str, Any] = {}
        self._events: List[Event] = []
        self._closing = threading.Event()

    def _cron_command(self) -> str:
        """Return the command of the @reboot job, with the Python under test."""
        lines = (REPOSITORY / 'nat_monitor.cron').read_text().splitlines()
        [job] = [line for line in lines if line.startswith('@reboot')]
        command = job.split(None, 2)[2]
        program = f'/{SBIN}/nat_monitor.py'
        return command.replace(program, f'{self.python} {program}', 1) if self.python else command

    def __enter__(self) -> 'Lab':
        assert self._open.acquire(blocking=False), 'there is an open lab'
        self._opened = contextlib.ExitStack()
        self._opened.callback(self._open.release)
        try:
            self._build()
        except BaseException:
            self._opened.close()
            raise
        return self

    def _build(self) -> None:
        self.opened_at = time.monotonic()
        self.network = Network()
        self._opened.callback(self.network.close)
        self.instances = {name: Instance(self, name) for name in net.INSTANCE_ADDRESSES}
        self.primary, self.secondary = self.instances['primary'], self.instances['secondary']
        self.ec2 = Ec2(self.network, self.times, list(self.instances.values()), self._tables, self.note)
        self._opened.callback(self.ec2.close)
        self.metadata: Dict[str, Metadata] = {}
        self.settings = {
            'PRIMARY_INSTANCE_ID': self.ec2.lives['primary'].record.id,
            'SECONDARY_INSTANCE_ID': self.ec2.lives['secondary'].record.id,
            'ROUTE_TABLE_IDS': list(self.ec2.tables),
            'ELASTIC_IP': net.ELASTIC_IP, **self._settings}
        for name, instance in self.instances.items():
            instance.life = self.ec2.lives[name]
            self._opened.callback(instance.close)
            self.metadata[name] = Metadata(instance.node.socket(socket.SOCK_STREAM, net.METADATA, 80), {
                'instance-id': instance.id, 'placement/region': REGION, CREDENTIALS: ROLE,
                CREDENTIALS + ROLE: credentials('ASIAEXAMPLE', 'secret')})
            self._opened.callback(self.metadata[name].close)
            instance.install()
            instance.boot()
        if self._holder:
            for table in range(self._tables):
                self.ec2.set_route(self._holder, table)
            self.ec2.set_address(self._holder)
        self.traffic = Traffic(self.network)
        self._opened.callback(self.traffic.close)
        self._opened.callback(self.network.close)  # first of all: it ends the processes for which the others wait
        follower = threading.Thread(target=self._follow, daemon=True, name='logs')
        follower.start()
        self._opened.callback(follower.join)
        self._opened.callback(self._closing.set)
        if self._start:
            for instance in self.instances.values():
                instance.start_monitor()

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            print(self.report())
        self._opened.close()

    def lose_between(self, percent: int) -> None:
        """Lose that share of the packets between the two instances, of whatever kind, each way; 0 ends it."""
        self.note('lab', f'{percent} % of the packets between the two are lost')
        self.network.loss_between = percent
        self.network.apply()

    # ---- what can be seen

    def probes(self) -> int:
        """Return how many echo requests have reached the hosts on the internet."""
        lines = Path(f'/proc/{self.network.nodes["internet"].pid}/net/snmp').read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith('Icmp:'))
        return int(dict(zip(names, values))['InEchos'])

    def note(self, source: str, text: str) -> None:
        """Add an event to the time line."""
        self._events.append(Event(time.monotonic(), source, text))

    def _follow(self) -> None:
        """Add the lines of both logs to the time line as they appear."""
        read = dict.fromkeys(self.instances, 0)
        while not self._closing.wait(0.02):
            for name, instance in self.instances.items():
                lines = instance.log[read[name]:].rpartition('\n')[0]
                if lines:
                    read[name] += len(lines) + 1
                    for line in lines.split('\n'):
                        self.note(name, line)

    def timeline(self, first: int = 0) -> List[Event]:
        """Return what has happened, in order, from the event of that number on: logs, calls, EC2, the lab."""
        return self._events[first:]

    def holder(self) -> List[Optional[str]]:
        """Return who holds each table and the address, as EC2 has it: an instance's name, another target's id, None."""
        with self.ec2.lock:
            return [*(self.ec2.route_target(table) for table in range(self._tables)), self.ec2.address_owner()]

    def holds(self, instance: Instance) -> bool:
        """Tell whether that instance has all the tables and the address."""
        return set(self.holder()) == {instance.name}

    def serves(self, instance: Instance) -> None:
        """Wait until it holds all, and the internet sees the private host through it."""
        self.wait_until(lambda: self.holds(instance), f'the {instance.name} holds tables and address')
        since = time.monotonic() + 0.1  # until then packets may go the way of before
        self.wait_until(lambda: any(packet.egress == net.ELASTIC_IP for packet in self.traffic.packets(since)),
                        'the private host has its egress address')

    def wait_until(self, condition: Callable[[], object], what: str, timeout: float = GUARD) -> None:
        """Wait until *condition* is true; after *timeout* seconds fail, telling all that has happened."""
        until = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > until:
                raise AssertionError(f'not within {timeout} s: {what}')
            time.sleep(0.02)

    def stays(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Watch that *condition* is true all the time for *seconds*."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert condition(), f'no longer so after {seconds - (until - time.monotonic()):.1f} s: {what}'
            time.sleep(0.02)

    def report(self) -> str:
        """Return all that has happened as text, for a test that failed."""
        lines = [f'{event.at - self.opened_at:8.2f} {event.source:9} {event.text}' for event in self.timeline()]
        lines += [f'         {start - self.opened_at:8.2f} private host not served for {end - start:.2f} s'
                  for start, end in self.traffic.outages()] if hasattr(self, 'traffic') else []
        lines += [f'{name} wrote elsewhere than to its log:\n{instance.errors}'
                  for name, instance in self.instances.items() if instance.errors]
        return '\n'.join([f'The lab, {self.holder()}:', *lines])
