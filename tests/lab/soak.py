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
import statistics
import sys
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

from nat_monitor import MAINTENANCE

from .lab import Instance, Lab
from .traffic import LATE

SETTINGS: Dict[str, Any] = {'PING_TIMEOUT': 0.2, 'WAIT_BETWEEN_PINGS': 0.2, 'WAIT_FOR_INSTANCE_STOP': 20,
                            'WAIT_FOR_INSTANCE_START': 30, 'FAIL_BACK': False}
TIMES: Dict[str, Any] = {'latency': 0.15, 'pending': 0.5, 'boot': 1.0, 'job_delay': 0.2, 'stop': 1.0}
ALLOWANCE = 1.0  # s, for a machine that is busy with other things, too
MOVE = 'planned moves, and while nothing happened'
# s that an outage may last: after a crash the wait, misses (the primary waits for twice as many), a call
LONGEST = {'primary': 0.95 + ALLOWANCE, 'secondary': 1.55 + ALLOWANCE, MOVE: 0.2 + ALLOWANCE}
STOP_AFTER = 40.0  # s from a crash until the operator stops the instance; a monitor that may do so has by then
BACK_WITHIN = 80.0  # s from a crash until both hear each other again
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


def grown(what: str, samples: Sequence[Sample]) -> List[str]:
    """Print what the first and the last quarter took; return what has grown."""
    n, found = len(samples) // 4, []  # of few, chance tells more
    for of, most in MAY_GROW.items() if n > 2 else ():
        take: Callable[[List[int]], float] = statistics.median if of == 'resident' else min
        first, last = (take([getattr(one, of) for one in some]) for some in (samples[:n], samples[-n:]))
        print(f'{what:34}{of:12}{first:9.0f}{last:9.0f} (n = {n})')
        found += [f'{what}: more {of}'] * (last - first > most)
    return found


class Soak:
    """The crashes, and what was seen meanwhile."""

    def __init__(self, lab: Lab, minutes: float, every: float) -> None:
        self.lab, self.every = lab, every
        self.begun_at = time.monotonic()
        self.half_at, self.ends_at = self.begun_at + 30 * minutes, self.begun_at + 60 * minutes
        self.samples: List[Sample] = []
        self.dying: Dict[bool, List[Sample]] = {True: [], False: []}  # as they crashed; while they took turns, or not
        self.outages: Dict[str, List[float]] = {what: [] for what in LONGEST}
        self.faults: List[str] = []
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """Take samples, for ever."""
        while True:
            for instance in self.lab.instances.values():
                self.samples += sample(instance)
            time.sleep(10.0)

    def hear(self, since: Dict[str, int]) -> bool:
        """Tell whether either has heard the other since its log was so long."""
        return all(f'{instance.peer.id} answers' in instance.log[since[name]:]
                   for name, instance in self.lab.instances.items())

    def run(self) -> None:
        """Crash one instance after the other until the time is over."""
        self.lab.wait_until(lambda: self.hear(dict.fromkeys(self.lab.instances, 0)), 'both hear each other')
        self.lab.serves(self.lab.primary)
        due = time.monotonic() + 10.0
        while due + BACK_WITHIN < self.ends_at:
            quiet_since = time.monotonic()
            time.sleep(max(0.0, due - quiet_since))
            self.outages[MOVE].append(self.lab.traffic.outage(quiet_since, time.monotonic()))
            takes_turns = time.monotonic() < self.half_at
            if not takes_turns and not self.lab.holds(self.lab.primary):
                self.hand_over(self.lab.secondary)
            dies = next(instance for instance in self.lab.instances.values() if self.lab.holds(instance))
            self.dying[takes_turns] += sample(dies)
            self.crash(dies)
            due += self.every

    def hand_over(self, holder: Instance) -> None:
        """Let an operator announce work on the holder, so that the peer takes over, and finish it."""
        since = time.monotonic()
        self.lab.ec2.tag(holder.name, MAINTENANCE)
        holder.peer.look()
        self.moved(holder.peer, since, MOVE)
        self.lab.ec2.untag(holder.name, MAINTENANCE)
        for instance in self.lab.instances.values():
            instance.look()

    def moved(self, heir: Instance, since: float, what: str) -> float:
        """Wait until everything has moved; note how long the outage was, and return it."""
        self.lab.serves(heir)
        time.sleep(LATE)
        self.outages[what].append(self.lab.traffic.outage(since, time.monotonic() - LATE))
        return self.outages[what][-1]

    def crash(self, instance: Instance) -> None:
        """Let it die, and wait until its peer serves, and until both hear each other again."""
        lab, lengths = self.lab, {name: len(one.log) for name, one in self.lab.instances.items()}
        at = instance.crash()
        outage = self.moved(instance.peer, at, instance.name)
        while instance.state == 'running' and time.monotonic() < at + STOP_AFTER:
            time.sleep(0.1)
        by_operator = instance.state == 'running'
        if by_operator:
            lab.ec2.stop(instance.name)
        lab.wait_until(lambda: self.hear(lengths), f'the {instance.name} is back', at + BACK_WITHIN - time.monotonic())
        print(f'{(at - self.begun_at) / 60:5.1f} min: the {instance.name} crashes: outage {outage:.2f} s, '
              f'stopped by {"the operator" if by_operator else "its peer"}, '
              f'both hear each other after {time.monotonic() - at:.0f} s', flush=True)

    def report(self) -> int:
        """Print what was seen; return the exit code."""
        print(f'\n{"first and last quarter; memory in KiB":46}{"first":>9}{"last":>9}')
        survivor = next((one.pid for one in reversed(self.samples) if one.name == 'secondary'), None)
        self.faults += grown('as it crashes, taking turns', self.dying[True])
        self.faults += grown('as it crashes, the primary only', self.dying[False][1:])  # the first one is older
        self.faults += grown('the secondary that lives on', [
            one for one in self.samples if (one.name, one.pid) == ('secondary', survivor) and one.at > self.half_at])
        for what, values in self.outages.items():
            longest = max(values, default=0.0)
            print(f'outages, {what}: longest {longest:.2f} s of at most {LONGEST[what]:.2f} s (n = {len(values)})')
            self.faults += [f'{what}: too long'] * (longest > LONGEST[what])
        for name, instance in self.lab.instances.items():
            self.faults += [f'the {name} wrote: {instance.errors}'] * bool(instance.errors)
            self.faults += [f'a traceback in the log of the {name}'] * ('Traceback' in instance.log)
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
