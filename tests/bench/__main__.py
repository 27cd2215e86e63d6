"""Measure how long a subnet is cut off: `python -m tests.bench` for a first look, `--full` for all figures."""
from __future__ import annotations

import argparse
import concurrent.futures.process
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Collection, Dict, List, Sequence, Tuple

from . import report
from .contenders import CONTENDERS, PATH
from .measure import Record, perform

RESULTS = Path(__file__).parent / 'results'
JOBS = 2  # labs side by side, and beside them twice as many that last minutes and mostly wait, those of LONG
LONG = ('again', 'watch', 'connections')
Task = Tuple[str, Dict[str, Any]]  # a measurement to make, and its arguments
RIVALS = ('reference', 'keepalived')
# What is measured, of whom and with what; how often in a full run, and for a first look.
PLAN: Sequence[Tuple[str, Sequence[str], Dict[str, Any], int, int]] = (
    ('again', ['default'], {'lag': 60.0}, 2, 1),
    ('again', ['reference'], {'lag': 60.0}, 1, 0),
    *(('again', ['default'], {'lag': lag}, 2, 0) for lag in (120.0, 300.0)),
    ('watch', ['default'], {'loss': 0, 'minutes': 1}, 0, 1),
    ('watch', ['default', 'keepalived'], {'loss': 20, 'minutes': 1}, 0, 1),
    *(('watch', ['careful', 'reference'], {'loss': loss, 'minutes': 2}, 1, 0) for loss in (0, 5, 20, 40)),
    *(('watch', ['default', 'quick', 'keepalived', 'keepalived quick'], {'loss': loss, 'minutes': 5}, 1, 0)
      for loss in (0, 5, 20, 40)),
    ('connections', ['default', 'keepalived'], {}, 2, 1),
    ('connections', ['reference'], {}, 2, 0),
    ('crash', ['default', 'quick'], {}, 20, 6),
    ('crash', ['careful'], {}, 10, 0),
    ('crash', ['reference'], {}, 10, 1),
    ('crash', ['keepalived', 'keepalived quick'], {}, 10, 2),
    *(('crash', ['default'], {'latency': latency}, 20, 2) for latency in (0.5, 2.0)),
    ('crash', ['keepalived'], {'latency': 0.5}, 10, 2),
    ('crash', ['reference'], {'latency': 0.5}, 10, 0),
    ('crash', RIVALS, {'latency': 2.0}, 10, 0),
    ('crash', ['default', *RIVALS], {'tables': 5}, 10, 0),
    ('crash', ['default'], {'tables': 20}, 10, 0),
    ('crash', ['default'], {'tables': 50}, 10, 2),
    ('begin', ['default'], {}, 10, 2),
    ('begin', RIVALS, {}, 10, 0),
    ('imports', ['boto3'], {}, 10, 2))


def plan(full: bool, absent: Collection[str]) -> List[Task]:
    """Return what is to be measured, all contenders interleaved; what lasts longest comes first."""
    tasks = [(what, {'who': who, **how}) for what, whose, how, *times in PLAN for who in whose if who not in absent
             for _ in range(times[0 if full else 1])]
    random.shuffle(tasks)
    return sorted(tasks, key=lambda one: one[0] != 'again')


def version(*command: str) -> str:
    """Return the first line of what a program says of its version."""
    try:
        result = subprocess.run(command, env={'PATH': PATH}, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
    except OSError:
        return 'missing'
    return result.stdout.partition('\n')[0]


def about(full: bool) -> Record:
    """Return when, where, how and with what this run is made."""
    with open('/proc/cpuinfo') as file:
        model = next((line.partition(':')[2].strip() for line in file if line.startswith('model name')), '')
    return {'what': 'run', 'date': datetime.date.today().isoformat(), 'full': full,
            'machine': f'{os.cpu_count()} cores, {model or platform.machine()}, '
                       f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.0f} GiB',
            'kernel': platform.release(), 'python': platform.python_version(),
            'boto3': importlib.metadata.version('boto3'), 'jobs': JOBS,
            'aws': version('aws', '--version').partition(' ')[0], 'keepalived': version('keepalived', '--version')}


def measure(tasks: List[Task], file: Path) -> None:
    """Make these measurements; each record is added to the file as soon as it is there."""
    context = multiprocessing.get_context('spawn')  # moto and the lab have threads
    pools = {long: concurrent.futures.ProcessPoolExecutor(count, context) for long, count in (
        (True, 2 * JOBS), (False, JOBS))}
    try:
        futures = [pools[one[0] in LONG].submit(perform, *one) for one in tasks]
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            for record in future.result():
                with file.open('a') as results:
                    results.write(json.dumps(record) + '\n')
                print(f'{number:4}/{len(tasks)} {report.in_short(record)}', flush=True)
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)


def main() -> int:
    """Run the benchmark or write the report of its last full run; return the exit code."""
    parser = argparse.ArgumentParser(prog='python -m tests.bench', description=__doc__)
    parser.add_argument('--full', action='store_true', help='all measurements; the results are kept')
    parser.add_argument('--report', action='store_true',
                        help='draw the picture and write what README.adoc shows and the page beside it anew, from the '
                             'stored results')
    arguments = parser.parse_args()
    stored = RESULTS / ('full.jsonl' if arguments.full or arguments.report else 'first_look.jsonl')
    if not arguments.report:
        part = stored.with_suffix('.part')  # until all is there
        absent = [name for name, one in CONTENDERS.items() if one.missing]
        for name in absent:
            print(f'{name} is left out: {CONTENDERS[name].missing} is not installed')
        part.write_text(json.dumps(about(arguments.full)) + '\n')
        try:
            measure(plan(arguments.full, absent), part)
        except (KeyboardInterrupt, concurrent.futures.process.BrokenProcessPool):
            print(f'interrupted; no lab is left behind, and what has been measured is in {part}')
            return 130
        part.replace(stored)
    records = report.read(stored)
    if records[0]['full']:
        report.draw(records)
        report.write(records)
    return report.targets(records)


if __name__ == '__main__':
    sys.exit(main())
