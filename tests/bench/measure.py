"""The measurements, each a function of plain values that returns a plain record; each opens a lab of its own."""
from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import nat_monitor
from tests.lab import ELASTIC_IP, Lab
from tests.lab.lab import Instance
from tests.lab.traffic import Connections

from .contenders import CONTENDERS, Contender, answered, pair, start, watches

Record = Dict[str, Any]
TICKS = os.sysconf('SC_CLK_TCK')
DEFAULTS = {'NUM_PINGS': 3, 'PING_TIMEOUT': 1, 'WAIT_BETWEEN_PINGS': 0.25}
CHANGES = ('ReplaceRoute', 'CreateRoute', 'StopInstances')
SETTLED = 20.0  # s after the latest claims; for ten, a monitor believes that what it has claimed is still there

# Writes when the primary's answers to pings come by, as its port of the bridge sees them: there, who listens for IP
# alone hears nothing, and who listens for all (3) hears what goes to the primary, too.
TAP = '''
import socket, time
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as tap:
    tap.bind(('primary', 3))
    print(flush=True)
    while True:
        packet, (_, kind, way, *_) = tap.recvfrom(64)
        if kind == 0x0800 and way != socket.PACKET_OUTGOING and packet[9] == 1 and packet[20] == 0:
            print(time.monotonic(), flush=True)
'''


