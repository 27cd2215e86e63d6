"""A pair during an upgrade: the program of before on one side, this one on the other."""
from __future__ import annotations

import itertools
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import nat_monitor

from .faults import KINDS, Fault, Schedule, singles
from .pair import World
from .search import broke

BEFORE = '63d8013'                # the commit of the program of before
HICCUPS = [Schedule(tuple(Fault(100 + 30 * n, 'cut peer', lasts=lasts) for n in range(4)), phase=phase)
           for lasts in (1.4, 4.5, 7.5, 12) for phase in (0.0, 0.5)]


@pytest.fixture(scope='module')
def before() -> Any:
    """Return the module of before."""
    shown = subprocess.run(['git', 'show', f'{BEFORE}:nat_monitor.py'], cwd=Path(__file__).parent,
                           capture_output=True, text=True)
    if shown.returncode:
        pytest.skip(f'there is no history with {BEFORE} here')
    module = sys.modules['before'] = types.ModuleType('before')
    module.__file__ = 'before.py'
    exec(shown.stdout, module.__dict__)
    return module


@pytest.mark.parametrize('who', ['primary', 'secondary'])
def test_a_mixed_pair_does_nothing_worse_than_the_pair_of_before(before: Any, who: str) -> None:
    modules = (nat_monitor, before) if who == 'primary' else (before, nat_monitor)
    some = itertools.islice(itertools.chain.from_iterable(map(singles, KINDS)), 0, None, 29)
    worse = []
    for schedule in [*HICCUPS, *(one for one in some if isinstance(one.fail_back, bool))]:
        what = broke(World(schedule, modules))
        if what and not broke(World(schedule, (before, before))):
            worse.append(f'{what}: {schedule}')
    assert not worse, '\n'.join(worse)
