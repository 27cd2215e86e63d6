"""The demonstration, as somebody sees it who pipes it to a file, or has seen enough."""
from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from .demo import WIDTH
from .lab import GUARD

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def demo() -> Iterator['subprocess.Popen[str]']:
    command = [sys.executable, '-m', 'tests.lab.demo']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.core
def test_it_shows_a_failover_and_the_outage() -> None:
    with demo() as process:
        shown, _ = process.communicate(timeout=GUARD)

    assert process.returncode == 0, shown
    assert all(len(line) <= WIDTH and line.isprintable() for line in shown.splitlines()), shown
    for words in ('THE KERNEL OF THE PRIMARY DIES', 'taking over', 'ReplaceRoute', 'StopInstances', 'StartInstances',
                  'has started: claiming', 'the pair is redundant', '....', '||||', 'outage of the private host'):
        assert words in shown


def test_ctrl_c_ends_it_cleanly() -> None:
    with demo() as process:
        assert process.stdout
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=GUARD)

    assert process.returncode == 130
    assert 'the primary is' in first
    assert shown.endswith('interrupted; nothing is left behind\n') and 'Traceback' not in shown