@contextlib.contextmanager
def answers_to_pings(lab: Lab) -> Iterator[List[float]]:
    """Note when the primary answers a ping, as monotonic times, within a with statement."""
    seen: List[float] = []
    with subprocess.Popen([*lab.network.router.enter('net'), sys.executable, '-IS', '-c', TAP], text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as tap:
        assert tap.stdout
        tap.stdout.readline()
        lines = tap.stdout
        reader = threading.Thread(target=lambda: seen.extend(map(float, lines)), daemon=True)
        reader.start()
        try:
            yield seen
        finally:
            tap.kill()
            reader.join()


def crash(who: str, seed: int, latency: float = 0.15, tables: int = 1) -> Record:
    """Let the primary's kernel die at a random moment of the ping cycle; measure until the address is back."""
    contender = CONTENDERS[who]
    with pair(contender, latency=0.05, tables=tables) as lab, answers_to_pings(lab) as replies:
        start(lab, contender)
        lab.times.latency = latency  # from now on: nothing before is measured
        healthy_at = time.monotonic()
        time.sleep(0.3 + random.Random(seed).uniform(0, contender.cycle))
        memory, cpu = megabytes(lab.secondary), cpu_seconds(lab.secondary)
        crashed_at = lab.primary.crash()
        lab.serves(lab.secondary)
        lab.wait_until(lambda: all(call.seconds for call in lab.ec2.calls('ReplaceRoute', 'secondary')),
                       'all claims are answered')
        time.sleep(0.3)
        cpu = cpu_seconds(lab.secondary) - cpu
        lost_at, served_at = lab.traffic.outages(crashed_at)[0]
        egress_at = next(at for at, address in lab.traffic.egresses(served_at) if address == ELASTIC_IP)
        calls = [call for call in lab.ec2.calls(instance='secondary', since=crashed_at)]
        moves = [call for call in calls if call.action == 'ReplaceRoute']
        moved_at = {call.parameters['RouteTableId']: call.at + call.seconds for call in moves if call.result == 'ok'}
        record = {'what': 'crash', 'who': who, 'latency': latency, 'tables': tables, 'seed': seed,
                  'outage': served_at - lost_at, 'egress': egress_at - lost_at,
                  'calls_before': sum(call.at < moves[0].at for call in calls),
                  'calls': sum(call.at < egress_at for call in calls),
                  'claim': max(moved_at.values()) - moves[0].at, 'cpu': cpu,
                  # The packets are those of the first table; the log of calls tells how much later the last one moved.
                  'last': served_at - lost_at + max(moved_at.values()) - moved_at[lab.ec2.tables[0]],
                  'memory': memory, 'gap': gap(lab, healthy_at, crashed_at), 'load': os.getloadavg()[0],
                  'strip': strip(lab, lost_at)}
    if not contender.script:
        settings = settings_of(contender)
        rest = max(replies) + settings['WAIT_BETWEEN_PINGS'] - lost_at
        record['silence'] = max(0.0, rest) + settings['NUM_PINGS'] * settings['PING_TIMEOUT']
    return record


def settings_of(contender: Contender) -> Dict[str, Any]:
    return {**DEFAULTS, **contender.settings}


def strip(lab: Lab, lost_at: float) -> List[Tuple[float, float, str]]:
    """Return the private host's packets as runs: from, to (s after the first loss), and by which address they went."""
    runs: List[Tuple[float, float, str]] = []
    for packet in lab.traffic.packets(lost_at - 3.0):
        at, way = round(packet.sent_at - lost_at, 3), 'lost' if not packet.served else 'egress address' if (
            packet.egress == ELASTIC_IP) else 'another address'
        runs = runs[:-1] + [(runs[-1][0], at, way)] if runs and runs[-1][2] == way else runs + [(at, at, way)]
    return runs


def again(who: str, latency: float = 0.15, lag: float = 60.0, os_shutdown: float = 0.0) -> Record:
    """Crash the primary and wait until both watch each other again; stop and boot take 30 s each.

    EC2's status checks tell the crash after *lag* seconds. A graceful stop waits *os_shutdown* seconds more for the
    dead kernel, unless it is told not to.
    """
    contender = CONTENDERS[who]
    with pair(contender, latency=latency, stop=30.0, boot=30.0, pending=10.0, os_shutdown=os_shutdown,
              impaired=lag) as lab:
        start(lab, contender)
        crashed_at = lab.primary.crash()
        for instance in (lab.primary, lab.secondary):
            lab.wait_until(lambda: watches(instance, contender, 2), f'the {instance.name} watches its peer again')
        lab.wait_until(lambda: lab.holds(lab.primary), 'the primary serves again')
        stops = lab.ec2.calls('StopInstances', since=crashed_at)
        return {'what': 'again', 'who': who, 'latency': latency, 'lag': lag, 'os_shutdown': os_shutdown,
                'seconds': time.monotonic() - crashed_at, 'calls': len(lab.ec2.calls(since=crashed_at)),
                'stop': stops[0].at - crashed_at, 'skipped': stops[0].parameters.get('SkipOsShutdown') == 'true'}


def connections(who: str, count: int = 20) -> Record:
    """Count the TCP connections that survive a crash, the fail-back after the restart, and a planned hand-over.

    There are new ones for each: so many on which the private host sends and the server answers, and as many on which
    the server sends and the private host only acknowledges. `stall` is the median of the longest pauses of those that
    survive; a script that knows no hand-over has none.
    """
    contender = CONTENDERS[who]
    record: Record = {'what': 'connections', 'who': who, 'count': count}
    with pair(contender) as lab:
        start(lab, contender)
        record['crash'] = survive(lab, lab.secondary, lab.primary.crash, count)
        # The operator is quicker than a monitor, which waits for a minute: what counts is how the primary comes back.
        record['fail-back'] = survive(lab, lab.primary, lambda: restart(lab, lab.primary), count)
        if who != 'reference':
            for instance in lab.instances.values():
                lab.wait_until(lambda: watches(instance, contender, 2), f'the {instance.name} watches its peer')
            newest = max(call.at for call in lab.ec2.calls() if call.action in ('ReplaceRoute', 'AssociateAddress'))
            lab.wait_until(lambda: time.monotonic() - newest > SETTLED, 'the claims are old enough')
            record['hand-over'] = survive(lab, lab.secondary, lambda: hand_over(lab, contender), count)
    return record


def survive(lab: Lab, heir: Instance, move: Callable[[], object], count: int) -> Dict[str, Tuple[int, Optional[float]]]:
    """Let everything move to *heir*; return by who sends: how many connections survive, and how long they stalled."""
    with contextlib.ExitStack() as stack:
        both = {way: stack.enter_context(Connections(lab.network, count, by_server=way == 'server', in_turn=True))
                for way in ('client', 'server')}
        lab.wait_until(lambda: all(some.alive(0.0) == count for some in both.values()), 'all are alive')
        move()
        lab.serves(heir)
        served_at = time.monotonic()
        # As long again as the outage, or longer, until TCP sends once more.
        with contextlib.suppress(AssertionError):
            lab.wait_until(lambda: all(some.alive(served_at) + sum(some.lost) == count for some in both.values()),
                           'all go on or have ended')
        time.sleep(1.0)  # what is about to be reset is so by now
        stalls = {way: [some.stalls[number] for number in some.survivors(served_at)] for way, some in both.items()}
        return {way: (len(some), statistics.median(some) if some else None) for way, some in stalls.items()}


def restart(lab: Lab, instance: Instance) -> None:
    """Stop and start it, as an operator does, unless its peer's monitor is quicker."""
    lab.ec2.stop(instance.name)
    lab.wait_until(lambda: instance.state != 'stopping', 'it is stopped')
    if instance.state == 'stopped':
        lab.ec2.start(instance.name)


def hand_over(lab: Lab, contender: Contender) -> None:
    """Let the primary hand over in the way that the contender has for that."""
    if contender.elects:
        lab.primary.run('killall', '-TERM', 'keepalived', check=True)  # it says good-bye to its peer
        return
    lab.ec2.tag('primary', nat_monitor.MAINTENANCE)
    for instance in (lab.secondary, lab.primary):
        instance.look()


def hiccup(who: str, watcher: str = 'secondary', times: int = 3) -> Record:
    """Cut the path between two healthy instances while the *watcher*'s peer serves: for how long does nobody take over?

    First a few cuts of nine tenths of what all pings need to be missed, then one until somebody takes over.
    """
    settings = settings_of(CONTENDERS[who])
    contender = dataclasses.replace(CONTENDERS[who], settings={**settings, 'FAIL_BACK': False})
    misses = settings['NUM_PINGS'] * settings['PING_TIMEOUT'] * (2 if watcher == 'primary' else 1)
    with pair(contender, holder='primary' if watcher == 'secondary' else 'secondary') as lab:
        start(lab, contender)
        begun_at, ridden = time.monotonic(), 0
        for _ in range(times):
            lab.lose_between(100)
            time.sleep(0.9 * misses)
            lab.lose_between(0)
            time.sleep(1.0 + settings['PING_TIMEOUT'])  # a call under way, and the next pings
            ridden += not acted(lab, begun_at)
        cut_at = time.monotonic()
        lab.lose_between(100)
        lab.wait_until(lambda: acted(lab, cut_at), f'the {watcher} takes over')
        [first, *_] = [call.at for call in lab.ec2.calls(since=cut_at) if call.action in CHANGES]
        return {'what': 'hiccup', 'who': who, 'watcher': watcher, 'cut': 0.9 * misses, 'times': times,
                'ridden': ridden, 'seconds': first - cut_at}


def watch(who: str, loss: int, minutes: float) -> Record:
    """Let packets between the two, who are both well, get lost at random, and count what they do about it.

    After each false failover it begins anew in another lab, and after ten it ends. Without loss, count what the
    contender costs.
    """
    contender = CONTENDERS[who]
    record: Record = {'what': 'watch', 'who': who, 'loss': loss, 'seconds': 0.0, 'failovers': 0}
    while record['seconds'] < 60 * minutes - 1 and record['failovers'] < 10:
        with pair(contender) as lab:
            start(lab, contender)
            time.sleep(2.0 if loss else 20.0)  # the look that confirms its start
            if loss:
                lab.traffic.close()  # nobody looks at it: the other labs shall have the CPU
                lab.lose_between(loss)
            begun_at, cpu = time.monotonic(), [cpu_seconds(lab.secondary)]
            period = (60 * minutes - record['seconds']) / 20
            while len(cpu) <= 20 and not acted(lab, begun_at):
                due = begun_at + len(cpu) * period
                while time.monotonic() < due and not acted(lab, begun_at):
                    time.sleep(0.1)
                cpu.append(cpu_seconds(lab.secondary))
            record['seconds'] += time.monotonic() - begun_at
            record['failovers'] += acted(lab, begun_at)
            if not loss:
                record.update(cpu=[(b - a) / period for a, b in zip(cpu, cpu[1:])], memory=megabytes(lab.secondary),
                              calls=len(lab.ec2.calls(since=begun_at)), gap=gap(lab, begun_at, time.monotonic()))
    return record


def gap(lab: Lab, since: float, until: float) -> float:
    """Return the longest time between two answers to the private host while all is well: what disturbs the lab."""
    times = [packet.received_at for packet in lab.traffic.packets(since, until) if packet.received_at]
    return max((b - a for a, b in zip(times, times[1:])), default=0.0)


def acted(lab: Lab, since: float) -> bool:
    """Tell whether a route was moved or an instance stopped."""
    return any(call.action in CHANGES for call in lab.ec2.calls(since=since))


def processes(instance: Instance) -> Iterator[str]:
    """Yield the /proc directories of what runs in an instance, without the lab's process and the job's own shell."""
    init = f'/proc/{instance.node.pid}'
    for directory in map(str, Path('/proc').glob('[0-9]*')):
        with contextlib.suppress(OSError):
            if directory != init and os.readlink(f'{directory}/ns/pid') == os.readlink(f'{init}/ns/pid') and (
                    not Path(directory, 'cmdline').read_bytes().startswith(b'sh\0-c\0')):
                yield directory


def cpu_seconds(instance: Instance) -> float:
    """Return the CPU time of what runs in an instance and of the children that it has waited for (those in ticks)."""
    total = 0.0
    for directory in processes(instance):
        with contextlib.suppress(OSError), open(f'{directory}/stat') as file:
            total += sum(map(int, file.read().rpartition(')')[2].split()[13:15])) / TICKS
            total += time.clock_gettime(~int(directory.rpartition('/')[2]) << 3 | 2)  # clock_getcpuclockid(3)
    return total


def megabytes(instance: Instance) -> float:
    """Return the resident memory of what runs in an instance."""
    total = 0
    for directory in processes(instance):
        with contextlib.suppress(OSError), open(f'{directory}/status') as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith('VmRSS'))
    return total / 1024


