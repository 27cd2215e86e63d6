"""The program from outside: one clear message and the right exit code for whatever keeps it from running."""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Sequence

import pytest

import nat_monitor

ROOT = pathlib.Path(__file__).parents[2]
GOOD = "PRIMARY_INSTANCE_ID = 'i-0123456789abcdef0'\nSECONDARY_INSTANCE_ID = 'i-0fedcba9876543210'\n" \
       "ROUTE_TABLE_IDS = ['rtb-0123456789abcdef0']\n"
LINE = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) .+')


def run(folder: pathlib.Path, settings: str, *,
        prefix: Sequence[str] = (), arguments: Sequence[str] = ()) -> 'subprocess.CompletedProcess[str]':
    """Run a copy of the program with these settings beside it until it ends."""
    (folder / 'nat_monitor.py').write_bytes((ROOT / 'nat_monitor.py').read_bytes())
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


@pytest.mark.parametrize('name', ['nat_monitor.py', 'other_name.py'])
def test_it_leaves_nothing_beside_it_whatever_it_is_called(tmp_path: pathlib.Path, name: str) -> None:
    program = tmp_path / name
    program.write_bytes((ROOT / 'nat_monitor.py').read_bytes())

    done = subprocess.run([sys.executable, name, '--help'], cwd=tmp_path, text=True, capture_output=True, timeout=30)

    assert (done.returncode, done.stderr) == (0, '') and 'Usage: nat_monitor.py' in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no cache


def test_bad_settings_end_the_program_with_a_line_for_each_fault(tmp_path: pathlib.Path, as_root: List[str]) -> None:
    done = run(tmp_path, GOOD + 'NUM_PINGS = 1\nPING_TIMEOUT = "1"\n', prefix=as_root)

    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 2
    assert 'NUM_PINGS is 1' in done.stdout and "PING_TIMEOUT is '1'" in done.stdout


@pytest.mark.parametrize('package', ['boto3', 'requests'])
def test_a_missing_package_is_named(tmp_path: pathlib.Path, as_root: List[str], package: str) -> None:
    (tmp_path / f'{package}.py').write_text(f'raise ModuleNotFoundError(name={package!r})\n')

    done = run(tmp_path, GOOD, prefix=as_root)

    assert done.returncode == 2
    assert f'package {package} is missing' in done.stdout


@pytest.mark.parametrize('package', ['boto3', 'requests'])
@pytest.mark.parametrize('code, said', [
    ('from urllib.parse import CIPHERS', "ImportError: cannot import name 'CIPHERS' from 'urllib.parse'"),
    ('import os; os.X509_V_FLAG', "AttributeError: module 'os' has no attribute 'X509_V_FLAG'"),
    ('import six_of_another_age.moves', "ModuleNotFoundError: No module named 'six_of_another_age'"),
    ('raise type("PanicException", (BaseException,), {})("Python API call\\nfailed")',
     'PanicException: Python API call failed'),
    ('broken =', 'SyntaxError: invalid syntax'),
    ('1 / 0', 'ZeroDivisionError: division by zero')], ids=lambda value: value.partition(':')[0])
def test_a_package_that_is_there_and_cannot_be_imported_is_broken(
        tmp_path: pathlib.Path, as_root: List[str], package: str, code: str, said: str) -> None:
    (tmp_path / f'{package}.py').write_text(f'{code}\n')

    done = run(tmp_path, GOOD, prefix=as_root)

    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1 and 'missing' not in done.stdout
    assert f'the Python package boto3 or requests is broken for {sys.executable} ({said}' in done.stdout


@pytest.mark.parametrize('argument, said', [('--help', 'Usage: nat_monitor.py'), ('-h', 'Usage: nat_monitor.py'),
                                            ('--version', f'nat_monitor.py {nat_monitor.VERSION}\n')])
def test_help_and_version_need_no_package(tmp_path: pathlib.Path, argument: str, said: str) -> None:
    (tmp_path / 'boto3.py').write_text('1 / 0\n')
    (tmp_path / 'nat_monitor.py').write_bytes((ROOT / 'nat_monitor.py').read_bytes())

    done = subprocess.run([sys.executable, tmp_path / 'nat_monitor.py', argument], text=True, capture_output=True)

    assert (done.returncode, done.stderr) == (0, '')
    assert said in done.stdout


