"""What an operator is told of a failover: by a command of his own, and by --status on either instance."""
from __future__ import annotations

import os
import pathlib
from typing import Any, Dict, List

import pytest

from tests.lab.lab import SBIN, Instance, Lab
from tests.test_failover import serves, start_both

SETTINGS: Dict[str, Any] = {'PING_TIMEOUT': 0.4, 'WAIT_FOR_INSTANCE_STOP': 20, 'WAIT_FOR_INSTANCE_START': 30}
NOTIFY = '#!/bin/sh\necho "$1 $2" >> /run/told\n'


def status(instance: Instance) -> Any:
    """Return the exit code of --status there, and the lines that are not fine."""
    done = instance.run(*instance.monitor_command, '--status')
    return done.returncode, [line for line in done.stdout.splitlines() if not line.startswith('ok ')]


def all_is_well(lab: Lab, when: str) -> None:
    for instance in (lab.primary, lab.secondary):
        lab.wait_until(lambda: status(instance) == (0, []), 90, f'all is well {when}, says the {instance.name}')


def told(instance: Instance) -> List[str]:
    file = instance.node.root / 'run/told'
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.core
def test_the_status_tells_of_a_failover_on_both_instances(python: str) -> None:
    with Lab(SETTINGS, python=python, holder=None, start=False) as lab:
        assert status(lab.primary)[0] == status(lab.secondary)[0] == 2
        start_both(lab)
        all_is_well(lab, 'before')

        lab.primary.crash()

        serves(lab, lab.secondary)
        lab.wait_until(lambda: status(lab.secondary)[0] == 1, 10, 'the secondary says that something is to mend')
        _, lines = status(lab.secondary)
        assert any(line.split()[:3] == ['FAIL', 'peer_answers', 'false;'] for line in lines), lines
        assert status(lab.primary)[0] == 2

        serves(lab, lab.primary, 90)
        all_is_well(lab, 'after')


def test_a_command_is_told_of_a_failover(python: str) -> None:
    if os.geteuid() != 0 or pathlib.Path('/proc/self/uid_map').read_text().split() != ['0', '0', '4294967295']:
        lacking = pytest.fail if os.environ.get('CI') else pytest.skip
        lacking('only real root owns the directories above the command')
    settings = {**SETTINGS, 'NOTIFY_COMMAND': [f'/{SBIN}/notify']}
    with Lab(settings, python=python, holder=None, start=False) as lab:
        for instance in (lab.primary, lab.secondary):
            command = instance.node.root / SBIN / 'notify'
            command.write_text(NOTIFY)
            command.chmod(0o755)
        start_both(lab)
        serves(lab, lab.primary)
        lab.wait_until(lambda: ' answers' in lab.secondary.log, 20, 'the secondary hears the primary')
        calm = len(told(lab.secondary))

        lab.primary.crash()

        lab.wait_until(lambda: any(f'{lab.primary.id} is silent' in line and 'taking over' in line
                                   for line in told(lab.secondary)), 30, 'the command is told')
        lines = told(lab.secondary)[calm:]
        assert lines[0].startswith('WARNING ') and f'WARNING {lab.primary.id} missed 3 pings in a row' in lines[0]
        assert all(line.partition(' ')[2] in lab.secondary.log.splitlines() for line in lines)