def begin(who: str) -> Record:
    """Start the primary's job while the secondary holds; measure until its first claim reaches EC2."""
    with pair(CONTENDERS[who], holder='secondary') as lab:
        started_at = time.monotonic()
        lab.primary.start_monitor()
        lab.wait_until(lambda: 'ReplaceRoute' in answered(lab), 'the primary claims')
        return {'what': 'begin', 'who': who, 'seconds': lab.ec2.calls('ReplaceRoute')[0].at - started_at}


# What makes an EC2 client, to see where memory and start-up go; the program as the script that it is.
PROGRAM = Path(nat_monitor.__file__).read_text()
BOTO3 = "import boto3, requests; client = boto3.session.Session(region_name='us-east-1').client('ec2')\n"
CLIENTS = {'boto3': BOTO3, 'script': PROGRAM.replace('sys.exit(main())', "connect('us-east-1')\n")}
RESIDENT = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')][0])\n"


def imports(who: str) -> Record:
    """Measure what it costs to start Python and make an EC2 client; boto3 and requests alone are the floor."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / 'script.py'
        script.write_text(CLIENTS[who] + RESIDENT)
        started_at = time.monotonic()
        memory = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True, env={
            **os.environ, 'PYTHONPATH': os.path.dirname(nat_monitor.__file__)}).stdout
        return {'what': 'imports', 'who': who, 'seconds': time.monotonic() - started_at, 'memory': int(memory) / 1024}


MEASUREMENTS: Dict[str, Callable[..., Record]] = {
    one.__name__: one for one in (crash, again, connections, hiccup, watch, begin, imports)}


def too_long(*_: object) -> None:
    raise TimeoutError('it took too long')


def perform(what: str, arguments: Dict[str, Any], limit: float) -> List[Record]:
    """Make a measurement by its name and return its record; one that fails or hangs is a record too, and repeated."""
    records: List[Record] = []
    signal.signal(signal.SIGALRM, too_long)
    for attempt in 1, 2:
        told = io.StringIO()  # by the lab, when something fails in it
        try:
            signal.alarm(math.ceil(limit))
            with contextlib.redirect_stdout(told):
                return [*records, MEASUREMENTS[what](**arguments)]
        except KeyboardInterrupt:  # the lab is closed: no other measurement after this one
            os._exit(130)
        except Exception as error:
            records.append({'what': 'failure', 'of': what, **arguments, 'attempt': attempt,
                            'why': f'{type(error).__name__}: {error}', 'told': told.getvalue()[-4000:]})
        finally:
            signal.alarm(0)
    return records
