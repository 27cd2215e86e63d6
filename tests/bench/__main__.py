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
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Set

from . import report
from .contenders import CONTENDERS, PATH
from .measure import Record, perform

RESULTS = Path(__file__).parent / 'results'
EXPECTED = {'crash': 15, 'again': 105, 'begin': 5, 'imports': 1}  # s, of one measurement


class Task(NamedTuple):
    """A measurement to make, and how many seconds it may take."""

    what: str
    arguments: Dict[str, Any]
    seconds: float
    patient: bool = False  # it waits most of the time


def task(what: str, **arguments: Any) -> Task:
    who = CONTENDERS.get(arguments.get('who', ''), CONTENDERS['default'])
    seconds = EXPECTED.get(what, 0.0) + {'reference': 4, 'keepalived': 12}.get(who.name, 0)
    if what == 'crash':
        seconds += 4 * arguments.get('latency', 0.15)
    if what == 'again' and who.script:
        seconds = 440
    if what == 'watch':
        seconds = 60 * arguments['minutes'] + 30
    return Task(what, arguments, seconds, what in ('again', 'watch'))


def plan(full: bool, minutes: float, seed: int, absent: Set[str]) -> List[Task]:
    """Return what is to be measured, all contenders interleaved."""
    chance = random.Random(seed)
    tasks: List[Task] = []
    rivals = ['default', 'reference', 'keepalived']
    repetitions = 20 if full else 10
    for number in range(repetitions):
        turn: List[Task] = []

        def crash(who: str, **how: Any) -> None:
            turn.append(task('crash', who=who, seed=chance.randrange(10**6), **how))

        for who in rivals:
            if full or who == 'default' or number < 3:
                for latency in (0.15, 0.5, 2.0) if full else (0.15,):
                    crash(who, latency=latency)
        for who in ('quick', 'careful') if full else ('quick',):
            crash(who)
        if number < (5 if full else 2):
            for tables in (5, 10, 20) if full else (10,):
                for who in rivals if full else rivals[:1]:
                    crash(who, tables=tables)
        if number < (10 if full else 3):
            turn += [task('begin', who=who) for who in (rivals if full else rivals[:1])] + [task('imports')]
        chance.shuffle(turn)
        tasks += turn
    if full:
        tasks += [task('again', who=who) for who in ('reference', 'default') for _ in range(3)]
        tasks += [task('watch', who=who, loss=loss, minutes=minutes) for loss in (0, 5, 20, 40) for who in CONTENDERS]
    else:
        tasks.append(task('watch', who='default', loss=0, minutes=minutes))
    return [one for one in tasks if one.arguments.get('who') not in absent]


def version(*command: str) -> str:
    """Return the first line of what a program says of its version."""
    try:
        result = subprocess.run(command, env={'PATH': PATH}, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
    except OSError:
        return 'missing'
    return result.stdout.partition('\n')[0]


def about(seed: int, jobs: int, full: bool) -> Record:
    """Return when, where and with what this run is made."""
    with open('/proc/cpuinfo') as file:
        model = next((line.partition(':')[2].strip() for line in file if line.startswith('model name')), '')
    return {'what': 'run', 'full': full, 'date': datetime.date.today().isoformat(), 'seed': seed, 'jobs': jobs,
            'machine': f'{os.cpu_count()} cores, {model or platform.machine()}, '
                       f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.0f} GiB',
            'kernel': platform.release(), 'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ('boto3', 'moto')},
            'aws': version('aws', '--version').partition(' ')[0], 'keepalived': version('keepalived', '--version')}


def measure(tasks: List[Task], jobs: int, header: Record) -> List[Record]:
    """Make all measurements: `jobs` at a time, and beside them twice as many that wait most of the time."""
    started_at, records = time.monotonic(), [header]
    context = multiprocessing.get_context('spawn')  # moto and the lab have threads
    workers = {True: 2 * jobs, False: jobs}
    pools = {patient: concurrent.futures.ProcessPoolExecutor(count, context) for patient, count in workers.items()}
    left = {patient: sum(one.seconds for one in tasks if one.patient is patient) for patient in workers}
    total = max(left[patient] / count for patient, count in workers.items())
    print(f'{len(tasks)} measurements, about {total / 60 + 0.5:.0f} min', flush=True)
    try:
        futures = {pools[one.patient].submit(perform, one.what, one.arguments): one for one in tasks}
        for future in concurrent.futures.as_completed(futures):
            one, record = futures[future], future.result()
            records.append(record)
            left[one.patient] -= one.seconds
            rest = max(left[patient] / count for patient, count in workers.items())
            rest *= max(0.5, (time.monotonic() - started_at) / max(1.0, total - rest)) if rest < 0.9 * total else 1.0
            print(f'{len(records) - 1:4}/{len(tasks)} {report.in_short(record)}; {rest / 60:.1f} min left', flush=True)
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)
    return records


def main() -> int:
    """Run the benchmark or print the report of its last full run; return the exit code."""
    parser = argparse.ArgumentParser(prog='python -m tests.bench', description=__doc__)
    parser.add_argument('--full', action='store_true', help='all measurements; the results are kept')
    parser.add_argument('--minutes', type=float, help='of each count of false failovers (default: 5, first look: 1)')
    parser.add_argument('--jobs', type=int, default=2, help='labs side by side (default: 2)')
    parser.add_argument('--seed', type=int, default=random.randrange(10**6), help='of the moments of the crashes')
    parser.add_argument('--report', action='store_true', help='print the section of README.adoc and draw the picture')
    arguments = parser.parse_args()
    if arguments.report:
        records = report.read(RESULTS / 'full.jsonl')
        report.draw(records)
        print(report.section(records))
        return 0
    absent = {name for name, one in CONTENDERS.items() if one.missing}
    for name in sorted(absent):
        print(f'{name} is left out: {CONTENDERS[name].missing} is not installed')
    tasks = plan(arguments.full, arguments.minutes or (5 if arguments.full else 1), arguments.seed, absent)
    try:
        records = measure(tasks, arguments.jobs, about(arguments.seed, arguments.jobs, arguments.full))
    except (KeyboardInterrupt, concurrent.futures.process.BrokenProcessPool):
        print('interrupted; nothing is left behind')
        return 130
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / ('full.jsonl' if arguments.full else 'first_look.jsonl')).write_text(
        ''.join(json.dumps(record) + '\n' for record in records))
    if arguments.full:
        report.draw(records)
        print(report.section(records))
    return report.targets(records)


if __name__ == '__main__':
    sys.exit(main())
