"""Deliberate mistakes in the monitor, each of which an invariant must catch, or the simulation is blind."""
from __future__ import annotations

import inspect
import sys
import types
from typing import Any, Dict, Tuple

import nat_monitor

from .search import BATCH, search

SCHEDULES = 20000                 # at most, until a mistake must be found

# name: what stands in nat_monitor.py and what a mistake makes of it, one or more times
MISTAKES: Dict[str, Tuple[Tuple[str, str], ...]] = {
    'no deciding ping after EC2 has answered': ((' and self.states.received_at <= self.pinged_at', ''),),
    'decides though EC2 does not answer': (('or isinstance(result, ClientError)', 'or True'),),
    'no look at its own state': (("if now.own_state not in (None, 'running'):", 'if False:'),),
    'the primary as hasty as the secondary': (('(2 if self.primary else 1)', '1'),),
    'one ping too few': (('self.settings.num_pings * (', '-1 + self.settings.num_pings * ('),),
    'heard is not reset by a restart': (
        ("if self.states.peer not in (None, 'running'):\n            self.heard = False", ''),),
    'a ping that could not leave is a miss': (
        ('failure = str(fault)', 'failure, self.replied = str(fault), False'),),
    'the address is tried once only': (
        ('if part not in parts]', 'if part not in parts and part != self.settings.elastic_ip]'),
        ('if holder not in (OTHER, ABSENT)}',
         'if holder not in (OTHER, ABSENT) and part != self.settings.elastic_ip}')),
    'stops at once after its claim': (('SETTLE_BEFORE_STOP = 10.0', 'SETTLE_BEFORE_STOP = 0.0'),),
    'never forces a stop': (('return Decision(FORCE,', 'return Decision(WAIT,'),),
    'never starts the peer': (('return Decision(START,', 'return Decision(WAIT,'),),
    'never looks': (('LOOK_INTERVAL = 300.0', 'LOOK_INTERVAL = 1e9'),),
    'stops without spacing': (('until_next_stop=spacing - since_stop', 'until_next_stop=0.0'),),
    'goes on with a take-over though the peer answers': (
        ('if not (claim.at_start or self.misses or claim.moved):', 'if False:'),),
    'does not look what has become of a lost answer': (
        ('if claim.moved or claim.unsure:', 'if False:'),),
    'keeps a client that has no credentials': (('self.client = None  # a client', 'pass  # a client'),),
    'blocked pings are taken for a dead peer': (
        ("now.peer_state == 'running' and now.checks == 'ok' and now.since_start", 'False and now.since_start'),),
    'an answer from before a suspension decides': (
        ('if self.clock.monotonic() - asked_at >', 'if False and self.clock.monotonic() - asked_at >'),
        ('self.clock.monotonic() + spare - self.states.asked_at <= lifetime', 'True')),
    'claims while it does not forward': (
        ("off = '' if self.forwards()", "off = '' if True"),),
    'asks again without a pause': (('return float(self.chance.uniform', 'return 0.0 * float(self.chance.uniform'),),
    'gives up where nothing is left to take over': (
        ('self.remembered = SELF  # nothing of', 'pass  # nothing of'),),
    'goes by its memory of who holds': (
        ('(now.remembered != SELF or now.holder == PEER', '(now.remembered != SELF or False'),),
    'stops a peer that keeps its tables': (('self.moved, self.kept_at = set(), None', 'self.moved = set()'),),
    'an answer from before the silence decides': (
        ('self.judge_at, self.states = -math.inf, None', 'self.judge_at = -math.inf'),),
}


def mistaken(name: str) -> Any:
    """Return a fresh copy of the monitor's module that contains the mistake."""
    source = inspect.getsource(nat_monitor)
    for right, wrong in MISTAKES[name]:
        if right not in source:
            raise LookupError(f'mistake "{name}": nat_monitor.py does not contain {right!r} any more')
        source = source.replace(right, wrong)
    module = types.ModuleType(f'nat_monitor_{len(sys.modules)}')
    module.__file__ = nat_monitor.__file__
    sys.modules[module.__name__] = module
    exec(compile(source, module.__file__, 'exec'), module.__dict__)
    return module


def hunt(name: str) -> Tuple[str, int, str]:
    """Return the mistake, the number of schedules until it was caught, and by which invariant ('': not at all)."""
    module, runs = mistaken(name), 0
    for seed in range(SCHEDULES // BATCH):
        found = search(seed, BATCH, module, shrink=False)
        runs += found.runs
        if found.failure:
            return name, runs, found.failure.rpartition('\n')[2]
    return name, runs, ''