def test_only_root_may_run_it(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, GOOD, prefix=['unshare', '--user'] if os.geteuid() == 0 else [])

    assert done.returncode == 2
    assert 'must be root' in done.stdout


def test_an_unknown_argument_is_named(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, GOOD, arguments=['--chekc'])

    assert done.returncode == 2
    assert "the arguments are '--chekc', but must be none, --check, --status, --version or --help" in done.stdout


def fill(pipe: int) -> None:
    """Write into a pipe that nobody reads until nothing more goes in."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b'.' * 4096)
    os.set_blocking(pipe, True)


def test_a_full_pipe_holds_up_nobody_and_gets_its_lines_when_it_is_read(
        monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    reader, writer = os.pipe()
    with open(reader) as pipe, open(writer, 'w') as full:
        fill(writer)
        monkeypatch.setattr(sys, 'stdout', full)
        output = nat_monitor.start_log('%(message)s')
        total = nat_monitor.LINES_KEPT + 100

        def log() -> None:
            for number in range(total):
                nat_monitor.log.info(f'line {number}')

        thread = threading.Thread(target=log, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

        lines = [pipe.readline().lstrip('.')]
        while 'could not be written' not in lines[-1]:
            lines.append(pipe.readline())
        kept = [int(line.split()[1]) for line in lines[:-1]]
        assert kept[:nat_monitor.LINES_KEPT] == list(range(nat_monitor.LINES_KEPT))
        assert kept == sorted(set(kept))
        assert lines[-1] == f'lines that could not be written: {total - len(kept)}\n'
        output.flush()


def test_lines_that_a_full_disk_lost_are_counted_when_there_is_space_again(
        monkeypatch: pytest.MonkeyPatch, quiet: None, tmp_path: pathlib.Path) -> None:
    with open('/dev/full', 'w') as full, open(tmp_path / 'log', 'w') as log:
        monkeypatch.setattr(sys, 'stdout', full)
        output = nat_monitor.start_log('%(message)s')
        for line in 'abc':
            nat_monitor.log.info(line)
        output.flush()

        monkeypatch.setattr(sys, 'stdout', log)
        nat_monitor.log.info('d')
        until(lambda: words_in(tmp_path / 'log') == ['d', 'lines that could not be written: 3'])


FREEZE_PROBE = '''
truncate -s 16M probe
mkfs.ext4 -q probe
mkdir probed
mount -o loop probe probed
fsfreeze --freeze probed
fsfreeze --unfreeze probed
umount probed
'''
FROZEN = '''
truncate -s 16M image
mkfs.ext4 -q image
mkdir disk
mount -o loop image disk
: > disk/log
exec 3> went_on
"$0" -c "$1" >> disk/log &
program=$!
until grep -q ready disk/log; do kill -0 $program; sleep 0.05; done
(for n in $(seq 100); do test -s went_on && break; sleep 0.1; done
 sed "s/^/while frozen /" went_on; fsfreeze --unfreeze disk) &
fsfreeze --freeze disk
kill -USR1 $program
wait
cat disk/log
umount disk
'''
LOGS_WHILE_FROZEN = '''
import os, signal, nat_monitor
nat_monitor.start_log('%(message)s')
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
nat_monitor.log.info('ready')
signal.sigwait([signal.SIGUSR1])
for number in range(3):
    nat_monitor.log.info(f'line {number}')
os.write(3, b'it goes on\\n')
nat_monitor.log.handlers[0].flush()
'''


@pytest.fixture
def quiet() -> Iterator[None]:
    """Let the log of this process end with the test."""
    yield
    nat_monitor.log.handlers = []


def test_a_frozen_file_system_under_the_log_holds_up_nobody(tmp_path: pathlib.Path) -> None:
    probe = subprocess.run(['unshare', '--mount', 'sh', '-ec', FREEZE_PROBE], cwd=tmp_path, text=True, timeout=60,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if probe.returncode:
        lacking = pytest.fail if os.environ.get('CI') else pytest.skip
        lacking(f'no file system can be mounted and frozen here: {probe.stdout.strip()}')

    done = subprocess.run(['unshare', '--mount', 'sh', '-ec', FROZEN, sys.executable, LOGS_WHILE_FROZEN],
                          cwd=tmp_path, text=True, timeout=60, env={**os.environ, 'PYTHONPATH': str(ROOT)},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.splitlines() == ['while frozen it goes on', 'ready', 'line 0', 'line 1', 'line 2']


STUB = '''
import os, sys, time, types
import nat_monitor
class Monitor:
    left_stopped = False
    def __init__(self, settings, publish):
        pass
    def run(self):
        nat_monitor.log.info('watching')
        while True:
            time.sleep(0.05)
    def look_now(self):
        nat_monitor.log.info('looked')
class Check:
    def run(self):
        for number in range(500):
            nat_monitor.log.info(f'{number:100}')
        print('checked', file=sys.stderr, flush=True)
        return 0
os.geteuid = lambda: 0
nat_monitor.Monitor, nat_monitor.Check = Monitor, Check
nat_monitor.read_settings = lambda: types.SimpleNamespace(notify_command=None)
nat_monitor.take_lock = lambda: os.open('/dev/null', os.O_RDONLY)
sys.exit(nat_monitor.main(sys.argv[1:]))
'''


@contextlib.contextmanager
def stub(*arguments: str, output: int = subprocess.PIPE) -> 'Iterator[subprocess.Popen[str]]':
    """Run the program with a monitor and a check that only write lines."""
    with subprocess.Popen([sys.executable, '-c', STUB, *arguments], cwd=ROOT, text=True, stdout=output,
                          stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: 'subprocess.Popen[str]') -> str:
    """Return the words of the next line of the log."""
    assert process.stdout
    return process.stdout.readline().partition('Z ')[2].strip()


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'])
def test_what_an_operator_ends_it_with_is_told_in_a_line(name: str) -> None:
    with stub() as process:
        assert next_line(process) == 'INFO watching'

        process.send_signal(getattr(signal, name))

        assert next_line(process) == f'INFO ended by {name}'
        assert process.wait(10) == 0


def test_a_closed_terminal_makes_the_monitor_look_and_ends_nothing() -> None:
    with stub() as process:
        assert next_line(process) == 'INFO watching'

        for _ in range(2):
            process.send_signal(signal.SIGHUP)

            assert next_line(process) == 'INFO SIGHUP: asking EC2 now'
            assert next_line(process) == 'INFO looked'
        assert process.poll() is None


def test_a_log_that_is_emptied_while_it_is_written_goes_on_at_its_beginning(tmp_path: pathlib.Path) -> None:
    """As logrotate's copytruncate does: behind `>` instead of `>>`, the next line would follow thousands of zeros."""
    log = tmp_path / 'log'
    with open(log, 'w') as output, stub(output=output.fileno()) as process:
        until(lambda: 'watching' in log.read_text())

        os.truncate(log, 0)
        process.send_signal(signal.SIGHUP)

        until(lambda: 'looked' in log.read_text())
        assert all(LINE.fullmatch(line) for line in log.read_text().splitlines()), log.read_bytes()


