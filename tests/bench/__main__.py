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
from typing import Any, Collection, Dict, List, Tuple

from . import report
from .contenders import CONTENDERS, PATH
from .measure import CLIENTS, Record, perform

RESULTS = Path(__file__).parent / 'results'
# By measurement: s that it takes at most, where watching takes as long as is asked for; one that takes longer than a
# minute and four times that hangs. Those in LONG last minutes and mostly wait.
EXPECTED = {'crash': 65, 'again': 440, 'connections': 65, 'hiccup': 70, 'begin': 10, 'imports': 1, 'watch': 60}
LONG = ('again', 'watch', 'connections', 'hiccup')
WATCHED = ('default', 'quick', 'keepalived', 'keepalived quick')  # for longer than others


Task = Tuple[str, Dict[str, Any]]  # a measurement to make, and its arguments


def task(what: str, **arguments: Any) -> Task:
    return what, arguments


def limit(what: str, arguments: Dict[str, Any]) -> float:
    """Return the seconds after which a measurement hangs."""
    return 60 + 4 * (EXPECTED[what] + 60 * float(arguments.get('minutes', 0)))


def plan(full: bool, minutes: float, seed: int, absent: Collection[str]) -> List[Task]:
    """Return what is to be measured, all contenders interleaved; what lasts longest comes first."""
    chance = random.Random(seed)
    rivals = ['reference', 'keepalived', 'keepalived quick']
    lasting = lasting_full(minutes) if full else lasting_first_look(minutes)
    turns = 20 if full else 6
    tasks = [one for one in lasting if one[0] == 'again']
    others = [one for one in lasting if one[0] != 'again']
    for number in range(turns):
        turn = others[number::turns]

        def crash(*whose: str, **how: Any) -> None:
            turn.extend(task('crash', who=who, seed=chance.randrange(10**6), **how) for who in whose)

        crash('default', 'quick')
        if full:
            crash('default', latency=0.5)
            crash('default', latency=2.0)
            if number % 2:  # half as many
                crash('careful', *rivals)
                crash(*rivals[:2], latency=0.5)
                crash(*rivals[:2], latency=2.0)
                crash('default', *rivals[:2], tables=5)
                crash('default', tables=20)
                crash('default', tables=50)
                turn += [task('begin', who=who) for who in ('default', *rivals[:2])]
                turn += [task('imports', who=who) for who in CLIENTS]
        elif number < 2:
            crash('keepalived', 'keepalived quick')
            crash('default', 'keepalived', latency=0.5)
            crash('default', latency=2.0)
            crash('default', tables=50)
            turn += [task('begin', who='default'), *(task('imports', who=who) for who in CLIENTS)]
        elif number == 2:
            crash('reference')
        chance.shuffle(turn)
        tasks += turn
    return [one for one in tasks if one[1].get('who') not in absent]


def lasting_full(minutes: float) -> List[Task]:
    """Return the measurements of a full run that last minutes and mostly wait."""
    again = [task('again', who=who, **how) for who, how in (
        ('reference', {}), *(('default', {'lag': lag}) for lag in (300.0, 120.0, 60.0)),
        ('default', {'os_shutdown': 60.0}))]
    watches = [task('watch', who=who, loss=loss, minutes=minutes if who in WATCHED else 0.4 * minutes)
               for loss in (0, 5, 20, 40) for who in CONTENDERS]
    hiccups = [task('hiccup', who=who, watcher=watcher) for who in ('careful', 'default', 'quick')
               for watcher in ('secondary', 'primary')]
    kept = [task('connections', who=who) for who in ('default', 'reference', 'keepalived') for _ in range(2)]
    return [*again, *again[1:], *watches, *hiccups, *kept, task('connections', who='default')]


def lasting_first_look(minutes: float) -> List[Task]:
    """Return those of a first look."""
    return [task('again', who='default', lag=60.0),
            task('watch', who='default', loss=0, minutes=minutes),
            *(task('watch', who=who, loss=20, minutes=minutes) for who in ('default', 'keepalived')),
            task('hiccup', who='default'), *(task('connections', who=who) for who in ('default', 'keepalived'))]


def version(*command: str) -> str:
    """Return the first line of what a program says of its version."""
    try:
        result = subprocess.run(command, env={'PATH': PATH}, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
    except OSError:
        return 'missing'
    return result.stdout.partition('\n')[0]


def about(full: bool, minutes: float, jobs: int, seed: int, absent: Collection[str]) -> Record:
    """Return when, where, how and with what this run is made."""
    with open('/proc/cpuinfo') as file:
        model = next((line.partition(':')[2].strip() for line in file if line.startswith('model name')), '')
    return {'what': 'run', 'date': datetime.date.today().isoformat(), 'full': full, 'minutes': minutes, 'jobs': jobs,
            'seed': seed, 'absent': list(absent),
            'machine': f'{os.cpu_count()} cores, {model or platform.machine()}, '
                       f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.0f} GiB',
            'kernel': platform.release(), 'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ('boto3', 'moto')},
            'aws': version('aws', '--version').partition(' ')[0], 'keepalived': version('keepalived', '--version')}


def measure(tasks: List[Task], jobs: int, file: Path) -> None:
    """Make these measurements: `jobs` at a time, and beside them twice as many that last longer and mostly wait.

    Each record is added to the file as soon as it is there.
    """
    context = multiprocessing.get_context('spawn')  # moto and the lab have threads
    pools = {long: concurrent.futures.ProcessPoolExecutor(count, context) for long, count in (
        (True, 2 * jobs), (False, jobs))}
    try:
        futures = [pools[one[0] in LONG].submit(perform, *one, limit(*one)) for one in tasks]
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
    parser.add_argument('--minutes', type=float, help='of each count of false failovers (default: 5, first look: 1)')
    parser.add_argument('--jobs', type=int, default=2, help='labs side by side (default: 2)')
    parser.add_argument('--seed', type=int, default=random.randrange(10**6), help='of the moments of the crashes')
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
        minutes = arguments.minutes or (5 if arguments.full else 1)
        RESULTS.mkdir(exist_ok=True)
        part.write_text(json.dumps(about(arguments.full, minutes, arguments.jobs, arguments.seed, absent)) + '\n')
        try:
            measure(plan(arguments.full, minutes, arguments.seed, absent), arguments.jobs, part)
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
