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
import types
from itertools import zip_longest
from typing import Any, Callable, Dict, Iterator, List, Sequence

import pytest

import nat_monitor

ROOT = pathlib.Path(__file__).parents[2]
GOOD = "PRIMARY_INSTANCE_ID = 'i-0123456789abcdef0'\nSECONDARY_INSTANCE_ID = 'i-0fedcba9876543210'\n" \
       "ROUTE_TABLE_IDS = ['rtb-0123456789abcdef0']\n"
AS_ROOT = [] if os.geteuid() == 0 else ['unshare', '--user', '--map-root-user']
AS_NOBODY = ['unshare', '--user'] if os.geteuid() == 0 else []
TIME = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ')
LINE = re.compile(f'{TIME.pattern}(INFO|WARNING|ERROR) .+')
Log = Callable[[], List[str]]


def run(folder: pathlib.Path, settings: str, *,
        prefix: Sequence[str] = (), arguments: Sequence[str] = ()) -> 'subprocess.CompletedProcess[str]':
    """Run a copy of the program with these settings beside it until it ends."""
    (folder / 'nat_monitor.py').write_bytes((ROOT / 'nat_monitor.py').read_bytes())
    (folder / 'nat_config.py').write_text(settings)
    command = [*prefix, sys.executable, str(folder / 'nat_monitor.py'), *arguments]
    done = subprocess.run(command, text=True, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, env={**os.environ, 'TZ': 'Asia/Tokyo'})
    hours = {time.strftime('%Y-%m-%dT%H', time.gmtime(time.time() - ago)) for ago in (0, 60)}
    assert not done.stderr and all(LINE.fullmatch(one) and one[:13] in hours for one in done.stdout.splitlines()), done
    return done


@pytest.mark.parametrize('argument, said', [
    ('--help', 'Usage: nat_monitor.py'), ('-h', 'Usage:'), ('--version', f'nat_monitor.py {nat_monitor.VERSION}\n')])
def test_help_and_version_need_no_package_and_leave_nothing_beside(
        tmp_path: pathlib.Path, argument: str, said: str) -> None:
    (tmp_path / 'boto3.py').write_text('1 / 0\n')
    program = tmp_path / 'sbin/nat_monitor.py'
    program.parent.mkdir()
    program.write_bytes((ROOT / 'nat_monitor.py').read_bytes())

    done = subprocess.run([sys.executable, program, argument], text=True, capture_output=True, timeout=300,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path)})

    assert (done.returncode, done.stderr) == (0, '') and said in done.stdout
    assert os.listdir(program.parent) == ['nat_monitor.py']


@pytest.mark.parametrize('package', ['boto3', 'requests'])
@pytest.mark.parametrize('code, said', [
    ('import six_of_another_age', "ModuleNotFoundError(\"No module named 'six_of_another_age'\")"),
    ('import os; os.X509_V_FLAG', 'AttributeError("module \'os\' has no attribute \'X509_V_FLAG\'")'),
    ('raise type("PanicException", (BaseException,), {})("failed\\nhere")', r"PanicException('failed\nhere')"),
    ('broken =', "SyntaxError('invalid syntax'")], ids=lambda value: value.partition('(')[0])
def test_what_a_package_that_cannot_be_imported_raised_is_told(
        tmp_path: pathlib.Path, package: str, code: str, said: str) -> None:
    (tmp_path / f'{package}.py').write_text(f'{code}\n')

    done = run(tmp_path, GOOD, prefix=AS_ROOT)

    assert done.returncode == 2 and len(done.stdout.splitlines()) == 1
    assert f'install or mend boto3 and requests for {sys.executable}: {said}' in done.stdout


@pytest.mark.parametrize('settings, prefix, arguments, said', [
    (GOOD + 'NUM_PINGS = 1\nPING_TIMEOUT = "1"\n', AS_ROOT, [], ['NUM_PINGS is 1', "PING_TIMEOUT is '1'"]),
    (GOOD, AS_NOBODY, [], ['must be root']),
    (GOOD, AS_NOBODY, ['--check', '--chekc'],
     ["argument '--check --chekc' is not --check, --status, --version or --help"])])
def test_what_keeps_it_from_running_is_told_in_a_line_for_each_fault(
        tmp_path: pathlib.Path, settings: str, prefix: List[str], arguments: List[str], said: List[str]) -> None:
    done = run(tmp_path, settings, prefix=prefix, arguments=arguments)

    assert done.returncode == 2
    for line, words in zip_longest(done.stdout.splitlines(), said):
        assert words in line