def test_a_signal_ends_it_though_its_last_line_cannot_be_written() -> None:
    reader, writer = os.pipe()
    with open(reader) as pipe, open(writer, 'w'):
        with stub(output=writer) as process:
            assert pipe.readline().endswith('watching\n')
            fill(writer)

            process.send_signal(signal.SIGTERM)

            assert process.wait(20) == 0


def test_further_signals_do_not_delay_the_end() -> None:
    reader, writer = os.pipe()
    with open(reader) as pipe, open(writer, 'w'):
        with stub(output=writer) as process:
            assert pipe.readline().endswith('watching\n')
            fill(writer)

            while process.poll() is None:  # the next one before the last line is given up
                process.send_signal(signal.SIGTERM)

            assert process.returncode == 0


def test_all_lines_of_the_check_come_out_however_slowly_they_are_read() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ
    with open(reader) as pipe:
        with stub('--check', output=writer) as process:
            os.close(writer)
            assert process.stderr and process.stderr.readline() == 'checked\n'
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2 * nat_monitor.LAST_LINES + 0.5)

            assert [line.strip() for line in pipe] == [str(number) for number in range(500)]

            assert process.wait(10) == 0


@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGINT])
def test_a_check_that_nobody_reads_is_ended_by_a_signal(number: int) -> None:
    reader, writer = os.pipe()
    with open(reader), open(writer, 'w'):
        fill(writer)
        with stub('--check', output=writer) as process:
            assert process.stderr and process.stderr.readline() == 'checked\n'

            process.send_signal(number)

            assert process.wait(20) == 1


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


