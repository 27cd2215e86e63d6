"""Crash the instance that serves every two minutes for an hour: `python -m tests.lab.soak` (or `tox -e soak`).

In the first half whoever serves crashes, so that the two take turns. In the second half it is always the primary, to
which an operator hands over before each crash, so that the secondary's monitor lives through all of it. Whoever has
crashed is stopped by its peer's monitor, or by the operator where that waits for longer, as it does the more often it
has stopped its peer.

At the end: was each outage as short as it must be, and has a monitor grown? Those that crash are compared with others
that lived as long, the one that lives on with itself: the last quarter against the first. Of memory the medians count,
of threads and descriptors the least, as calls need some for a while, and keep their connections until the next ones.
"""

import argparse
import contextlib
import signal
import statistics
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

from nat_monitor import MAINTENANCE

from .lab import Instance, Lab
from .network import ELASTIC_IP
from .traffic import LATE

SETTINGS: Dict[str, Any] = {'PING_TIMEOUT': 0.2, 'WAIT_BETWEEN_PINGS': 0.2, 'WAIT_FOR_INSTANCE_STOP': 20,
                            'WAIT_FOR_INSTANCE_START': 30, 'FAIL_BACK': False}
TIMES: Dict[str, Any] = {'latency': 0.15, 'pending': 0.5, 'boot': 1.0, 'job_delay': 0.2, 'stop': 1.0}
ALLOWANCE = 1.0  # s, for a machine that is busy with other things, too
# s of an outage by a crash: the wait, misses (the primary waits for twice as many), a call
LONGEST = {who: 0.2 + misses * 0.2 + TIMES['latency'] + ALLOWANCE for who, misses in (('primary', 3), ('secondary', 6))}
MOVE = 0.2 + ALLOWANCE  # s of packets that a planned move may lose, and that may get lost while nothing happens
STOP_AFTER = 40.0  # s from a crash until the operator stops the instance; a monitor that may do so has by then
BACK_WITHIN = 80.0  # s from a crash until both hear each other again
SAMPLED_EVERY = 10.0  # s
# From the first quarter to the last: a look may have left its connections open, or not.
MAY_GROW = {'resident': 1024, 'threads': 0, 'descriptors': 4}


class Sample(NamedTuple):
    """What a monitor takes at some time: memory in KiB, threads, open descriptors."""

    name: str
    pid: int
    at: float
    resident: int
    threads: int
    descriptors: int


class Comparison(NamedTuple):
    """What the first and the last quarter of some samples took, n in each."""

    what: str
    of: str
    n: int
    first: float
    last: float

    @property
    def has_grown(self) -> bool:
        return self.last - self.first > MAY_GROW[self.of]

    def __str__(self) -> str:
        return (f'{self.what:34}{self.of:12}{self.first:9.0f}{self.last:9.0f}   '
                f'{"GROWN" if self.has_grown else "as before"} (n = {self.n})')


def compare(what: str, samples: Sequence[Sample]) -> List[Comparison]:
    """Compare the last quarter with the first, if there is enough of both."""
    n = len(samples) // 4
    quarters = samples[:n], samples[len(samples) - n:]

    def taken(of: str, some: Sequence[Sample]) -> float:
        values: List[int] = [getattr(one, of) for one in some]
        return statistics.median(values) if of == 'resident' else min(values)

    return [Comparison(what, of, n, *(taken(of, some) for some in quarters)) for of in MAY_GROW] if n else []


def sample(instance: Instance) -> List[Sample]:
    """Return what its monitor takes now; nothing, if it does not run."""
    with contextlib.suppress(OSError, KeyError):
        pid = instance.monitor_pid
        if pid:
            process = instance.node.root / f'proc/{pid}'
            status = dict(line.split(':', 1) for line in (process / 'status').read_text().splitlines())
            return [Sample(instance.name, pid, time.monotonic(), int(status['VmRSS'].split()[0]),
                           int(status['Threads']), len(list((process / 'fd').iterdir())))]
    return []


