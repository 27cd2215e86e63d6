"""A network namespace of its own for a script."""
from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def inside(setup: str, script: str, *kinds: str) -> Any:
    """Run a Python script in new namespaces of these kinds after the setup, and return what it left in `out`."""
    user = [] if os.geteuid() == 0 else ['--user', '--map-root-user']
    unshare = ['unshare', *user, '--net', *kinds]
    environment = {**os.environ, 'PATH': os.environ['PATH'] + ':/usr/sbin:/sbin'}
    trial = subprocess.run([*unshare, 'ip', 'link', 'add', 'type', 'bridge'], stderr=subprocess.PIPE, text=True,
                           env=environment)
    if trial.returncode:
        lacking = pytest.fail if os.environ.get('CI') else pytest.skip
        lacking(f'no network namespaces with bridges here: {trial.stderr.strip()}')
    done = subprocess.run([*unshare, 'bash', '-c', f'set -e\n{setup}\nexec "$0" -c "$1"', sys.executable,
                           f'import json\n{script}\nprint(json.dumps(out))'],
                          cwd=ROOT, text=True, timeout=300, stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 0
    return json.loads(done.stdout)
