"""The settings: what is allowed, and what is said about everything else."""
from __future__ import annotations

import os
import pathlib
from typing import Any, Callable, Dict

import pytest

import nat_monitor

FILE = pathlib.Path(__file__).parents[2] / 'nat_config.py'
GOOD: Dict[str, Any] = {
    'PRIMARY_INSTANCE_ID': 'i-0123456789abcdef0',
    'SECONDARY_INSTANCE_ID': 'i-0fedcba9876543210',
    'ROUTE_TABLE_IDS': ['rtb-0123456789abcdef0', 'rtb-0123abcd'],
}


def faults(**changed: Any) -> str:
    """Return what is said about the good settings with some of them changed (REMOVED: taken out)."""
    names = {k: v for k, v in {**GOOD, **changed}.items() if v is not REMOVED}
    with pytest.raises(nat_monitor.Refusal) as caught:
        nat_monitor.check_settings(names, 'nat_config.py')
    assert caught.value.exit_code == 2
    return '\n'.join(caught.value.faults)


REMOVED = object()


def test_the_defaults_are_those_of_the_reference_but_for_the_wait_between_pings() -> None:
    settings = nat_monitor.check_settings(dict(GOOD), 'nat_config.py')

    assert settings == nat_monitor.Settings(
        primary_instance_id='i-0123456789abcdef0', secondary_instance_id='i-0fedcba9876543210',
        route_table_ids=['rtb-0123456789abcdef0', 'rtb-0123abcd'], elastic_ip=None, num_pings=3, ping_timeout=1,
        wait_between_pings=0.25, wait_for_instance_stop=60, wait_for_instance_start=300, fail_back=True,
        probe_address=None)


def test_the_shipped_file_states_the_defaults_and_asks_for_the_ids_in_one_message() -> None:
    with pytest.raises(nat_monitor.Refusal) as caught:
        nat_monitor.read_settings(str(FILE))

    [fault] = caught.value.faults
    assert f'fill in {", ".join(nat_monitor.REQUIRED)}: the ids' in fault


@pytest.mark.parametrize('name, value, allowed', [
    ('PRIMARY_INSTANCE_ID', 'i-123', 'an instance id'),
    ('PRIMARY_INSTANCE_ID', 7, 'an instance id'),
    ('SECONDARY_INSTANCE_ID', 'i-0123456789ABCDEF0', 'an instance id'),
    ('ROUTE_TABLE_IDS', 'rtb-0123456789abcdef0', 'a list of different route table ids'),
    ('ROUTE_TABLE_IDS', ['rtb-0123456789abcdef0'] * 2, 'a list of different route table ids'),
    ('ROUTE_TABLE_IDS', ['subnet-0123456789abcdef0'], 'a list of different route table ids'),
    ('ROUTE_TABLE_IDS', [['rtb-0123456789abcdef0']], 'a list of different route table ids'),
    ('ELASTIC_IP', '198.51.100.700', 'a public IPv4 address'),
    ('ELASTIC_IP', 'eipalloc-0123456789abcdef0', 'a public IPv4 address'),
    ('ELASTIC_IP', '2001:db8::7', 'a public IPv4 address'),
    ('ELASTIC_IP', 3, 'a public IPv4 address'),
    ('ELASTIC_IP', '', 'a public IPv4 address'),
    ('NUM_PINGS', 1, 'from 2 to 100'),
    ('NUM_PINGS', 101, 'from 2 to 100'),
    ('NUM_PINGS', 2.5, 'a whole number'),
    ('NUM_PINGS', True, 'a whole number'),
    ('PING_TIMEOUT', 0.049, 'from 0.05 to 20'),
    ('PING_TIMEOUT', 20.1, 'from 0.05 to 20'),
    ('PING_TIMEOUT', 10**400, 'from 0.05 to 20'),
    ('PING_TIMEOUT', True, 'a number of seconds'),
    ('PING_TIMEOUT', '1', 'a number of seconds'),
    ('WAIT_BETWEEN_PINGS', 0.049, 'from 0.05 to 600'),
    ('WAIT_BETWEEN_PINGS', 601, 'from 0.05 to 600'),
    ('WAIT_BETWEEN_PINGS', float('nan'), 'a number of seconds'),
    ('WAIT_FOR_INSTANCE_STOP', 19.9, 'from 20 to 3600'),
    ('WAIT_FOR_INSTANCE_STOP', 3601, 'from 20 to 3600'),
    ('WAIT_FOR_INSTANCE_STOP', float('inf'), 'a number of seconds'),
    ('WAIT_FOR_INSTANCE_START', 29, 'from 30 to 7200'),
    ('WAIT_FOR_INSTANCE_START', 7201, 'from 30 to 7200'),
    ('WAIT_FOR_INSTANCE_START', None, 'a number of seconds'),
    ('FAIL_BACK', 0, 'True (at once), False (never), or a whole number of seconds from 1 to 86400'),
    ('FAIL_BACK', 86401, 'a whole number of seconds from 1 to 86400'),
    ('FAIL_BACK', 1.0, 'a whole number of seconds from 1 to 86400'),
    ('FAIL_BACK', 'True', 'True (at once)'),
    ('FAIL_BACK', None, 'True (at once)'),
    ('PROBE_ADDRESS', '10.0.0.7', 'a public IPv4 address'),
    ('NOTIFY_COMMAND', '/usr/bin/env', 'a list such as'),
    ('NOTIFY_COMMAND', [], 'a list such as'),
    ('NOTIFY_COMMAND', [7], 'a list such as'),
    ('NOTIFY_COMMAND', [b'/usr/bin/env'], 'a list such as'),
    ('NOTIFY_COMMAND', ['/usr/bin/env', None], 'a list such as'),
    ('NOTIFY_COMMAND', [os.path.relpath('/usr/bin/env')], 'a program that root owns and nobody else can write'),
    ('NOTIFY_COMMAND', ['/usr/bin'], 'a program that root owns and nobody else can write'),
    ('NOTIFY_COMMAND', ['/nowhere/notify'], 'a program that root owns and nobody else can write'),
    ('NOTIFY_COMMAND', ['/etc/passwd'], 'a program that root owns and nobody else can write'),
])
def test_a_wrong_value_is_named_with_the_value_and_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    said = faults(**{name: value})

    assert name in said and repr(value) in said and allowed in said


