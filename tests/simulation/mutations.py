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
    'no deciding ping after EC2 has answered': ((' and self.known.received_at <= self.pinged_at', ''),),
    'decides though EC2 does not answer': (('or isinstance(result, ClientError)', 'or True'),),
    'no look at its own state': (
        ("if known.own_state not in (None, 'running'):\n        return", 'if False:\n        return'),),
    'the primary as hasty as the secondary': (('(2 if self.known.primary else 1)', '1'),),
    'one ping too few': (('self.settings.num_pings * (', '-1 + self.settings.num_pings * ('),),
    'heard is not reset by a restart': (
        ("if known.peer_state not in (None, 'running'):\n            known.heard = False", ''),),
    'a ping that could not leave is a miss': (
        ('failure = str(fault)', 'failure, self.replied = str(fault), False'),),
    'the address is tried once only': (
        ('return [part for part in settings.parts\n',
         'return [part for part in settings.parts if part != settings.elastic_ip or self.claimed_at < 20.0\n'),),
    'stops at once after its claim': (('SETTLE_BEFORE_STOP = 10.0', 'SETTLE_BEFORE_STOP = 0.0'),),
    'never forces a stop': (('return Decision(FORCE,', 'return Decision(WAIT,'),),
    'never starts the peer': (('return Decision(START,', 'return Decision(WAIT,'),),
    'never looks': (('LOOK_INTERVAL = 300.0', 'LOOK_INTERVAL = 1e9'),),
    'stops without spacing': (('if now - stopped_at < spacing:', 'if False:'),),
    'takes over for as long as it lives': (
        ('self.known.heard, self.known.taking_over, self.known.kept_at, self.aside = True, False, math.inf, False',
         'self.known.heard, self.known.kept_at, self.aside = True, math.inf, False'),),
    'does not look what has become of a lost answer': (
        ("known.holders = dict(results['tables'])", "known.holders = {**results['tables'], **(known.holders or {})}"),),
    'keeps a client that has no credentials': (('self.client = None  # a client', 'pass  # a client'),),
    'blocked pings are taken for a dead peer': (("if runs and known.checks == 'ok':", 'if False:'),),
    'an answer from before a suspension decides': (
        ('if self.clock.monotonic() - asked_at >', 'if False and self.clock.monotonic() - asked_at >'),
        ('self.clock.monotonic() + spare - self.known.asked_at <= lifetime',
         'self.known.asked_at > 0.0')),
    'claims while it does not forward': (("off = '' if self.forwards()", "off = '' if True"),),
    'asks again without a pause': (('return float(self.chance.uniform', 'return 0.0 * float(self.chance.uniform'),),
    'goes by its memory of who holds': (
        ('or not known.left_to_claim(settings) or', 'or known.remembered == SELF or'),),
    'stops a peer that keeps its tables': (
        ('if now - known.kept_at < wait_stop:', 'if False:'),),
    'a primary never stands aside': (('if held and known.peer_serves(', 'if False and known.peer_serves('),),
    'an answer from before the silence decides': (
        ('self.judge_at = self.known.asked_at = -math.inf', 'self.judge_at = -math.inf'),),
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
