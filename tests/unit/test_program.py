"""The program from outside: one clear message and the right exit code for whatever keeps it from running."""
from __future__ import annotations

import logging
import os
import pathlib
import re
import subprocess
import sys
import threading
from typing import Any, List, Optional, Sequence

import pytest
from botocore.exceptions import ClientError

import nat_monitor

ROOT = pathlib.Path(__file__).parents[2]
GOOD = "PRIMARY_INSTANCE_ID = 'i-0123456789abcdef0'\nSECONDARY_INSTANCE_ID = 'i-0fedcba9876543210'\n" \
       "ROUTE_TABLE_IDS = ['rtb-0123456789abcdef0']\n"
LINE = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) .+')


def run(folder: pathlib.Path, settings: Optional[str], *,
        prefix: Sequence[str] = (), arguments: Sequence[str] = ()) -> 'subprocess.CompletedProcess[str]':
    """Run a copy of the program with these settings beside it (None: without that file) until it ends."""
    (folder / 'nat_monitor.py').write_bytes((ROOT / 'nat_monitor.py').read_bytes())
    if settings is not None:
        (folder / 'nat_config.py').write_text(settings)
    command = [*prefix, sys.executable, str(folder / 'nat_monitor.py'), *arguments]
    done = subprocess.run(command, text=True, timeout=30, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL)
    assert done.stderr == ''
    assert all(LINE.fullmatch(line) for line in done.stdout.splitlines()), done.stdout
    return done


@pytest.fixture
def as_root() -> List[str]:
    """Return what runs a command as root, of a user namespace at least."""
    return [] if os.geteuid() == 0 else ['unshare', '--user', '--map-root-user']


def test_bad_settings_end_the_program_with_a_line_for_each_fault(tmp_path: pathlib.Path, as_root: List[str]) -> None:
    done = run(tmp_path, GOOD + 'NUM_PINGS = 1\nPING_TIMEOUT = "1"\n', prefix=as_root)

    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 2
    assert 'NUM_PINGS is 1' in done.stdout and "PING_TIMEOUT is '1'" in done.stdout


def test_the_shipped_settings_are_asked_for_in_one_line(tmp_path: pathlib.Path, as_root: List[str]) -> None:
    done = run(tmp_path, (ROOT / 'nat_config.py').read_text(), prefix=as_root)

    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1 and 'fill in' in done.stdout


def test_a_syntax_error_in_the_settings_is_named_with_its_line(tmp_path: pathlib.Path, as_root: List[str]) -> None:
    done = run(tmp_path, GOOD + 'NUM_PINGS = = 3\n', prefix=as_root)

    assert done.returncode == 2
    assert 'nat_config.py, line 4' in done.stdout


def test_settings_that_raise_like_a_ctrl_c_are_refused_as_any_other(tmp_path: pathlib.Path, as_root: List[str]) -> None:
    done = run(tmp_path, GOOD + 'raise KeyboardInterrupt\n', prefix=as_root)

    assert done.returncode == 2
    assert 'KeyboardInterrupt' in done.stdout and 'allowed are lines of the form NAME = value' in done.stdout


def test_missing_settings_are_named(tmp_path: pathlib.Path, as_root: List[str]) -> None:
    done = run(tmp_path, None, prefix=as_root)

    assert done.returncode == 2
    assert f'{tmp_path}/nat_config.py' in done.stdout and 'No such file' in done.stdout


@pytest.mark.parametrize('package', ['boto3', 'requests'])
def test_a_missing_package_is_named(tmp_path: pathlib.Path, as_root: List[str], package: str) -> None:
    (tmp_path / f'{package}.py').write_text(f'raise ModuleNotFoundError(name={package!r})\n')

    done = run(tmp_path, GOOD, prefix=as_root)

    assert done.returncode == 2
    assert f'package {package} is missing' in done.stdout


def test_only_root_may_run_it(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, GOOD, prefix=['unshare', '--user'] if os.geteuid() == 0 else [])

    assert done.returncode == 2
    assert 'must be root' in done.stdout


@pytest.mark.parametrize('answer', [{}, {'Error': {}}, {'Error': {'Code': None}}])
def test_an_error_without_a_code_is_put_in_words_all_the_same(answer: Any) -> None:
    error = ClientError(answer, 'StopInstances')

    assert nat_monitor.code_of(error) == ''
    assert re.fullmatch(r'ClientError: .*StopInstances.*', nat_monitor.in_words(error))


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert nat_monitor.main(['--help']) == 0

    assert (nat_monitor.__doc__ or '').strip() in capsys.readouterr().out


def test_an_unknown_argument_is_named(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, GOOD, arguments=['--chekc'])

    assert done.returncode == 2
    assert "the arguments are '--chekc', but must be none, --check or --help" in done.stdout


def test_a_log_line_that_would_block_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader), open(writer, 'w') as full:
        os.set_blocking(writer, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        monkeypatch.setattr(sys, 'stdout', full)
        line = logging.makeLogRecord({'msg': 'a line'})
        thread = threading.Thread(target=nat_monitor.LineHandler().emit, args=[line], daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


def test_importing_it_does_nothing() -> None:
    code = 'import nat_monitor, logging, signal; assert not logging.getLogger("nat_monitor").handlers; ' \
           'assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    assert (done.returncode, done.stdout) == (0, b'')


def test_the_lock_is_roots_alone_and_names_its_holder(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / 'lock')
    lock = nat_monitor.take_lock(path)

    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(nat_monitor.Refusal, match=f'already runs with pid {os.getpid()}:') as caught:
        nat_monitor.take_lock(path)
    assert caught.value.exit_code == 1

    os.close(lock)
    os.close(nat_monitor.take_lock(path))


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'elsewhere').write_text('precious')
    (tmp_path / 'lock').symlink_to(tmp_path / 'elsewhere')

    with pytest.raises(nat_monitor.Refusal, match='lock: Too many levels of symbolic links'):
        nat_monitor.take_lock(str(tmp_path / 'lock'))

    assert (tmp_path / 'elsewhere').read_text() == 'precious'
