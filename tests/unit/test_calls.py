"""Calls to EC2: side by side within a deadline, what comes back, and what is read from it."""
from __future__ import annotations

import math
import threading
import time
from typing import Any, Callable, List

import pytest

from nat_monitor import NoAnswer, run_together

LONG = 10.0  # s; no test waits that long


# Side by side

class Meanwhile:
    """What is done while answers are outstanding: notes when, and returns the pauses in turn, the last one again."""

    def __init__(self, *pauses: Any, does: Callable[[], object] = lambda: None) -> None:
        self.pauses, self.does = list(pauses), does
        self.times: List[float] = []

    def __call__(self) -> Any:
        self.times.append(time.monotonic())
        self.does()
        return self.pauses.pop(0) if len(self.pauses) > 1 else self.pauses[0]


@pytest.fixture
def answer() -> Any:
    """An event for which a call waits; it is set in the end, so that no thread outlives its test for long."""
    event = threading.Event()
    yield event
    event.set()


def test_calls_made_together_return_or_raise_each_under_its_name() -> None:
    error = ValueError('no')

    def fail() -> None:
        raise error

    assert run_together({'one': lambda: 1, 'two': fail}, LONG) == {'one': 1, 'two': error}
    assert run_together({}, LONG) == {}


def test_a_call_without_an_answer_in_time_holds_up_no_other(answer: threading.Event) -> None:
    started_at = time.monotonic()

    results = run_together({'slow': lambda: answer.wait(LONG), 'quick': lambda: 'here'}, 0.3)

    assert 0.3 <= time.monotonic() - started_at < 5.0
    assert results['quick'] == 'here'
    assert isinstance(results['slow'], NoAnswer)


def test_while_answers_are_outstanding_it_is_called_again_after_each_pause(answer: threading.Event) -> None:
    def answer_the_fifth_time() -> None:
        if len(meanwhile.times) == 5:
            answer.set()

    meanwhile = Meanwhile(0.2, 0.0, 0.0, 0.3, does=answer_the_fifth_time)

    assert run_together({'call': lambda: answer.wait(LONG)}, LONG, meanwhile) == {'call': True}

    pauses = [later - earlier for earlier, later in zip(meanwhile.times, meanwhile.times[1:])]
    assert pauses[0] >= 0.2 and pauses[3] >= 0.3
    assert max(pauses[1:3]) < 0.2


def test_it_is_called_once_if_it_need_not_be_called_again(answer: threading.Event) -> None:
    for nothing_more in (math.inf, None):
        meanwhile = Meanwhile(nothing_more)

        run_together({'call': lambda: answer.wait(LONG)}, 0.3, meanwhile)

        assert len(meanwhile.times) == 1


def test_it_is_called_no_more_once_all_answers_are_in(answer: threading.Event) -> None:
    done = threading.Event()

    def call() -> str:
        answer.wait(LONG)
        done.set()
        return 'here'

    def let_it_answer() -> None:
        answer.set()
        done.wait(LONG)
        time.sleep(0.2)  # the time from the call's end to the queue

    meanwhile = Meanwhile(0.0, does=let_it_answer)

    assert run_together({'call': call}, LONG, meanwhile) == {'call': 'here'}
    assert len(meanwhile.times) == 1


def test_answers_wake_it_neither_early_nor_late(answer: threading.Event) -> None:
    def answer_the_second_time() -> None:
        if len(meanwhile.times) == 2:
            answer.set()

    meanwhile = Meanwhile(0.5, math.inf, does=answer_the_second_time)
    calls = {str(number): lambda: None for number in range(20)}

    run_together({**calls, 'slow': lambda: answer.wait(LONG)}, LONG, meanwhile)

    assert 0.5 <= meanwhile.times[1] - meanwhile.times[0] < 5.0


def test_it_is_called_no_more_after_the_deadline(answer: threading.Event) -> None:
    meanwhile = Meanwhile(0.0, does=lambda: time.sleep(0.4))

    results = run_together({'call': lambda: answer.wait(LONG)}, 0.3, meanwhile)

    assert len(meanwhile.times) == 1
    assert isinstance(results['call'], NoAnswer)


def test_what_came_in_time_counts_though_what_was_done_meanwhile_took_longer() -> None:
    meanwhile = Meanwhile(0.0, does=lambda: time.sleep(0.9))

    results = run_together({'in time': lambda: 'here', 'late': lambda: time.sleep(0.6)}, 0.3, meanwhile)

    assert results['in time'] == 'here'
    assert isinstance(results['late'], NoAnswer)
