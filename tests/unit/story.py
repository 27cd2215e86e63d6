"""What a monitor has been through, told in the order of time, in seconds before now."""
from __future__ import annotations

import dataclasses
import logging
import re
from typing import Any, Tuple, Union

from nat_monitor import OTHER, PEER, SELF, Decision, Memory, Observation, Settings, Step, decide

NOW, DAY = 100000.0, 24 * 3600.0
TABLE, ADDRESS = 'rtb-0123456789abcdef0', '198.51.100.7'
BOTH = (TABLE, ADDRESS)
SETTINGS = Settings('i-0123456789abcdef0', 'i-0fedcba9876543210', (TABLE,), ADDRESS)
WELL: Any = {'own_state': 'running', 'own_checks': 'ok', 'peer_state': 'running', 'peer_checks': 'ok'}
ERROR: Any = {'own_state': '', 'own_checks': '', 'peer_state': '', 'peer_checks': '', 'reason': 'Unavailable'}
FAILED: Any = {'peer_checks': 'impaired'}
NO_DATA: Any = {'peer_checks': 'initializing'}
# How a sentence ends that a person must heed: with a command and where to run it, or with what to look at and where.
REMEDY = re.compile(r'[:;,] (run(?: on \S+)?: \w\S+ \S|look at .* between )')
UNKNOWN = 'unknown'  # EC2 does not tell who holds a part
Holders = Union[str, Tuple[str, str]]  # of both parts, or of the table and of the address


class Story:
    def __init__(self, primary: bool = False, **changed: Any) -> None:
        self.settings = dataclasses.replace(SETTINGS, **changed)
        self.memory = Memory(primary)

    def starts(self, ago: float = 0.0) -> Story:
        self.memory.owe(self.settings, NOW - ago)
        return self

    def sees(self, ago: float, holders: Holders, **told: Any) -> Story:
        by_part = dict(zip(BOTH, (holders, holders) if isinstance(holders, str) else holders))
        of_those = {part: holder for part, holder in by_part.items() if holder != UNKNOWN}
        self.seen = Observation(**{'asked_at': NOW - ago, 'holders': of_those,
                                   'is_complete': of_those == by_part, **WELL, **told})
        self.memory.note(self.seen, self.settings)
        return self

    def watches(self, since: float, holders: Holders, until: float = 0.0, **told: Any) -> Story:
        while since > until:
            self.sees(since, holders, **told)
            since -= 15.0
        return self.sees(until, holders, **told)

    def hears(self, ago: float) -> Story:
        self.memory.note_answer(NOW - ago)
        return self

    def misses(self, ago: float) -> Story:
        self.memory.note_silence(NOW - ago)
        return self

    def gets(self, ago: float, *parts: str) -> Story:
        for part in parts or BOTH:
            self.memory.note_here(part, NOW - ago)
        return self

    def is_refused(self, *until: float) -> Story:
        """EC2 has refused claims; each is to be followed by the next one so many seconds from now."""
        self.memory.failures += [NOW + pause for pause in until]
        return self

    def asks_for(self, step: str, *ago: float, refused: bool = False, pause: float = 60.0) -> Story:
        for each in ago:
            self.memory.note_step(Step(step, NOW - each, pause * refused))
        return self

    def probes(self, ago: float, through: bool) -> Story:
        if through:
            self.memory.lost = []
        elif self.memory.lost is not None:
            self.memory.lost.append(NOW - ago)
        return self

    def judged(self) -> Tuple[Decision, ...]:
        decisions = tuple(decide(self.memory, self.seen, self.settings, NOW))
        assert all(one.level < logging.ERROR or REMEDY.search(one.why) for one in decisions), decisions
        return decisions

    @property
    def claims(self) -> Tuple[str, ...]:
        return self.judged()[0].claims

    @property
    def step(self) -> str:
        return self.judged()[1].step


def fell_silent(since: float = 10.0, holders: Holders = PEER, primary: bool = False, **told: Any) -> Story:
    """Let a peer, which ran and answered, have fallen silent; the monitor has looked before and since."""
    story = Story(primary).hears(9000.0).watches(since + 100.0, holders, until=since + 1.0).misses(since)
    return story.watches(since - 1.0, holders, **told)


def at_peace(holders: Holders, since: float = 500.0, primary: bool = False, **told: Any) -> Story:
    """Let the peer answer, and who holds be so since then."""
    return Story(primary).hears(since + 9.0).sees(since + 1.0, OTHER).watches(since, holders, **told)


def lets_none_through(misses: int = 3, decisive: float = 1.0, primary: bool = False) -> Story:
    """Let a peer that answers have let a probe through, and then none; EC2 was asked two seconds ago."""
    story = Story(primary).hears(DAY).sees(200.0, SELF).sees(2.0, PEER).probes(60.0, True)
    for _ in range(misses - 1):
        story.probes(20.0, False)
    return story.probes(decisive, False)


def robbed(ago: float, lost: Holders = PEER, silent_for: float = 400.0, **changed: Any) -> Story:
    """Let the two be deaf to each other, and the peer have taken what came here so long ago."""
    story = Story(**changed).hears(9000.0).sees(900.0, PEER).misses(silent_for).gets(ago)
    return story.sees(ago - 1.0, lost)


def just_started(holders: Holders, heard: bool = True, ago: float = 0.0, **changed: Any) -> Story:
    story = Story(primary=True, **changed).starts(ago)
    return (story.hears(5.0) if heard else story).sees(0.0, holders)
