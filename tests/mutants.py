"""Mistakes in the two tables and the memory, made by mutmut, of which theorems and unit tests must show each.

Words are left as they are, as no decision hangs on a sentence of the log.  It works in a copy, in the folder that is
named; `mutmut results` and `mutmut show NAME` tell there of those that survived.

Run it: tox -e mutants
"""
import os
import shutil
import sys

import libcst
from mutmut.__main__ import cli
from mutmut.mutation import file_mutation

WHERE = ('xǁMemoryǁ', 'xǁObservationǁ', 'x_serve', 'x_restart', 'x_decide')
COPIED = ('nat_monitor.py', 'nat_config.py', 'setup.cfg', 'tests/__init__.py', 'tests/conftest.py', 'tests/unit')


def main(folder: str) -> None:
    """Copy what is needed to the folder, and run mutmut there."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in COPIED:
        os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
        (shutil.copytree if os.path.isdir(path) else shutil.copy)(path, os.path.join(folder, path))
    os.chdir(folder)
    file_mutation.mutation_operators[:] = [  # not those of strings
        (kind, operator) for kind, operator in file_mutation.mutation_operators if kind is not libcst.BaseString]
    cli(['run', *(f'nat_monitor.{name}*' for name in WHERE)])


if __name__ == '__main__':
    main(sys.argv[1])