@pytest.mark.parametrize('name, value', [
    ('NUM_PINGS', 2), ('NUM_PINGS', 100),
    ('PING_TIMEOUT', 0.05), ('PING_TIMEOUT', 20),
    ('WAIT_BETWEEN_PINGS', 0.05), ('WAIT_BETWEEN_PINGS', 600),
    ('WAIT_FOR_INSTANCE_STOP', 20), ('WAIT_FOR_INSTANCE_STOP', 3600),
    ('WAIT_FOR_INSTANCE_START', 30), ('WAIT_FOR_INSTANCE_START', 7200),
    ('FAIL_BACK', True), ('FAIL_BACK', False), ('FAIL_BACK', 1), ('FAIL_BACK', 120), ('FAIL_BACK', 86400),
    ('PROBE_ADDRESS', '198.51.100.9'), ('PROBE_ADDRESS', None),
    ('NOTIFY_COMMAND', None), ('NOTIFY_COMMAND', ['/usr/bin/env']), ('NOTIFY_COMMAND', ('/usr/bin/env', '-i', '')),
    ('ELASTIC_IP', '3.120.4.5'),
    ('ELASTIC_IP', '192.0.2.1'), ('ELASTIC_IP', '198.51.100.7'), ('ELASTIC_IP', '203.0.113.9'),
])
def test_what_is_allowed_is_taken_up_to_its_bounds(name: str, value: Any) -> None:
    settings = nat_monitor.check_settings({**GOOD, name: value}, 'nat_config.py')

    taken = getattr(settings, name.lower())
    assert (taken, type(taken)) == (value, type(value))  # 1 is not True here


@pytest.mark.parametrize('address', [
    '10.0.0.7', '172.16.0.7', '192.168.0.7', '100.64.0.7', '127.0.0.1', '169.254.169.254', '240.0.0.1',
    '255.255.255.255', '0.0.0.0'])