def test_a_status_that_nobody_can_read_has_its_exit_code_all_the_same(tmp_path: pathlib.Path) -> None:
    closed = 'exec "$@" >&-'
    assert run(tmp_path, GOOD, prefix=[*AS_ROOT, 'sh', '-c', closed, 'sh'], arguments=['--status']).returncode == 2


def fill(pipe: int) -> None:
    """Write into a pipe that nobody reads until nothing more goes in."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b'.' * 4096)
    os.set_blocking(pipe, True)


def test_a_full_pipe_holds_up_nobody_and_gets_its_lines_when_it_is_read(
        monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    reader, writer = os.pipe()
    with open(reader) as pipe, open(writer, 'w') as full:
        fill(writer)
        monkeypatch.setattr('nat_monitor.sys.stdout', full)
        total = nat_monitor.LINES_KEPT + 100
        logged = map(nat_monitor.log.info, map('line {}'.format, range(total)))
        thread = threading.Thread(target=list, args=[logged], daemon=True)
        thread.start()
        thread.join(100)
        assert not thread.is_alive()

        lines = [pipe.readline().lstrip('.')]
        while 'could not be written' not in lines[-1] and len(lines) < total:
            lines.append(pipe.readline())
        kept = [int(line.split()[-1]) for line in lines[:-1]]
        assert kept[:nat_monitor.LINES_KEPT] == list(range(nat_monitor.LINES_KEPT))
        assert kept == sorted(set(kept))
        assert lines[-1].endswith(f'Z WARNING lines that could not be written: {total - len(kept)}\n')


def test_lines_that_a_full_disk_lost_are_counted_when_there_is_space_again(
        monkeypatch: pytest.MonkeyPatch, log: Log, tmp_path: pathlib.Path) -> None:
    with open('/dev/full', 'w') as full, open(tmp_path / 'disk', 'w') as disk:
        monkeypatch.setattr('nat_monitor.sys.stdout', full)
        for line in 'abc':
            nat_monitor.log.info(line)
        log()

        monkeypatch.setattr('nat_monitor.sys.stdout', disk)
        nat_monitor.log.info('d')
        until(lambda: words_in(tmp_path / 'disk') == ['INFO d', 'WARNING lines that could not be written: 3'])


STUB = '''
import os, sys, time, types
import nat_monitor
class Monitor:
    peer_id, left_stopped = 'i-1', 'LEFT_STOPPED' in os.environ
    def __init__(self, settings, publish):
        pass
    def run(self):
        nat_monitor.log.info('watching')
        while True:
            time.sleep(0.05)
    def look_now(self):
        nat_monitor.log.warning('looked')
class Check:
    def run(self):
        print('checking', file=sys.stderr, flush=True)
        for number in range(500):
            nat_monitor.write_line('', f'{number:100}')
        return 0
os.geteuid = lambda: 0
nat_monitor.Monitor, nat_monitor.Check = Monitor, Check
nat_monitor.read_settings = lambda: types.SimpleNamespace(notify_command=os.environ.get('NOTIFY', '').split())
nat_monitor.take_lock = lambda: 0
sys.exit(nat_monitor.main(sys.argv[1:]))
'''


@contextlib.contextmanager
def stub(*arguments: str, output: int = subprocess.PIPE, **environment: str) -> 'Iterator[subprocess.Popen[str]]':
    """Run the program with a monitor and a check that only write lines."""
    with subprocess.Popen([sys.executable, '-c', STUB, *arguments], cwd=ROOT, text=True, stdout=output,
                          stderr=subprocess.PIPE, env={**os.environ, **environment}) as process:
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
        assert process.wait(200) == 0


def test_a_closed_terminal_makes_the_monitor_look_and_ends_nothing() -> None:
    with stub() as process:
        assert next_line(process) == 'INFO watching'

        for _ in range(2):
            process.send_signal(signal.SIGHUP)

            assert next_line(process) == 'INFO SIGHUP: asking EC2 now'
            assert next_line(process) == 'WARNING looked'
        assert process.poll() is None
        assert pathlib.Path(f'/proc/{process.pid}/comm').read_text() == 'nat_monitor.py\n'  # for killall


def test_it_says_so_if_it_ends_with_the_peer_left_stopped() -> None:
    with stub(LEFT_STOPPED='') as process:
        assert next_line(process) == 'INFO watching'

        process.send_signal(signal.SIGTERM)

        assert 'i-1 was stopped by this monitor and is not back yet' in next_line(process)


def test_the_command_of_the_settings_is_told(tmp_path: pathlib.Path) -> None:
    with stub(NOTIFY=command(tmp_path, 'echo "$2" > told')) as process:
        assert next_line(process) == 'INFO watching'

        process.send_signal(signal.SIGHUP)

        until(lambda: words_in(tmp_path / 'told') == ['WARNING looked'])


def test_a_log_that_is_emptied_while_it_is_written_goes_on_at_its_beginning(tmp_path: pathlib.Path) -> None:
    """As logrotate's copytruncate does: behind `>` instead of `>>`, the next line would follow thousands of zeros."""
    log = tmp_path / 'log'
    with open(log, 'w') as output, stub(output=output.fileno()) as process:
        until(lambda: 'watching' in log.read_text())

        os.truncate(log, 0)
        process.send_signal(signal.SIGHUP)

        until(lambda: 'looked' in log.read_text())
        assert all(LINE.fullmatch(line) for line in log.read_text().splitlines()), log.read_bytes()