class Soak:
    """The crashes, and what was seen meanwhile."""

    def __init__(self, lab: Lab, minutes: float, every: float) -> None:
        self.lab, self.seconds, self.every = lab, 60 * minutes, every
        self.begun_at = time.monotonic()
        self.samples: List[Sample] = []
        self.dying: Dict[bool, List[Sample]] = {True: [], False: []}  # by half: the last one of each that crashed
        self.outages: Dict[str, List[float]] = {name: [] for name in LONGEST}  # by who crashed
        self.moves: List[float] = []  # outages of planned moves
        self.others: List[float] = []  # while nothing happened
        self.faults: List[str] = []
        self._sample_at = 0.0

    @property
    def half_at(self) -> float:
        return self.begun_at + self.seconds / 2

    def until(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait until *condition* is true, and sample the monitors meanwhile."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise AssertionError(f'not within {seconds:.0f} s: {what}')
            if time.monotonic() >= self._sample_at:
                self._sample_at = time.monotonic() + SAMPLED_EVERY
                for instance in self.lab.instances.values():
                    self.samples += sample(instance)
            time.sleep(0.02)

    def pause_until(self, at: float) -> None:
        self.until(lambda: time.monotonic() >= at, at - time.monotonic() + 60, 'a pause')

    def serves(self, instance: Instance) -> None:
        self.until(lambda: self.lab.holds(instance) and self.lab.traffic.egress() == ELASTIC_IP, 30,
                   f'the {instance.name} serves')

    def other(self, instance: Instance) -> Instance:
        return next(one for one in self.lab.instances.values() if one is not instance)

    def hear(self, since: Dict[str, int]) -> bool:
        """Tell whether either has heard the other since its log was so long."""
        return all(f'{self.other(instance).id} answers' in instance.log[since[name]:]
                   for name, instance in self.lab.instances.items())

    def lengths(self) -> Dict[str, int]:
        return {name: len(instance.log) for name, instance in self.lab.instances.items()}

    def run(self) -> None:
        """Crash one instance after the other until the time is over."""
        self.until(lambda: self.hear(dict.fromkeys(self.lab.instances, 0)), 30, 'both hear each other')
        self.serves(self.lab.primary)
        due = time.monotonic() + 10.0
        while due + BACK_WITHIN < self.begun_at + self.seconds:
            quiet_since = time.monotonic()
            self.pause_until(due)
            self.others.append(self.lab.traffic.outage(quiet_since, time.monotonic()))
            takes_turns = time.monotonic() < self.half_at
            if not takes_turns and not self.lab.holds(self.lab.primary):
                self.hand_over(self.lab.secondary, self.lab.primary)
            dies = next(instance for instance in self.lab.instances.values() if self.lab.holds(instance))
            self.dying[takes_turns] += sample(dies)
            self.crash(dies)
            due += self.every

    def hand_over(self, holder: Instance, peer: Instance) -> None:
        """Let an operator announce work on the holder, so that the peer takes over, and finish it."""
        since = time.monotonic()
        self.lab.ec2.tag(holder.name, MAINTENANCE)
        peer.kill_monitor(signal.SIGHUP)
        self.serves(peer)
        self.lab.ec2.untag(holder.name, MAINTENANCE)
        for instance in (holder, peer):
            self.look(instance)
        self.pause_until(time.monotonic() + LATE)
        self.moves.append(self.lab.traffic.outage(since, time.monotonic() - LATE))

    def look(self, instance: Instance) -> None:
        """Let a monitor ask EC2, and wait until it has been answered."""
        since = time.monotonic()
        instance.kill_monitor(signal.SIGHUP)
        self.until(lambda: any(call.result for call in self.lab.ec2.calls('DescribeRouteTables', instance.name,
                                                                          since=since)), 10, f'{instance.name} looks')

    def crash(self, instance: Instance) -> None:
        """Let it die, and wait until its peer serves, and until both hear each other again."""
        lab, survivor, lengths = self.lab, self.other(instance), self.lengths()
        at = instance.crash()
        self.serves(survivor)
        self.pause_until(time.monotonic() + LATE)
        outage = lab.traffic.outage(at, time.monotonic() - LATE)
        self.outages[instance.name].append(outage)
        self.until(lambda: instance.state != 'running' or time.monotonic() > at + STOP_AFTER, STOP_AFTER + 5,
                   'somebody stops it')
        by_operator = instance.state == 'running'
        if by_operator:
            lab.ec2.stop(instance.name)
        self.until(lambda: self.hear(lengths), at + BACK_WITHIN - time.monotonic(), f'the {instance.name} is back')
        print(f'{(at - self.begun_at) / 60:5.1f} min: the {instance.name} crashes: outage {outage:.2f} s, '
              f'stopped by {"the operator" if by_operator else "its peer"}, '
              f'both hear each other after {time.monotonic() - at:.0f} s', flush=True)

    def comparisons(self) -> List[Comparison]:
        """Compare monitors of equal age, and the one that lives on with itself."""
        survivor = next((one for one in reversed(self.samples) if one.name == 'secondary'), None)
        lives_on = [one for one in self.samples if survivor and (one.name, one.pid) == (survivor.name, survivor.pid)
                    and one.at > self.half_at]
        return [*compare('as it crashes, taking turns', self.dying[True]),
                *compare('as it crashes, the primary only', self.dying[False][1:]),  # the first one is older
                *compare('the secondary that lives on', lives_on)]

    def report(self) -> int:
        """Print what was seen; return the exit code."""
        comparisons = self.comparisons()
        print(f'\n{"":34}{"":12}{"first":>9}{"last":>9}   quarter; resident memory in KiB')
        print('\n'.join(map(str, comparisons)) or 'too few crashes to compare')
        longest = [*((f'outages as the {name} crashed', self.outages[name], limit) for name, limit in LONGEST.items()),
                   ('outages by a planned move', self.moves, MOVE),
                   ('outages while nothing happened', self.others, MOVE)]
        for what, values, limit in longest:
            if values:
                print(f'{what:34}median {statistics.median(values):.2f} s, longest {max(values):.2f} s of at most '
                      f'{limit:.2f} s (n = {len(values)})')
        tracebacks = sum(instance.log.count('Traceback') for instance in self.lab.instances.values())
        self.faults += [f'{what}: too long' for what, values, limit in longest if max(values, default=0.0) > limit]
        self.faults += [f'{one.what}: more {one.of}' for one in comparisons if one.has_grown]
        self.faults += [f'{tracebacks} tracebacks in the logs'] * bool(tracebacks)
        self.faults += [f'the {name} wrote: {instance.errors}' for name, instance in self.lab.instances.items()
                        if instance.errors]
        print('\n'.join(self.faults) or 'all is as it must be')
        return 1 if self.faults else 0


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog='python -m tests.lab.soak', description=__doc__)
    parser.add_argument('--minutes', type=float, default=60.0, help='of all of it (default: 60)')
    parser.add_argument('--every', type=float, default=120.0, help='s, from one crash to the next (default: 120)')
    arguments = parser.parse_args()
    with Lab(SETTINGS, python=sys.executable, **TIMES) as lab:
        soak = Soak(lab, arguments.minutes, arguments.every)
        try:
            soak.run()
        except AssertionError as error:
            soak.faults.append(str(error))
            print('\n'.join(lab.report().splitlines()[-200:]))
        except KeyboardInterrupt:
            print('\ninterrupted; nothing is left behind')
            return 130
        return soak.report()


if __name__ == '__main__':
    sys.exit(main())