def test_an_address_that_cannot_be_an_elastic_ip_is_refused(address: str) -> None:
    assert f'ELASTIC_IP is {address!r}, but must be a public IPv4 address' in faults(ELASTIC_IP=address)


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can make files of root')
@pytest.mark.parametrize('spoil', [
    lambda folder: os.chmod(folder / 'sbin/notify', 0o775),
    lambda folder: os.chmod(folder / 'sbin/notify', 0o757),
    lambda folder: os.chmod(folder / 'sbin/notify', 0o644),
    lambda folder: os.chown(folder / 'sbin/notify', 65534, 0),
    lambda folder: os.chmod(folder / 'sbin', 0o1777),
    lambda folder: os.chmod(folder, 0o777),
    lambda folder: os.chown(folder, 65534, 0),
    lambda folder: os.chmod(folder / 'elsewhere', 0o777)])
def test_a_command_that_another_user_can_change_or_replace_is_refused(
        tmp_path: pathlib.Path, spoil: Callable[[pathlib.Path], None]) -> None:
    for name in ('sbin', 'elsewhere'):
        (tmp_path / name).mkdir()
    (tmp_path / 'elsewhere/notify').symlink_to(tmp_path / 'sbin/notify')
    (tmp_path / 'sbin/notify').write_text('#!/bin/sh\n')
    (tmp_path / 'sbin/notify').chmod(0o755)
    command = [f'{tmp_path}/elsewhere/notify']
    assert nat_monitor.check_settings({**GOOD, 'NOTIFY_COMMAND': command}, 'nat_config.py').notify_command == command

    spoil(tmp_path)

    assert f'NOTIFY_COMMAND is {command}, but must be a list such as' in faults(NOTIFY_COMMAND=command)


@pytest.mark.parametrize('name', nat_monitor.REQUIRED)
@pytest.mark.parametrize('value', [REMOVED, '', None, []])
def test_what_is_missing_or_empty_is_asked_for(name: str, value: Any) -> None:
    assert faults(**{name: value}).startswith(f'nat_config.py: fill in {name}: the ids of your pair')


def test_a_name_that_is_not_a_setting_is_a_fault_with_the_nearest_right_name() -> None:
    assert 'NUM_PING is not a setting; did you mean NUM_PINGS?' in faults(NUM_PING=3)
    assert 'os is not a setting; did you mean PRIMARY_INSTANCE_ID or SECONDARY_INSTANCE_ID or ' in faults(os=pathlib)


def test_the_two_instances_must_differ() -> None:
    one = GOOD['PRIMARY_INSTANCE_ID']

    assert faults(SECONDARY_INSTANCE_ID=one).endswith(
        f'PRIMARY_INSTANCE_ID and SECONDARY_INSTANCE_ID are both {one}, but must be different')


def test_all_faults_are_reported_together() -> None:
    said = faults(NUM_PINGS=1, PING_TIMEOUT=-1, NUM_PING=4, PRIMARY_INSTANCE_ID=REMOVED)

    assert len(said.splitlines()) == 4


@pytest.mark.parametrize('text, said', [
    ('\nNUM_PINGS = = 3\n', r'SyntaxError: .* \(nat_config.py, line 2\)'),
    ('NUM_PINGS = threee\n', "NameError: name 'threee' is not defined"),
    ('\0', 'null'),
    ('exit()', 'SystemExit'),
    ('open("/nowhere/else")', 'FileNotFoundError: .*/nowhere/else'),
])
def test_a_file_that_cannot_be_read_as_settings_is_said_to_be(tmp_path: pathlib.Path, text: str, said: str) -> None:
    file = tmp_path / 'nat_config.py'
    file.write_text(text)

    with pytest.raises(nat_monitor.Refusal, match=said) as caught:
        nat_monitor.read_settings(str(file))

    assert str(file) in str(caught.value) and 'NAME = value' in str(caught.value)


@pytest.mark.parametrize('line_end', ['\n', '\r\n'])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_a_file_from_another_editor_is_read_as_well(tmp_path: pathlib.Path, mark: str, line_end: str) -> None:
    file = tmp_path / 'nat_config.py'
    lines = ['# für São Paulo – 東京', *(f'{name} = {value!r}' for name, value in GOOD.items()), '']
    file.write_bytes((mark + line_end.join(lines)).encode())

    assert nat_monitor.read_settings(str(file)).primary_instance_id == GOOD['PRIMARY_INSTANCE_ID']


def test_a_missing_file_is_said_to_be_missing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(nat_monitor.Refusal, match='No such file'):
        nat_monitor.read_settings(str(tmp_path / 'nat_config.py'))
