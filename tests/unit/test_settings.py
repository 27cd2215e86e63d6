"""The settings: what is allowed, and what is said about everything else."""
from __future__ import annotations

import pathlib
from typing import Any, Dict

import pytest

import nat_monitor

FILE = pathlib.Path(__file__).parents[2] / 'nat_config.py'
GOOD: Dict[str, Any] = {
    'PRIMARY_INSTANCE_ID': 'i-0123456789abcdef0',
    'SECONDARY_INSTANCE_ID': 'i-0fedcba9876543210',
    'ROUTE_TABLE_IDS': ['rtb-0123456789abcdef0', 'rtb-0123abcd'],
}


def faults(**changed: Any) -> str:
    """Return what is said about the good settings with some of them changed (None: taken out)."""
    names = {k: v for k, v in {**GOOD, **changed}.items() if v is not REMOVED}
    with pytest.raises(nat_monitor.Refusal) as caught:
        nat_monitor.check_settings(names, 'nat_config.py')
    assert caught.value.exit_code == 2
    return '\n'.join(caught.value.faults)


REMOVED = object()


def test_the_defaults_are_those_of_the_reference() -> None:
    settings = nat_monitor.check_settings(dict(GOOD), 'nat_config.py')

    assert settings == nat_monitor.Settings(
        primary_instance_id='i-0123456789abcdef0', secondary_instance_id='i-0fedcba9876543210',
        route_table_ids=('rtb-0123456789abcdef0', 'rtb-0123abcd'), elastic_ip=None, num_pings=3, ping_timeout=1,
        wait_between_pings=2, wait_for_instance_stop=60, wait_for_instance_start=300)


def test_the_shipped_file_states_the_defaults_and_asks_for_the_ids_in_one_message() -> None:
    with pytest.raises(nat_monitor.Refusal) as caught:
        nat_monitor.read_settings(str(FILE))

    assert len(caught.value.faults) == 1
    for name in nat_monitor.REQUIRED:
        assert name in caught.value.faults[0]
    assert 'fill in' in caught.value.faults[0]


@pytest.mark.parametrize('name, value, allowed', [
    ('PRIMARY_INSTANCE_ID', 'i-123', 'an instance id'),
    ('PRIMARY_INSTANCE_ID', 7, 'an instance id'),
    ('SECONDARY_INSTANCE_ID', 'i-0123456789ABCDEF0', 'an instance id'),
    ('ROUTE_TABLE_IDS', 'rtb-0123456789abcdef0', 'a list of different route table ids'),
    ('ROUTE_TABLE_IDS', ['rtb-0123456789abcdef0'] * 2, 'a list of different route table ids'),
    ('ROUTE_TABLE_IDS', ['subnet-0123456789abcdef0'], 'a list of different route table ids'),
    ('ELASTIC_IP', '198.51.100.700', 'an IPv4 address'),
    ('ELASTIC_IP', 'eipalloc-0123456789abcdef0', 'an IPv4 address'),
    ('ELASTIC_IP', 3, 'an IPv4 address'),
    ('NUM_PINGS', 1, 'at least 2'),
    ('NUM_PINGS', 2.5, 'a whole number'),
    ('NUM_PINGS', True, 'a whole number'),
    ('PING_TIMEOUT', 0, 'above 0'),
    ('PING_TIMEOUT', -1, 'above 0'),
    ('PING_TIMEOUT', '1', 'a number of seconds'),
    ('PING_TIMEOUT', 10**400, 'at most 86400'),
    ('WAIT_BETWEEN_PINGS', float('nan'), 'a number of seconds'),
    ('WAIT_FOR_INSTANCE_STOP', float('inf'), 'a number of seconds'),
    ('WAIT_FOR_INSTANCE_START', None, 'a number of seconds'),
])
def test_a_wrong_value_is_named_with_the_value_and_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    said = faults(**{name: value})

    assert name in said and repr(value) in said and allowed in said


@pytest.mark.parametrize('name', nat_monitor.REQUIRED)
def test_a_missing_setting_is_named(name: str) -> None:
    assert f'{name} is missing' in faults(**{name: REMOVED})


@pytest.mark.parametrize('name', nat_monitor.REQUIRED)
def test_an_empty_setting_is_asked_for(name: str) -> None:
    assert f'{name} is empty: fill in' in faults(**{name: [] if name == 'ROUTE_TABLE_IDS' else ''})


def test_a_name_that_is_not_a_setting_is_a_fault_with_the_nearest_right_name() -> None:
    assert 'NUM_PING is not a setting; did you mean NUM_PINGS?' in faults(NUM_PING=3)
    assert 'os is not a setting; the settings are PRIMARY_INSTANCE_ID' in faults(os=pathlib)


def test_the_two_instances_must_differ() -> None:
    assert 'must be two different instances' in faults(SECONDARY_INSTANCE_ID=GOOD['PRIMARY_INSTANCE_ID'])


def test_all_faults_are_reported_together() -> None:
    said = faults(NUM_PINGS=1, PING_TIMEOUT=-1, NUM_PING=4, PRIMARY_INSTANCE_ID=REMOVED)

    assert len(said.splitlines()) == 4


@pytest.mark.parametrize('text, said', [
    ('NUM_PINGS = = 3\n', 'line 1: '),
    ('NUM_PINGS = threee\n', 'NameError'),
    ('\0', 'null'),
    ('raise SystemExit', 'SystemExit'),
])
def test_a_file_that_cannot_be_read_as_settings_is_said_to_be(tmp_path: pathlib.Path, text: str, said: str) -> None:
    file = tmp_path / 'nat_config.py'
    file.write_text(text)

    with pytest.raises(nat_monitor.Refusal, match=said) as caught:
        nat_monitor.read_settings(str(file))

    assert str(file) in str(caught.value) and 'NAME = value' in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(nat_monitor.Refusal, match='No such file'):
        nat_monitor.read_settings(str(tmp_path / 'nat_config.py'))