Log = Callable[[], List[str]]


@pytest.fixture
def log(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Log]:
    """Start the log; return what returns its lines so far."""
    handler = nat_monitor.start_log('%(levelname)s %(message)s')
    found: List[str] = []

    def lines() -> List[str]:
        handler.flush(10)
        if (tmp_path / 'log').exists():
            return words_in(tmp_path / 'log')
        found.extend(capfd.readouterr().out.splitlines())
        return found

    yield lines
    handler.flush(10)
    nat_monitor.log.handlers = []


def notify(folder: pathlib.Path, script: str) -> None:
    """Let the log run a shell script in that folder for its lines, with one argument of its own before theirs."""
    command = folder / 'notify'
    command.write_text(f'#!/bin/sh\ncd {folder}\n{script}\n')
    command.chmod(0o755)
    sys.stdout = open(folder / 'log', 'w')  # pytest's capture loses lines of another thread as it is read
    nat_monitor.start_notifying([str(command), 'own'])


def until(is_so: Callable[[], Any]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 100
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def words_in(file: pathlib.Path) -> List[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_a_command_is_told_of_warnings_errors_and_their_end(tmp_path: pathlib.Path, log: Log) -> None:
    notify(tmp_path, 'echo "$#:$1:$2:$3" >> told; test ! -t 0 && test -z "$(cat)" && echo no; echo no >&2')

    nat_monitor.log.info('i-1 answers')
    nat_monitor.log.warning('$(touch odd) "two" lines')
    nat_monitor.log.error('bad')
    nat_monitor.log.error('over after 5 s: bad')

    until(lambda: len(words_in(tmp_path / 'told')) == 3)
    assert words_in(tmp_path / 'told') == [
        '3:own:WARNING:WARNING $(touch odd) "two" lines', '3:own:ERROR:ERROR bad',
        '3:own:ERROR:ERROR over after 5 s: bad']
    assert len(log()) == 4 and not (tmp_path / 'odd').exists()


@pytest.mark.parametrize('script, said', [
    ('exit 3', 'ended with exit code 3'), ('kill -9 $$', 'ended with exit code -9')])
def test_a_command_that_fails_is_one_line_of_which_it_is_not_told(
        tmp_path: pathlib.Path, log: Log, script: str, said: str) -> None:
    notify(tmp_path, f'echo told >> told; {script}')

    nat_monitor.log.warning('bad')

    until(lambda: len(log()) > 1)
    time.sleep(0.3)
    assert log() == ['WARNING bad', f'WARNING {tmp_path}/notify {said}']
    assert words_in(tmp_path / 'told') == ['told']


@pytest.mark.parametrize('line', ['bad', 'b\0d', 'x' * 200_000], ids=['plain', 'null', 'too long'])
def test_a_command_that_cannot_be_run_ends_nothing_and_is_told_how_much_it_missed(
        tmp_path: pathlib.Path, log: Log, line: str) -> None:
    notify(tmp_path, 'echo "$3" >> told')
    if line == 'bad':
        os.rename(tmp_path / 'notify', tmp_path / 'later')

    nat_monitor.log.warning(line)
    until(lambda: 'could not be run' in log()[-1])
    if line == 'bad':
        os.rename(tmp_path / 'later', tmp_path / 'notify')
    nat_monitor.log.warning('next')

    lost = f'WARNING lines of which {tmp_path}/notify was not told: 1'
    until(lambda: words_in(tmp_path / 'told') == ['WARNING next', lost])
    assert log()[-1] == lost


def test_a_command_that_hangs_holds_up_nobody_and_is_killed_with_its_children(
        tmp_path: pathlib.Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat_monitor, 'NOTIFY_TIMEOUT', 1.0)
    monkeypatch.setattr(nat_monitor, 'LINES_KEPT', 5)
    notify(tmp_path, 'echo "$3" >> told; case "$3" in *hangs) sleep 1000 & echo $! > child; trap "" TERM; wait; esac')

    nat_monitor.log.warning('hangs')
    until((tmp_path / 'child').exists)
    for number in range(10):
        nat_monitor.log.warning(f'{number}')
        log()

    lost = f'WARNING lines of which {tmp_path}/notify was not told: 6'
    until(lambda: lost in words_in(tmp_path / 'told'))
    assert words_in(tmp_path / 'told') == ['WARNING hangs', *(f'WARNING {number}' for number in range(5)), lost]
    assert log()[-2:] == [f'WARNING {tmp_path}/notify was killed after 1 s', lost]
    child = (tmp_path / 'child').read_text().strip()
    until(lambda: not os.path.exists(f'/proc/{child}') or ' Z ' in pathlib.Path(f'/proc/{child}/stat').read_text())


def test_one_command_runs_at_a_time(tmp_path: pathlib.Path, log: Log) -> None:
    notify(tmp_path, 'mkdir running || echo two >> told; sleep 0.05; rmdir running; echo one >> told')

    for _ in range(5):
        nat_monitor.log.warning('bad')

    until(lambda: len(words_in(tmp_path / 'told')) >= 5)
    assert words_in(tmp_path / 'told') == ['one'] * 5


def test_a_command_is_not_spared_when_memory_runs_out_as_the_monitor_is(tmp_path: pathlib.Path) -> None:
    code = f"""import nat_monitor, pathlib
nat_monitor.write_proc('/proc/self/oom_score_adj', '500')
assert nat_monitor.notify([{str(tmp_path / 'notify')!r}], 'WARNING', 'bad')
print(pathlib.Path('/proc/self/oom_score_adj').read_text().strip())"""
    (tmp_path / 'notify').write_text(f'#!/bin/sh\nsleep 0.3; cat /proc/self/oom_score_adj > {tmp_path}/told\n')
    (tmp_path / 'notify').chmod(0o755)

    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, stdout=subprocess.PIPE)

    assert done.stdout == '500\n'
    assert words_in(tmp_path / 'told') == ['0']


OWN, PEER = 'i-0123456789abcdef0', 'i-0fedcba9876543210'
CALM: Dict[str, Any] = {
    'role': 'primary', 'own_id': OWN, 'peer_id': PEER, 'holders': {'rtb-1': OWN, '198.51.100.7': OWN},
    'peer_answers': True, 'last_answer_age': 0.2, 'last_observation_age': 100.0, 'decision': '', 'troubles': []}


def test_the_status_is_replaced_at_once_and_everybody_may_read_it(tmp_path: pathlib.Path) -> None:
    path, before = tmp_path / 'status', os.umask(0o077)
    try:
        nat_monitor.write_status(CALM, str(path))
        with open(path) as first:
            nat_monitor.write_status({**CALM, 'role': 'secondary'}, str(path))
            assert json.load(first)['role'] == 'primary'
    finally:
        os.umask(before)

    told = json.loads(path.read_text())
    assert told == {**CALM, 'role': 'secondary', 'version': nat_monitor.VERSION, 'time': told['time']}
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', told['time'])
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ['status']


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: pathlib.Path) -> None:
    nat_monitor.write_status(CALM, str(tmp_path / 'nowhere/status'))
    (tmp_path / 'status.new').symlink_to('/dev/full')
    nat_monitor.write_status(CALM, str(tmp_path / 'status'))


