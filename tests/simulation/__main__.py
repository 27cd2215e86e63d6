"""The soak: tens of thousands of schedules, then the deliberate mistakes that the simulation must catch."""
from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import time

from .mutations import MISTAKES, hunt, mistaken
from .search import search_together

# Of so many schedules of the soak, one is drawn by these, which live through hours.
LONG_ONES = {'contests': 100, 'darkness': 250, 'crash_loops': 1000}


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.simulation', description=__doc__)
    parser.add_argument('--count', type=int, default=50000, help='schedules (%(default)s)')
    parser.add_argument('--seconds', type=float, default=3000.0, help='the longest time for them (%(default)g)')
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1, help='processes (%(default)s)')
    parser.add_argument('--seed', type=int, default=int(time.time()) % 100000, help='another one each time')
    parser.add_argument('--mistakes', action='store_true', help='only the mistakes')
    options = parser.parse_args()
    for name in MISTAKES:
        mistaken(name)  # fails at once where nat_monitor.py has changed
    if not options.mistakes:
        print(f'seed {options.seed}, {options.count} schedules in {options.jobs} processes', flush=True)
        counts = {'schedules': options.count, **{name: options.count // n for name, n in LONG_ONES.items()}}
        for generator, count in counts.items():
            started_at = time.monotonic()
            found = search_together(options.seed, count, options.jobs, options.seconds, generator)
            took = time.monotonic() - started_at
            print(f'{found.runs} {generator.replace("_", " ")} in {took:.0f} s, {found.runs / took:.0f} a second; '
                  'the worst values seen:')
            for what, value in sorted(found.worst.items()):
                print(f'  {what}: {value:.1f}', flush=True)
            if found.failure:
                print(found.failure)
                return 1
    missed = 0
    with concurrent.futures.ProcessPoolExecutor(options.jobs, multiprocessing.get_context('fork')) as pool:
        for name, runs, by in pool.map(hunt, MISTAKES):
            missed += not by
            print(f'{name}: ' + (f'caught by schedule {runs}: {by}' if by else f'NOT CAUGHT by {runs} schedules'),
                  flush=True)
    print(f'{len(MISTAKES) - missed} of {len(MISTAKES)} mistakes caught')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
