"""The measurements, each a function of plain values that returns a plain record; each opens a lab of its own."""
from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import statistics
import subprocess
import sys
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
CHANGES = ('ReplaceRoute', 'CreateRoute', 'StopInstances')
HANGS = 3600  # s, after which a measurement is given up


def crash(who: str, latency: float = 0.15, tables: int = 1) -> Record:
    """Let the primary's kernel die at a random moment of the ping cycle; measure until the address is back."""
    contender = CONTENDERS[who]
    with pair(contender, latency=0.05, tables=tables) as lab:
        start(lab, contender)
        lab.times.latency = latency  # from now on: nothing before is measured
        healthy_at = time.monotonic()
        time.sleep(0.3 + random.uniform(0, contender.cycle))
        memory = megabytes(lab.secondary)
        crashed_at = lab.primary.crash()
        lab.serves(lab.secondary)
        lab.wait_until(lambda: all(call.seconds for call in lab.ec2.calls('ReplaceRoute', 'secondary')),
                       'all claims are answered')
        time.sleep(0.3)
        lost_at, served_at = lab.traffic.outages(crashed_at)[0]
        egress_at = next(packet.sent_at for packet in lab.traffic.packets(served_at) if packet.egress == ELASTIC_IP)
        calls = lab.ec2.calls(instance='secondary', since=crashed_at)
        moves = [call for call in calls if call.action == 'ReplaceRoute']
        moved_at = {call.parameters['RouteTableId']: call.at + call.seconds for call in moves if call.result == 'ok'}
        return {'what': 'crash', 'who': who, 'latency': latency, 'tables': tables,
                'outage': served_at - lost_at, 'egress': egress_at - lost_at,
                'calls_before': sum(call.at < moves[0].at for call in calls),
                'calls': sum(call.at < egress_at for call in calls),
                'claim': max(moved_at.values()) - moves[0].at,
                # The packets are those of the first table; the log of calls tells how much later the last one moved.
                'last': served_at - lost_at + max(moved_at.values()) - moved_at[lab.ec2.tables[0]],
                'memory': memory, 'gap': gap(lab, healthy_at, crashed_at), 'strip': strip(lab, lost_at)}


def strip(lab: Lab, lost_at: float) -> List[Tuple[float, float, str]]:
    """Return the private host's packets as runs: from, to (s after the first loss), and by which address they went."""
    runs: List[Tuple[float, float, str]] = []
    for packet in lab.traffic.packets(lost_at - 3.0):
        at, way = round(packet.sent_at - lost_at, 3), 'lost' if not packet.served else 'egress address' if (
            packet.egress == ELASTIC_IP) else 'another address'
        runs = runs[:-1] + [(runs[-1][0], at, way)] if runs and runs[-1][2] == way else runs + [(at, at, way)]
    return runs


def again(who: str, lag: float) -> Record:
    """Crash the primary and wait until both watch each other again; stop and boot take 30 s each.

    EC2's status checks tell the crash after *lag* seconds.
    """
    contender = CONTENDERS[who]
    with pair(contender, stop=30.0, boot=30.0, pending=10.0, impaired=lag) as lab:
        start(lab, contender)
        crashed_at = lab.primary.crash()
        for instance in (lab.primary, lab.secondary):
            lab.wait_until(lambda: watches(instance, contender, 2), f'the {instance.name} watches its peer again')
        lab.wait_until(lambda: lab.holds(lab.primary), 'the primary serves again')
        return {'what': 'again', 'who': who, 'lag': lag, 'seconds': time.monotonic() - crashed_at,
                'calls': len(lab.ec2.calls(since=crashed_at))}


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
            begun_at, cpu = time.monotonic(), cpu_seconds(lab.secondary)
            ends_at = begun_at + 60 * minutes - record['seconds']
            while time.monotonic() < ends_at and not acted(lab, begun_at):
                time.sleep(0.1)
            record['seconds'] += time.monotonic() - begun_at
            record['failovers'] += acted(lab, begun_at)
            if not loss:
                share = (cpu_seconds(lab.secondary) - cpu) / (time.monotonic() - begun_at)
                record.update(cpu=[share], memory=megabytes(lab.secondary), calls=len(lab.ec2.calls(since=begun_at)),
                              gap=gap(lab, begun_at, time.monotonic()))
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


# Makes an EC2 client, and tells the resident memory: what no monitor in Python can undercut.
BOTO3 = """
import boto3, requests
client = boto3.session.Session(region_name='us-east-1').client('ec2')
print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')][0])
"""


def imports(who: str) -> Record:
    """Measure what it costs to start Python and make an EC2 client with boto3 alone."""
    started_at = time.monotonic()
    memory = subprocess.run([sys.executable, '-c', BOTO3], check=True, capture_output=True, text=True).stdout
    return {'what': 'imports', 'who': who, 'seconds': time.monotonic() - started_at, 'memory': int(memory) / 1024}


MEASUREMENTS: Dict[str, Callable[..., Record]] = {
    one.__name__: one for one in (crash, again, connections, watch, begin, imports)}


def too_long(*_: object) -> None:
    raise TimeoutError('it took too long')


def perform(what: str, arguments: Dict[str, Any]) -> List[Record]:
    """Make a measurement by its name and return its record; one that fails or hangs is a record too, and repeated."""
    records: List[Record] = []
    signal.signal(signal.SIGALRM, too_long)
    for attempt in 1, 2:
        told = io.StringIO()  # by the lab, when something fails in it
        try:
            signal.alarm(HANGS)
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