@contextlib.contextmanager
def locked(root: pathlib.Path) -> Iterator[None]:
    """Hold the lock of a host with that root directory."""
    for name in ('run', 'proc'):
        (root / name).mkdir()
    lock = nat_monitor.take_lock(str(root / 'run/nat_monitor.lock'))
    (root / 'proc/locks').symlink_to('/proc/locks')
    yield
    os.close(lock)


def told(root: pathlib.Path, log: Log) -> Any:
    """Return the exit code of --status on that host, and its lines."""
    code = nat_monitor.Check(root=str(root)).status()
    return code, [' '.join(line.split()[1:]) for line in log()]


def test_the_status_of_a_calm_pair_is_told_in_words(tmp_path: pathlib.Path, log: Log) -> None:
    with locked(tmp_path):
        nat_monitor.write_status(CALM, str(tmp_path / 'run/nat_monitor.status'))

        code, lines = told(tmp_path, log)

    assert code == 0
    assert lines[0] == f'ok monitor runs with pid {os.getpid()}' and lines[1].startswith('ok time 20')
    assert lines[2:] == [
        f'ok version {nat_monitor.VERSION}', 'ok role primary', f'ok own_id {OWN}', f'ok peer_id {PEER}',
        f'ok holders {{"rtb-1": "{OWN}", "198.51.100.7": "{OWN}"}}', 'ok peer_answers true', 'ok last_answer_age 0.2',
        'ok last_observation_age 100.0', 'ok decision', 'ok troubles []']