def test_signals_end_it_though_its_last_line_cannot_be_written() -> None:
    reader, writer = os.pipe()
    with open(reader) as pipe, open(writer, 'w'), stub(output=writer) as process:
        assert pipe.readline().endswith('watching\n')
        fill(writer)

        while process.poll() is None:  # the next one before the last line is given up
            process.send_signal(signal.SIGTERM)

        assert process.returncode == 0


def test_all_lines_of_the_check_come_out_however_slowly_they_are_read() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ
    with open(reader) as pipe, stub('--check', output=writer) as process:
        os.close(writer)
        assert process.stderr and process.stderr.readline() == 'checking\n'
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2 * nat_monitor.LAST_LINES + 0.5)

        assert [line.strip() for line in pipe] == [str(number) for number in range(500)]

        assert process.wait(200) == 0


@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGINT])
def test_a_check_that_nobody_reads_is_ended_by_a_signal(number: int) -> None:
    reader, writer = os.pipe()
    fill(writer)
    with open(reader), open(writer, 'w'), stub('--check', output=writer) as process:
        assert process.stderr and process.stderr.readline() == 'checking\n'

        process.send_signal(number)

        assert (process.wait(200), process.stderr.read()) == (1, '')


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


@pytest.fixture
def log(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """Start the log; return what returns its lines so far."""
    with open(tmp_path / 'log', 'w') as file:
        monkeypatch.setattr('nat_monitor.sys', types.SimpleNamespace(stdout=file))
        monkeypatch.setattr(nat_monitor, 'LAST_LINES', 10.0)
        nat_monitor.start_log()

        def lines() -> List[str]:
            nat_monitor.log.handlers[0].flush()
            return words_in(tmp_path / 'log')

        yield lines
        nat_monitor.log.handlers[0].flush()
    nat_monitor.log.handlers = []


def command(folder: pathlib.Path, script: str) -> str:
    """Return the path of a shell script that runs in that folder."""
    path = folder / 'notify'
    path.write_text(f'#!/bin/sh\ncd {folder}\n{script}\n')
    path.chmod(0o755)
    return str(path)


def notify(folder: pathlib.Path, script: str) -> None:
    """Let the log run a shell script in that folder for its lines, with one argument of its own before theirs."""
    nat_monitor.start_notifying([command(folder, script), 'own'])


def until(is_so: Callable[[], Any]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 100
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def words_in(file: pathlib.Path) -> List[str]:
    """Return the lines of a file, without the times."""
    return TIME.sub('', file.read_text()).splitlines() if file.exists() else []


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
    ('exit 3', 'ended with exit code 3'), ('kill -9 $$', 'ended with exit code -9 (killed, as after 30 s)')])
def test_a_command_that_fails_is_one_line_of_which_it_is_not_told(
        tmp_path: pathlib.Path, log: Log, script: str, said: str) -> None:
    notify(tmp_path, f'echo told >> told; {script}')

    nat_monitor.log.warning('bad')

    until(lambda: len(log()) > 1)
    time.sleep(0.3)
    assert log() == ['WARNING bad', f'WARNING {tmp_path}/notify {said}']
    assert words_in(tmp_path / 'told') == ['told']


