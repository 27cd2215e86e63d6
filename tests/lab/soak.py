"""Crash the primary every two minutes for an hour: `python -m tests.lab.soak` (or `tox -e soak`).

The secondary's monitor lives through all of it; the primary is stopped by it, or by the operator where it waits for
longer, as it does the more often it has stopped its peer, and takes everything back when it has started.

At the end: was each outage as short as it must be, and has the monitor that lives on grown? The last quarter of what it
took before each crash is compared with the first. Of memory the medians count, of threads and descriptors the least, as
calls need some for a while, and keep their connections until the next ones.
"""

import argparse
import statistics
import sys
import time
from typing import Any, Callable, Dict, List

from .lab import Instance, Lab
from .traffic import LATE

SETTINGS: Dict[str, Any] = {'PING_TIMEOUT': 0.2, 'WAIT_BETWEEN_PINGS': 0.2, 'WAIT_FOR_INSTANCE_STOP': 20,
                            'WAIT_FOR_INSTANCE_START': 30}
TIMES: Dict[str, Any] = {'latency': 0.15, 'pending': 0.5, 'boot': 1.0, 'job_delay': 0.2, 'stop': 1.0, 'impaired': 2.0}
ALLOWANCE = 1.0  # s, for a machine that is busy with other things, too
CRASH, MOVE = 'crashes', 'fail-backs, and while nothing happened'
LONGEST = {CRASH: 0.95 + ALLOWANCE, MOVE: 0.2 + ALLOWANCE}  # s that an outage may last; the first: wait, misses, a call
STOP_AFTER = 50.0  # s from a crash until the operator stops the instance; a monitor that may do so has by then
BACK_WITHIN = 80.0  # s from a crash until both hear each other again
# From the first quarter to the last: a look may have left its connections open, or not.
MAY_GROW = {'KiB': 1024, 'threads': 0, 'descriptors': 4}


def sample(instance: Instance) -> Dict[str, int]:
    """Return what its monitor takes now."""
    status = dict(line.split(':', 1) for line in instance.proc('status').splitlines())
    descriptors = (instance.node.root / f'proc/{instance.monitor_pid}/fd').iterdir()
    return {'KiB': int(status['VmRSS'].split()[0]), 'threads': int(status['Threads']),
            'descriptors': len(list(descriptors))}


def grown(samples: List[Dict[str, int]]) -> List[str]:
    """Print what the first and the last quarter took; return what has grown."""
    n, found = max(1, len(samples) // 4), []
    for of, most in MAY_GROW.items():
        take: Callable[[List[int]], float] = statistics.median if of == 'KiB' else min
        first, last = (take([one[of] for one in some]) for some in (samples[:n], samples[-n:]))
        print(f'{of} at first {first:.0f}, at last {last:.0f} (n = {n})')
        found += [f'the secondary takes more {of}'] * (last - first > most)
    return found


def heard_again(lab: Lab, lengths: Dict[str, int]) -> bool:
    """Tell whether each has heard the other since its log was so long."""
    return all(f'{instance.peer.id} answers' in instance.log[lengths[name]:]
               for name, instance in lab.instances.items())


def crash(lab: Lab) -> float:
    """Let the primary die, and wait until it serves again; return the monotonic time at which its peer served."""
    lengths, at = {name: len(one.log) for name, one in lab.instances.items()}, lab.primary.crash()
    lab.serves(lab.secondary)
    served_at = time.monotonic()
    while lab.primary.state == 'running' and time.monotonic() < at + STOP_AFTER:
        time.sleep(0.1)
    if lab.primary.state == 'running':
        lab.ec2.stop('primary')
    lab.wait_until(lambda: heard_again(lab, lengths), 'the primary is back', at + BACK_WITHIN - time.monotonic())
    lab.serves(lab.primary)
    outage, back_after = lab.traffic.outage(at, served_at), time.monotonic() - at
    print(f'outage {outage:.2f} s, the primary serves again after {back_after:.0f} s', flush=True)
    return served_at


def soak(lab: Lab, minutes: float, every: float) -> List[str]:
    """Crash the primary until the time is over; print what was seen and return what is wrong with it."""
    samples: List[Dict[str, int]] = []
    outages: Dict[str, List[float]] = {what: [] for what in LONGEST}
    lab.wait_until(lambda: heard_again(lab, dict.fromkeys(lab.instances, 0)), 'both hear each other')
    lab.serves(lab.primary)
    served_at = time.monotonic()
    due, ends_at = served_at + 10.0, served_at + 60 * minutes
    while not samples or due + BACK_WITHIN < ends_at:
        time.sleep(max(0.0, due - time.monotonic()))
        crashed_at = time.monotonic()
        outages[MOVE].append(lab.traffic.outage(served_at, crashed_at - LATE))
        samples.append(sample(lab.secondary))
        served_at = crash(lab)
        outages[CRASH].append(lab.traffic.outage(crashed_at, served_at))
        due += every
    faults = grown(samples)
    for what, values in outages.items():
        print(f'outages, {what}: longest {max(values):.2f} s of at most {LONGEST[what]:.2f} s (n = {len(values)})')
        faults += [f'{what}: too long'] * (max(values) > LONGEST[what])
    for name, instance in lab.instances.items():
        faults += [f'the {name} wrote: {instance.errors}'] * bool(instance.errors)
        faults += [f'a traceback in the log of the {name}'] * ('Traceback' in instance.log)
    return faults


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog='python -m tests.lab.soak', description=__doc__)
    parser.add_argument('--minutes', type=float, default=60.0, help='of all of it (default: 60)')
    parser.add_argument('--every', type=float, default=120.0, help='s, from one crash to the next (default: 120)')
    arguments = parser.parse_args()
    with Lab(SETTINGS, python=sys.executable, **TIMES) as lab:
        try:
            faults = soak(lab, arguments.minutes, arguments.every)
        except AssertionError as error:
            print('\n'.join(lab.report().splitlines()[-200:]))
            faults = [str(error)]
        except KeyboardInterrupt:
            print('\ninterrupted; nothing is left behind')
            return 130
    print('\n'.join(faults) or 'all is as it must be')
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