@pytest.mark.parametrize('changed, said', [
    ({'time': '2026-01-01T00:00:00Z'}, 'time 2026-01-01T00:00:00Z'),
    ({'time': '2126-01-01T00:00:00Z'}, 'time 2126-01-01T00:00:00Z'),
    ({'time': 'now'}, 'tells nothing'),
    ({'holders': {'rtb-1': OWN, '198.51.100.7': PEER}}, f'"rtb-1": "{OWN}", "198.51.100.7": "{PEER}"'),
    ({'holders': {'rtb-1': 'other', '198.51.100.7': 'other'}}, '"rtb-1": "other"'),
    ({'holders': {}, 'last_observation_age': None}, 'holders {}'),
    ({'peer_answers': False, 'last_answer_age': None}, 'peer_answers false'),
    ({'troubles': ['rtb-1 could not be moved']}, '["rtb-1 could not be moved"]'),
])
def test_what_is_to_mend_ends_the_status_with_1(
        tmp_path: pathlib.Path, log: Log, changed: Dict[str, Any], said: str) -> None:
    with locked(tmp_path):
        nat_monitor.write_status({**CALM, **changed}, str(tmp_path / 'run/nat_monitor.status'))

        code, lines = told(tmp_path, log)

    assert code == 1
    assert any(line.startswith('FAIL') and said in line for line in lines), lines
    assert all(line.endswith('; run: nat_monitor.py --check') for line in lines if line.startswith('FAIL'))


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', 'null'])
def test_a_status_that_tells_nothing_is_to_mend(tmp_path: pathlib.Path, log: Log, text: str) -> None:
    with locked(tmp_path):
        (tmp_path / 'run/nat_monitor.status').write_text(text)

        code, lines = told(tmp_path, log)

    assert code == 1 and 'tells nothing' in lines[-1]


def test_what_is_under_way_is_told_and_is_no_fault(tmp_path: pathlib.Path, log: Log) -> None:
    with locked(tmp_path):
        nat_monitor.write_status({**CALM, 'decision': f'{OWN} is under maintenance'},
                                 str(tmp_path / 'run/nat_monitor.status'))

        code, lines = told(tmp_path, log)

    assert code == 0 and f'warn decision {OWN} is under maintenance; run: nat_monitor.py --check' in lines


def test_the_status_ends_with_2_where_no_monitor_runs(tmp_path: pathlib.Path, log: Log) -> None:
    with locked(tmp_path):
        nat_monitor.write_status(CALM, str(tmp_path / 'run/nat_monitor.status'))

    code, lines = told(tmp_path, log)

    assert code == 2 and len(lines) == 1 and 'does not run' in lines[0]


def test_any_user_may_ask_for_the_status() -> None:
    prefix = ['unshare', '--user'] if os.geteuid() == 0 else []
    done = subprocess.run([*prefix, sys.executable, str(ROOT / 'nat_monitor.py'), '--status'], text=True, timeout=30,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert (done.returncode, done.stderr) == (2, '')
    assert 'does not run' in done.stdout