@pytest.mark.parametrize('line', ['b\0d', 'x' * 200_000], ids=['null', 'too long'])
def test_a_command_that_cannot_be_run_is_told_how_much_it_missed(tmp_path: pathlib.Path, log: Log, line: str) -> None:
    notify(tmp_path, 'echo "$3" >> told')

    nat_monitor.log.warning(line)
    until(lambda: 'could not be run' in log()[-1])
    nat_monitor.log.warning('next')

    lost = f'WARNING lines of which {tmp_path}/notify was not told: 1'
    until(lambda: words_in(tmp_path / 'told') == ['WARNING next', lost])
    assert log()[-1] == lost


def test_a_command_is_not_spared_when_memory_runs_out_as_the_monitor_is(tmp_path: pathlib.Path) -> None:
    path = command(tmp_path, 'cat /proc/self/oom_score_adj > told')
    code = f"import nat_monitor; assert nat_monitor.notify([{path!r}], 'WARNING', 'bad')"

    subprocess.run(['sh', '-c', 'echo 500 > /proc/self/oom_score_adj; exec "$@"', 'sh', sys.executable, '-c', code],
                   cwd=ROOT, check=True)

    assert (tmp_path / 'told').read_text() == '0\n'


def test_a_command_that_hangs_is_killed_with_its_children_before_the_next_one_runs(
        tmp_path: pathlib.Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat_monitor, 'NOTIFY_TIMEOUT', 1.0)
    notify(tmp_path, 'echo "$3" >> told; case "$3" in *hangs) sleep 1000 & echo $! > child; trap "" TERM; wait; esac')

    nat_monitor.log.warning('hangs')
    nat_monitor.log.warning('next')

    lost = f'WARNING lines of which {tmp_path}/notify was not told: 1'
    until(lambda: words_in(tmp_path / 'told') == ['WARNING hangs', 'WARNING next', lost])
    assert log()[-2:] == [f'WARNING {tmp_path}/notify ended with exit code -9 (killed, as after 1 s)', lost]
    child = (tmp_path / 'child').read_text().strip()
    until(lambda: not os.path.exists(f'/proc/{child}') or ' Z ' in pathlib.Path(f'/proc/{child}/stat').read_text())


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
    return code, [' '.join(line.split()) for line in log()]


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


TO_MEND = [
    ({'time': '2026-01-01T00:00:00Z'}, 'time 2026-01-01T00:00:00Z'),
    ({'time': '2126-01-01T00:00:00Z'}, 'time 2126-01-01T00:00:00Z'),
    ({'time': 'now'}, 'time now'),
    ({'holders': {'rtb-1': OWN, '198.51.100.7': PEER}}, f'"rtb-1": "{OWN}", "198.51.100.7": "{PEER}"'),
    ({'holders': {'rtb-1': 'other', '198.51.100.7': 'other'}}, '"rtb-1": "other"'),
    ({'holders': {}, 'last_observation_age': None}, 'holders {}'),
    ({'peer_answers': False, 'last_answer_age': None}, 'peer_answers false'),
    ({'troubles': ['rtb-1 could not be moved']}, '["rtb-1 could not be moved"]')]


@pytest.mark.parametrize('written, said', [
    *((lambda path, changed=changed: nat_monitor.write_status({**CALM, **changed}, path), said)
      for changed, said in TO_MEND),
    *((lambda path, text=text: pathlib.Path(path).write_text(text), 'tells nothing')
      for text in ('', '{', '[]', '{}', 'null', '{"holders": null}'))])
def test_what_is_to_mend_ends_the_status_with_1(
        tmp_path: pathlib.Path, log: Log, written: Callable[[str], Any], said: str) -> None:
    with locked(tmp_path):
        written(str(tmp_path / 'run/nat_monitor.status'))

        code, lines = told(tmp_path, log)

    assert code == 1
    [line] = [line for line in lines if line.startswith('FAIL')]
    assert said in line and line.endswith('; run: nat_monitor.py --check')


def test_what_is_under_way_is_told_and_is_no_fault(tmp_path: pathlib.Path, log: Log) -> None:
    with locked(tmp_path):
        nat_monitor.write_status({**CALM, 'decision': f'{OWN} is under maintenance'},
                                 str(tmp_path / 'run/nat_monitor.status'))

        code, lines = told(tmp_path, log)

    assert code == 0 and f'warn decision {OWN} is under maintenance; run: nat_monitor.py --check' in lines


def test_any_user_may_ask_for_the_status() -> None:
    done = subprocess.run([*AS_NOBODY, sys.executable, str(ROOT / 'nat_monitor.py'), '--status'], text=True,
                          timeout=300, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert (done.returncode, done.stderr) == (2, '') and 'does not run' in done.stdout
