"""When the monitor probes and when it asks EC2 because of that, in virtual time."""
from __future__ import annotations

from typing import Any, Callable, Dict, List

import pytest

from nat_monitor import PEER, Monitor, Probed, Settings

TABLE, TARGET = 'rtb-0123456789abcdef0', '203.0.113.20'
MISSED, ANSWERED = Probed(None), Probed(0.001)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Watch:
    """The monitor of a secondary whose peer serves, which has been probed with success."""

    def __init__(self) -> None:
        self.clock, self.asked = Clock(), 0
        self.outcome = {'through': MISSED, 'own way': ANSWERED}
        self.sent: List[List[str]] = []
        settings = Settings('i-0123456789abcdef0', 'i-0fedcba9876543210', (TABLE,), probe_address=TARGET)
        self.monitor = Monitor(settings, clock=self.clock, metadata=object(), run_together=self.run_together)
        memory = self.monitor.memory
        memory.holders, memory.answered_at, memory.forwarded_at = {TABLE: PEER}, 1.0, 1.0
        self.monitor.ask_at = self.clock.now + 120.0

    def run_together(self, calls: Dict[str, Callable[[], Any]], *_: Any) -> Dict[str, Any]:
        self.sent.append(sorted(calls))
        return {name: self.outcome[name] for name in calls}

    def go_on(self, seconds: float) -> None:
        """Let time pass, in which EC2 tells nothing that would lead to an act."""
        monitor, until = self.monitor, self.clock.now + seconds
        while self.clock.now < until:
            if self.clock.now >= monitor.ask_at:
                self.asked += 1
                monitor.asked_at, monitor.ask_at = self.clock.now, self.clock.now + 120.0
            if self.clock.now >= monitor.probe_at:
                monitor.probe_once(TARGET)
            self.clock.now += 0.25


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_a_probe_that_is_answered_is_one_packet_every_five_seconds(watch: Watch) -> None:
    watch.outcome['through'] = ANSWERED

    watch.go_on(60.0)

    assert watch.sent == [['through']] * 12 and watch.asked == 0


def test_ec2_is_asked_before_the_probe_that_decides(watch: Watch) -> None:
    watch.go_on(0.75)

    assert watch.sent == [['through'], ['own way', 'through'], ['own way', 'through']] and watch.asked == 1
    assert watch.monitor.memory.own_way_at == watch.monitor.asked_at


def test_who_may_not_relieve_its_peer_asks_ec2_once_a_minute(watch: Watch) -> None:
    watch.go_on(60.0)
    watch.asked = 0

    watch.go_on(3600.0)

    assert 50 <= watch.asked <= 60


@pytest.mark.parametrize('outcome', [{'own way': MISSED}, {'through': ANSWERED}])
def test_ec2_is_not_asked_where_nothing_is_proved(watch: Watch, outcome: Dict[str, Probed]) -> None:
    watch.outcome.update(outcome)

    watch.go_on(119.0)

    assert watch.asked == 0


@pytest.mark.parametrize('change', [
    {'holders': {}}, {'answered_at': 0.0, 'unheard_at': 0.0}], ids=['who serves is not known', 'peer not heard'])
def test_only_a_peer_that_serves_and_is_heard_is_probed(watch: Watch, change: Dict[str, Any]) -> None:
    for name, value in change.items():
        setattr(watch.monitor.memory, name, value)

    watch.monitor.memory.primary = True  # the heir, where nobody has a part
    watch.go_on(20.0)

    assert watch.sent == []


def test_nothing_is_probed_while_pings_are_missed(watch: Watch) -> None:
    watch.monitor.misses = 1

    watch.go_on(20.0)

    assert watch.sent == []


def test_misses_do_not_count_before_the_first_answer_through_the_peer(watch: Watch) -> None:
    watch.monitor.memory.heir_at = 2.0

    watch.go_on(60.0)

    assert len(watch.sent) == 12 and watch.asked == 0
