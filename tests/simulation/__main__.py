"""The soak: every pair of faults on a grid, then three faults and more, drawn at random."""
from __future__ import annotations

import argparse
import math
import os
import sys
import time
from typing import Iterator

from .faults import Pairs, Schedule, drawn
from .search import search


def main() -> int:
    pairs = Pairs()
    parser = argparse.ArgumentParser(prog='python -m tests.simulation', description=__doc__)
    parser.add_argument('--first', type=int, default=0, help='number of the first pair (%(default)s)')
    parser.add_argument('--count', type=int, default=pairs.count, help='of pairs (all %(default)s)')
    parser.add_argument('--seconds', type=float, default=math.inf, help='the longest time for them (%(default)g)')
    parser.add_argument('--more', type=float, default=600.0, help='seconds for three faults and more (%(default)g)')
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1, help='processes (%(default)s)')
    parser.add_argument('--seed', type=int, default=int(time.time()) % 100000, help='of these; another one each time')
    options = parser.parse_args()

    def report(what: str, schedules: Iterator[Schedule], seconds: float) -> bool:
        """Live through these, tell what came of it, and whether all promises held."""
        started_at = time.monotonic()
        found = search(schedules, options.jobs, seconds)
        took = time.monotonic() - started_at
        print(f'{found.runs} {what}, in {took:.0f} s, {found.runs / took:.0f} a second', *found.failures,
              sep='\n\n', flush=True)
        return not found.failures

    last = min(pairs.count, options.first + options.count)
    held = [report(f'pairs of faults, from number {options.first} on',
                   map(pairs.__getitem__, range(options.first, last)), options.seconds),
            report(f'schedules of three faults and more, seed {options.seed}', drawn(options.seed), options.more)]
    return 0 if all(held) else 1


if __name__ == '__main__':
    sys.exit(main())
