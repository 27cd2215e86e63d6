"""A pair during an upgrade: the program of before on one side, this one on the other."""
from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
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
def before(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the module of before."""
    shown = subprocess.run(['git', 'show', f'{BEFORE}:nat_monitor.py'], cwd=Path(__file__).parent,
                           capture_output=True, text=True)
    if shown.returncode:
        pytest.skip(f'there is no history with {BEFORE} here')
    path = tmp_path_factory.mktemp('before') / 'nat_monitor_before.py'
    path.write_text(shown.stdout)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
