"""Troubles that are nothing now and trouble if they last, and what to do about each that a person must heed."""
from __future__ import annotations

import ast
import inspect
import logging
import re
import types
from typing import List, Tuple

import pytest

import nat_monitor
from nat_monitor import TROUBLES, Lasting
from tests.unit.story import REMEDY


class Told(logging.Handler):
    """A log and a clock with which to tell of troubles."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.lines: List[Tuple[str, str]] = []
        log = logging.Logger('test', logging.INFO)
        log.addHandler(self)
        self.lasting = Lasting(types.SimpleNamespace(monotonic=lambda: self.now), log)
        self.lasting.names.update(own_id='i-1', peer_id='i-2', peer_address='10.0.0.2')

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))

    def after(self, seconds: float, failure: str, at_once: bool = False) -> List[Tuple[str, str]]:
        """Let so many seconds pass and a question to EC2 fail, or not; return what is told of that."""
        self.now += seconds
        self.lines.clear()
        assert self.lasting('EC2', failure, at_once=at_once) is bool(failure)
        return list(self.lines)


WORDS = 'EC2 does not answer i-1 (lost): it decides nothing'
REMEDY_OF_EC2 = '; run on i-1: nat_monitor.py --check'


@pytest.mark.parametrize('kind', TROUBLES)
def test_each_trouble_has_words_for_what_came_back_and_a_remedy(kind: str) -> None:
    told = Told()

    told.lasting(kind, 'what came back', 'i-3', at_once=True)

    [(level, line)] = told.lines
    assert level == 'ERROR' and 'what came back' in line and REMEDY.search(line), line
    assert 'README' not in line and not re.search('[{}]', line)
    place = {'watcher': ' on i-2', 'no probe': ' on i-2', 'metadata': '', 'peer': ''}.get(kind, ' on i-1')
    assert f'; run{place}: ' in line


def test_nothing_else_is_an_error_but_what_the_judgement_decides_and_what_ends_the_program() -> None:
    """Each story of the judgement sees to it that its errors have a remedy."""
    tree = ast.parse(inspect.getsource(nat_monitor))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    loud = {node.name for node in functions for one in ast.walk(node)
            if isinstance(one, ast.Attribute) and one.attr in ('error', 'ERROR')
            and getattr(one.value, 'attr', getattr(one.value, 'id', '')) in ('log', 'logging')}

    assert loud == {'__call__', 'errors', 'restart', 'main'}  # the first two of Lasting


def test_a_trouble_is_told_when_it_begins_and_when_it_changes_and_is_an_error_once_after_two_minutes() -> None:
    told = Told()
    assert told.after(0.0, '') == []
    assert told.after(0.0, 'lost') == [('INFO', WORDS)]
    assert told.after(60.0, 'lost') == []
    assert told.after(59.9, 'late') == [('INFO', WORDS.replace('lost', 'late'))] and not told.lasting.errors
    assert told.after(0.1, 'late') == [('ERROR', WORDS.replace('lost', 'late') + REMEDY_OF_EC2)]
    assert told.lasting.errors == [WORDS.replace('lost', 'late') + REMEDY_OF_EC2]
    assert told.after(999.0, 'late') == []
    assert told.after(1.0, 'lost') == [('INFO', WORDS)] and told.lasting.errors == [WORDS + REMEDY_OF_EC2]
    assert told.after(1.0, '') == [('ERROR', f'over after 1121 s: {WORDS}')] and not told.lasting.errors
    assert told.after(0.0, 'lost') == [('INFO', WORDS)]
    assert told.after(9.0, '') == [('INFO', f'over after 9 s: {WORDS}')] and told.after(0.0, '') == []


def test_one_that_cannot_wait_is_an_error_at_once_and_its_end_is_one_too() -> None:
    told = Told()
    assert [level for level, _ in told.after(0.0, 'lost', at_once=True)] == ['ERROR']
    assert told.after(1.0, 'lost', at_once=True) == []
    assert told.after(1.0, '') == [('ERROR', f'over after 2 s: {WORDS}')]

    assert [level for level, _ in told.after(0.0, 'lost') + told.after(1.0, 'lost', at_once=True)] == ['INFO', 'ERROR']


def test_the_same_trouble_about_two_parts_is_two() -> None:
    told = Told()
    for part in ('rtb-1', 'rtb-2'):
        told.lasting('claim', 'Denied', part)
    told.lasting('claim', '', 'rtb-1')
    assert [line for _, line in told.lines] == [
        'rtb-1 is not moved to i-1 yet (Denied)', 'rtb-2 is not moved to i-1 yet (Denied)',
        'over after 0 s: rtb-1 is not moved to i-1 yet (Denied)']


def test_what_came_back_is_told_as_it_is_whatever_braces_it_has() -> None:
    told, odd = Told(), '{"self": {}} {self} {about}'
    [(_, line)] = told.after(0.0, odd, at_once=True)
    assert line == WORDS.replace('lost', odd) + REMEDY_OF_EC2 and told.lasting.errors == [line]
