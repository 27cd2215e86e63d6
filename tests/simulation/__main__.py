"""The soak: every pair of faults on a grid, then three faults and more, as hypothesis draws them."""
from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import time
from typing import Any, Iterator

from .search import Pairs, draw, in_batches, search


def main() -> int:
    pairs = Pairs()
    parser = argparse.ArgumentParser(prog='python -m tests.simulation', description=__doc__)
    parser.add_argument('--first', type=int, default=0, help='number of the first pair (%(default)s)')
    parser.add_argument('--count', type=int, default=pairs.count, help='of pairs (all %(default)s)')
    parser.add_argument('--seconds', type=float, default=3000.0, help='the longest time for them (%(default)g)')
    parser.add_argument('--more', type=float, default=600.0, help='seconds for three faults and more (%(default)g)')
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1, help='processes (%(default)s)')
    parser.add_argument('--seed', type=int, default=int(time.time()) % 100000, help='of these; another one each time')
    options = parser.parse_args()
    last = min(pairs.count, options.first + options.count)
    drawn = (functools.partial(draw, options.seed * 100003 + n) for n in itertools.count())
    return max(
        report(f'pairs of faults, from number {options.first} on', options.jobs, options.seconds,
               in_batches(map(pairs.__getitem__, range(options.first, last)))),
        report(f'schedules of three faults and more, seed {options.seed}', options.jobs, options.more, drawn))


def report(what: str, jobs: int, seconds: float, batches: Iterator[Any]) -> int:
    """Live through these, tell what came of it, return the exit code."""
    started_at = time.monotonic()
    found = search(batches, jobs, seconds)
    took = time.monotonic() - started_at
    print(f'{found.runs} {what}, in {took:.0f} s, {found.runs / took:.0f} a second; the worst values seen:')
    for name, value in sorted(found.worst.items()):
        print(f'  {name}: {value:.1f}')
    print(*found.failures, sep='\n\n', flush=True)
    return 1 if found.failures else 0


if __name__ == '__main__':
    sys.exit(main())
