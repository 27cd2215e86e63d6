"""The demonstration, as somebody sees it who pipes it to a file, or has seen enough."""
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, List

import pytest

from .demo import WIDTH
from .lab import GUARD, REPOSITORY

pytestmark = pytest.mark.lab


@contextlib.contextmanager
def demo(mark: str = '') -> Iterator['subprocess.Popen[str]']:
    command = [sys.executable, '-m', 'tests.lab.demo']
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, 'MARK': mark}) as process:
        try:
            yield process
        finally:
            process.kill()


def processes(mark: str) -> List[str]:
    """Return the command lines of the processes that have inherited MARK=*mark*."""
    found = []
    for directory in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if f'MARK={mark}'.encode() in (directory / 'environ').read_bytes().split(b'\0'):
                found.append((directory / 'cmdline').read_text().replace('\0', ' '))
    return found


@pytest.mark.core
def test_it_shows_a_failover_and_the_outage() -> None:
    with demo() as process:
        shown, _ = process.communicate(timeout=GUARD)

    assert process.returncode == 0, shown
    assert all(len(line) <= WIDTH and line.isprintable() for line in shown.splitlines()), shown
    for words in ('THE KERNEL OF THE PRIMARY DIES', 'taking over', 'ReplaceRoute', 'StopInstances', 'StartInstances',
                  'has started: claiming', 'the pair is redundant', '....', '||||', 'outage of the private host'):
        assert words in shown


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL], ids=['Ctrl-C', 'kill -9'])
def test_it_can_be_ended_at_any_time_and_leaves_nothing_behind(how: signal.Signals, tmp_path: Path) -> None:
    mounts, mark = Path('/proc/mounts').read_text(), str(tmp_path)
    with demo(mark) as process:
        assert process.stdout
        first = process.stdout.readline()
        there = len(processes(mark))
        process.send_signal(how)
        shown, _ = process.communicate(timeout=GUARD)

    assert 'the primary is' in first and there > 5 and 'Traceback' not in shown
    assert (process.returncode, shown.endswith('interrupted; nothing is left behind\n')) == (
        (130, True) if how == signal.SIGINT else (-signal.SIGKILL, False))
    until = time.monotonic() + GUARD
    while left := processes(mark):
        assert time.monotonic() < until, left
        time.sleep(0.05)
    assert Path('/proc/mounts').read_text() == mounts
