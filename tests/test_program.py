"""The program in an instance: signals, a terminal, its log, its command, and what EC2 does not know."""
from __future__ import annotations

import os
import pathlib
import signal
import time
from typing import Any, List

import pytest

from tests.lab.lab import GUARD, SBIN, Instance, Lab
from tests.test_failover import SETTINGS, has_rehearsed, loud, serves, serving_pair

pytestmark = pytest.mark.lab

NOTIFY = '#!/bin/sh\necho "$1 $2" >> /run/told\n'


def quiet_lab(python: str, **how: Any) -> Lab:
    """Return a lab in which no monitor runs yet."""
    return Lab(SETTINGS, python=python, start=False, **how)


def ended(lab: Lab, instance: Instance) -> None:
    lab.wait_until(lambda: instance.monitor_pid is None, 'the monitor ends')


def test_a_signal_ends_it_at_once_even_with_a_call_under_way(python: str) -> None:
    with quiet_lab(python) as lab:
        lab.ec2.inject('silent')
        process = lab.primary.popen(*lab.primary.monitor_command)
        lab.wait_until(lambda: len(lab.ec2.calls(instance='primary')) >= 4, 'its first calls are under way')
        since = time.monotonic()

        lab.primary.kill_monitor(signal.SIGTERM)

        assert process.wait(GUARD) == 0
        assert lab.ec2.calls(since=since, dry_run=None) == []


def test_ctrl_c_in_a_terminal_ends_it_with_exit_code_0(python: str) -> None:
    with quiet_lab(python) as lab:
        terminal = lab.primary.terminal(*lab.primary.monitor_command)
        has_rehearsed(lab, lab.primary)
        since = time.monotonic()

        terminal.type('\x03')

        lab.wait_until(lambda: terminal.exit_code is not None, 'it ends')
        assert terminal.exit_code == 0
        assert 'ended by SIGINT' in terminal.output and 'Traceback' not in terminal.output
        assert lab.ec2.calls(since=since, dry_run=None) == []


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


def test_it_says_so_if_it_ends_with_the_peer_left_stopped(python: str) -> None:
    with serving_pair(python, impaired=1.0, stop=20.0) as lab:
        lab.primary.crash()
        lab.wait_until(lambda: 'is being stopped' in lab.secondary.log, 'the primary is being stopped')

        lab.secondary.kill_monitor(signal.SIGTERM)

        ended(lab, lab.secondary)
        assert f'{lab.primary.id} was stopped by this monitor' in lab.secondary.log.splitlines()[-1]


def test_a_log_that_cannot_be_written_stops_nothing(python: str) -> None:
    with quiet_lab(python, holder=None) as lab:
        lab.primary.start_monitor()
        command = ' '.join(lab.secondary.monitor_command)
        lab.secondary.popen('sh', '-c', f'{command} >/dev/full')
        serves(lab, lab.primary)
        lab.wait_until(lambda: ' answers' in lab.primary.log, 'the primary hears the secondary')
        lab.wait_until(lambda: lab.ec2.calls('StartInstances', 'secondary', dry_run=True), 'the secondary works')
        lab.stays(lambda: lab.secondary.monitor_pid, 2, 'the secondary pings')

        lab.primary.crash()

        serves(lab, lab.secondary)


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


def told(instance: Instance) -> List[str]:
    file = instance.node.root / 'run/told'
    return file.read_text().splitlines() if file.exists() else []


def test_a_command_is_told_of_a_failover(python: str) -> None:
    if os.geteuid() != 0 or pathlib.Path('/proc/self/uid_map').read_text().split() != ['0', '0', '4294967295']:
        lacking = pytest.fail if os.environ.get('CI') else pytest.skip
        lacking('only real root owns the directories above the command')
    with Lab({**SETTINGS, 'NOTIFY_COMMAND': [f'/{SBIN}/notify']}, python=python, start=False) as lab:
        for instance in lab.instances.values():
            command = instance.node.root / SBIN / 'notify'
            command.write_text(NOTIFY)
            command.chmod(0o755)
            instance.start_monitor()
        lab.wait_until(lambda: ' answers' in lab.secondary.log, 'the secondary hears the primary')

        lab.primary.crash()

        lab.wait_until(lambda: [line for line in loud(lab.secondary) if 'taking over' in line], 'it is loud')
        lab.wait_until(lambda: [line.split(' ', 2)[2] for line in told(lab.secondary)] == loud(lab.secondary),
                       'the command is told of each loud line')
