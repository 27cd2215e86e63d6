"""The program in an instance: signals, and a terminal."""
from __future__ import annotations

import signal
import subprocess
import time
from typing import Any

import pytest

from tests.lab.lab import GUARD, Instance, Lab
from tests.test_failover import SETTINGS, has_rehearsed, serves

pytestmark = pytest.mark.lab


def quiet_lab(python: str, **how: Any) -> Lab:
    """Return a lab in which no monitor runs yet."""
    return Lab(SETTINGS, python=python, start=False, **how)


def ended(lab: Lab, instance: Instance) -> None:
    lab.wait_until(lambda: instance.monitor_pid is None, 'the monitor ends')


def test_a_signal_ends_it_at_once_even_with_a_call_under_way(python: str) -> None:
    with quiet_lab(python) as lab:
        lab.ec2.inject('silent')
        process = lab.primary.popen(*lab.primary.monitor_command, stdout=subprocess.PIPE, text=True)
        lab.wait_until(lambda: len(lab.ec2.calls(instance='primary')) >= 4, 'its first calls are under way')

        lab.primary.kill_monitor(signal.SIGTERM)

        output = process.communicate(timeout=GUARD)[0]
        assert process.returncode == 0
        assert 'ended by SIGTERM' in output and 'does not answer' not in output  # as none was waited for


def test_ctrl_z_then_killall_and_cont_ends_it(python: str) -> None:
    with quiet_lab(python) as lab:
        terminal = lab.primary.terminal()
        terminal.type(' '.join(lab.primary.monitor_command) + '\n')
        has_rehearsed(lab, lab.primary)
        terminal.type('\x1a')
        lab.wait_until(lambda: lab.primary.proc('stat').rpartition(')')[2].split()[0] == 'T', 'it is suspended')
        pid = lab.primary.monitor_pid

        second = lab.primary.run(*lab.primary.monitor_command)
        lab.primary.run('killall', 'nat_monitor.py', check=True)
        since = time.monotonic()
        lab.primary.run('kill', '-CONT', str(pid), check=True)

        assert second.returncode == 1 and f'already runs with pid {pid} (suspended)' in second.stdout
        ended(lab, lab.primary)
        assert lab.ec2.calls(since=since, dry_run=None) == []
        terminal.type('sleep 0.1; wait %1; echo exit code $?\n')  # during sleep, the shell learns it
        lab.wait_until(lambda: 'exit code 0' in terminal.output, 'the shell tells its exit code')


def test_a_closed_terminal_leaves_the_monitor_at_work(python: str) -> None:
    with quiet_lab(python, holder=None) as lab:
        lab.primary.start_monitor()
        serves(lab, lab.primary)
        terminal = lab.secondary.terminal(*lab.secondary.monitor_command)
        lab.wait_until(lambda: f'{lab.primary.id} answers' in terminal.output, 'it hears the primary')
        lab.wait_until(lambda: f'at {lab.primary.id}' in terminal.output, 'it has looked')
        pid, since = lab.secondary.monitor_pid, time.monotonic()

        terminal_process = lab.secondary.proc('stat').rpartition(')')[2].split()[1]
        lab.secondary.run('kill', '-KILL', terminal_process, check=True)

        lab.wait_until(lambda: lab.ec2.calls('DescribeRouteTables', 'secondary', since=since), 'it looks')
        assert lab.secondary.monitor_pid == pid
        lab.primary.crash()
        serves(lab, lab.secondary)
