"""Deliberate mistakes in the monitor, each of which an invariant must catch, or the simulation is blind."""
from __future__ import annotations

import inspect
import sys
import types
from typing import Any, Dict, Tuple

import nat_monitor

from .search import BATCH, GENERATORS, search

SCHEDULES = 20000                 # at most, until a mistake must be found

# By the generator with which it is found soonest and the row of `decide`, the field of Memory or the place that it is
# in: what stands in nat_monitor.py, exactly once, and what a mistake makes of it, one or more times.
MISTAKES: Dict[str, Tuple[str, Tuple[Tuple[str, str], ...]]] = {
    # The rows of `decide`
    'row 1: acts though EC2 does not call it running': ('stopping', (
        ("if seen.own_state not in ('running', ''):", 'if False:'),)),
    'row 2: restarts a peer under maintenance': ('work', (('if seen.peer_maintenance:', 'if False:'),)),
    'row 2: does not relieve a peer under maintenance': ('work', (
        ('taken = () if seen.own_maintenance else due', 'taken = ()'),)),
    'row 2: relieves a peer under maintenance, being so itself': ('work', (
        ('taken = () if seen.own_maintenance else due', 'taken = due'),)),
    'row 3: claims while it is under maintenance': ('work', (
        ('if not is_silent and seen.own_maintenance:', 'if False:'),)),
    'row 4: never relieves a peer that does not forward': ('unlit', (
        ('and memory.does_not_forward(seen, settings, now):', 'and False:'),)),
    'row 4: restarts a peer that does not forward': ('unlit', (
        ('SOON, due, relief=True)', 'SOON, step=STOP, relief=True)'),)),
    'row 4: goes by one lost probe': ('unlit', (
        ('self.unforwarded >= settings.num_pings', 'self.unforwarded >= 1'),)),
    'row 4: does not look whether its own probes come back': ('unlit', (
        ('and self.own_way_at > seen.asked_at', ''),)),
    'row 4: its own probe came back before EC2 answered': ('unlit', (
        ('self.own_way_at > seen.asked_at', 'self.own_way_at > NEVER'),)),
    'row 4: a probe through the peer as it was before counts': ('unlit', (
        ('return self.forwarded_at > max(self.unheard_at, self.heir_at)', 'return self.forwarded_at > NEVER'),)),
    'row 4: probes count that never came back': ('unlit', (
        ('return self.forwarded_at > max(self.unheard_at, self.heir_at)', 'return True'),)),
    'row 4: relieves again and again': ('flapping', (
        ('and (now - latest >= pause or latest > self.heir_at)', ''),)),
    'row 4: relieves once, whatever became of it': ('refused_relief', (
        ('(now - latest >= pause or latest > self.heir_at)', 'now - latest >= pause'),)),
    'row 4: not later and later': ('flapping', (
        ('pause = AN_HOUR * 2.0 ** (len(self.reliefs) - 1)', 'pause = AN_HOUR / 4'),)),
    'row 5: judges a peer that is not silent': ('schedules', (
        ('    if not is_silent:\n        return keep_together', '    if False:\n        return keep_together'),)),
    'row 6: never stands aside': ('contests', (
        ('if now < memory.aside_until and may_live:', 'if False:'),)),
    'row 6: stands aside for one that is dead': ('deaf_and_dead', (
        ('if now < memory.aside_until and may_live:', 'if now < memory.aside_until:'),)),
    'row 7: blocked pings are taken for a dead peer': ('schedules', (
        ('if not memory.is_heard and may_live and', 'if False and'),)),
    'row 7: checks that tell nothing protect for ever': ('silent_checks', (
        ('may_live and not (tells_nothing and unheard >= wait_start)', 'may_live'),)),
    'row 7: an error of EC2 protects nobody': ('unheard', (
        ('may_live = not seen.peer_state or seen.peer_state', 'may_live = seen.peer_state'),)),
    'row 7: checks that pass protect nobody': ('contests', (
        ("tells_nothing = seen.peer_state and seen.peer_checks not in ('ok', 'impaired')", 'tells_nothing = True'),)),
    'row 7: checks that fail once protect nobody': ('alarmed', (
        ("seen.peer_state == 'running' and failing < wait_stop",
         "seen.peer_state == 'running' and seen.peer_checks != 'impaired'"),)),
    'row 8: never takes over': ('schedules', (('memory.left(seen) if seen.is_fit else ()', '()'),)),
    'row 8: claims for ever what EC2 refuses': ('refused', (
        ('if left and memory.refusals < wait_stop / CLAIM_RETRY:', 'if left:'),)),
    'row 8: claims while it cannot NAT': ('schedules', (
        ('memory.left(seen) if seen.is_fit else ()', 'memory.left(seen)'),)),
    'row 9: goes on though EC2 does not tell the states': ('silent_checks', (
        ('if not seen.peer_state or not seen.own_state:', 'if False:'),)),
    'row 10: never starts the peer': ('schedules', (("starting it', step=START)", "starting it')"),)),
    'row 10: starts it again at once': ('schedules', (
        ('if now < memory.step_due_at(START, memory.answered_at):', 'if False:'),)),
    'row 11: never forces a stop': ('schedules', (("forcing it', step=FORCE)", "forcing it')"),)),
    'row 11: forces a stop at once': ('schedules', (('max(memory.told_at + wait_stop,', 'max(NEVER,'),)),
    'row 12: starts a peer that is starting': ('schedules', (
        ("waiting for its answer', claims=due)\n    # 13", "waiting for its answer', step=START)\n    # 13"),)),
    'row 13: stops a peer that is gone': ('schedules', (("'alone', LATER, due)", "'alone', LATER, step=STOP)"),)),
    'row 14: stops a peer that it has not heard yet': ('stillborn', (
        ('if not memory.is_heard and (unheard < wait_start or failing < 2 * wait_stop):', 'if False:'),)),
    'row 14: stops an unheard peer before it had the time to start': ('stillborn', (
        ('(unheard < wait_start or failing < 2 * wait_stop)', '(failing < 2 * wait_stop)'),)),
    'row 14: stops an unheard peer by one answer': ('alarmed', (
        ('(unheard < wait_start or failing < 2 * wait_stop)',
         "(unheard < wait_start or seen.peer_checks != 'impaired')"),)),
    'row 15: stops without spacing': ('schedules', (('if now < memory.stop_due_at(settings):', 'if False:'),)),
    'row 15: not later and later': ('crash_loops', (('2.0 ** (len(stops) - 1))', '1.0)'),)),
    'row 15: a refused stop is tried at once again': ('denied', (
        ('return max(refused_at, stops[-1] + spacing)', 'return stops[-1] + spacing'),
        ('        if not stops:\n            return refused_at', '        if not stops:\n            return NEVER'))),
    'row 16: stops for a hiccup': ('hiccups', (('silence < wait_stop or', ''),)),
    'row 16: ignores that what it sees has not settled': ('isolated', (('or watched < settings.settling:', ':'),)),
    'row 16: settles for as long as a call takes': ('isolated', (
        ('return LATEST_EFFECT + 2 * LATEST_READ + CALL_DEADLINE + 2 * self.ping_timeout', 'return CALL_DEADLINE'),)),
    'row 16: goes by an address that may be old': ('stale', (
        ('if not (seen.is_complete and seen.tells_addresses):', 'if not seen.is_complete:'),)),
    'row 17: who holds nothing stops its peer': ('outside', (
        ('    if not is_fit and min(failing, silence) < UNARBITRATED:', '    if False:'),)),
    'row 17: who fails its checks stops its peer': ('alarmed', (
        ('is_fit = seen.is_fit and not seen.own_maintenance and SELF', 'is_fit = SELF'),)),
    'row 17: who is under maintenance stops its peer': ('worked_on', (
        ('is_fit = seen.is_fit and not seen.own_maintenance and SELF', 'is_fit = seen.is_fit and SELF'),)),
    'row 17: who holds nothing stops a peer whose checks do not fail': ('outside', (
        ('min(failing, silence) < UNARBITRATED', 'silence < UNARBITRATED'),)),
    'row 17: checks that fail arbitrate at once': ('powerless', (
        ('min(failing, silence) < UNARBITRATED', "seen.peer_checks != 'impaired'"),)),
    'row 18: never stops the peer': ('schedules', (("'stopping it', step=STOP)", "'stopping it')"),)),
    # Keeping together
    'together: the start claims nothing': ('schedules', (('if part in memory.owed and', 'if False and'),)),
    'together: the start claims from who is silent': ('unheard', (
        ('owed = () if may_serve else tuple(', 'owed = tuple('),)),
    'together: the start leaves what was given to something outside the pair': ('outside', (
        ('and believed[part] != ABSENT)', 'and believed[part] not in (ABSENT, OTHER))'),)),
    'together: leaves apart what is apart': ('schedules', (
        ('    if apart and seen.is_complete', '    if False and seen.is_complete'),)),
    'together: claims by answers that are not complete': ('apart', (
        ('if apart and seen.is_complete and', 'if apart and'),)),
    'together: who has nothing claims all when a part is lost': ('lost', (
        ('or holder == PEER and has_part)', 'or holder == PEER)'),)),
    'together: the other one is as quick as the heir': ('lost', (
        ('LAG if memory.heir == SELF else PATIENCE', 'LAG'),)),
    'together: nobody waits': ('lost', (('seen.asked_at - memory.changed_at >= patience', 'True'),)),
    'together: claims while it cannot NAT': ('schedules', (
        ('if not seen.is_fit or seen.asked_at < memory.claim_at:', 'if seen.asked_at < memory.claim_at:'),)),
    'together: claims though its own checks fail': ('unfit', (
        ("return not self.nat_fault and (self.own_checks, self.peer_checks) != ('impaired', 'ok')",
         'return not self.nat_fault'),)),
    'together: claims without a pause': ('denied', (
        ('if not seen.is_fit or seen.asked_at < memory.claim_at:', 'if not seen.is_fit:'),)),
    # The fields of Memory
    'primary: both are': ('schedules', (('self.memory = Memory(primary)', 'self.memory = Memory(True)'),)),
    'primary: neither is': ('contests', (('self.memory = Memory(primary)', 'self.memory = Memory(False)'),)),
    'primary: as hasty as the secondary': ('schedules', (('(2 if self.memory.primary else 1)', '1'),)),
    'owed: though it is not to fail back': ('schedules', (
        (' if self.primary and settings.fail_back else set()', ' if self.primary else set()'),)),
    'owed: by the secondary, too': ('schedules', (
        (' if self.primary and settings.fail_back else set()', ' if settings.fail_back else set()'),)),
    'owed: for ever': ('schedules', (
        ('                if seen.holders[part] == SELF:\n                    self.owed.discard(part)\n', ''),
        ('        self.owed.discard(part)\n        self.here_at[part] = now', '        self.here_at[part] = now'))),
    'owed: also when the peer has taken it since': ('denied', (('        self.owed.clear()\n', ''),)),
    'owed: nothing after maintenance': ('work', (
        ('            self.owe(settings)  # once the work is done, as after a start', '            pass'),)),
    'answered_at: never': ('schedules', (
        ('self.answered_at, self.silent_at = now, math.inf', 'self.silent_at = math.inf'),)),
    'silent_at: an answer does not end a silence': ('schedules', (
        ('self.answered_at, self.silent_at = now, math.inf', 'self.answered_at = now'),)),
    'silent_at: an observation from before the silence decides': ('schedules', (
        ('self.misses >= self.threshold and seen.asked_at > self.memory.silent_at',
         'self.misses >= self.threshold'),)),
    'unheard_at: not set by what EC2 tells': ('stillborn', (
        ("if seen.peer_state not in ('running', ''):\n            self.unheard_at",
         'if False:\n            self.unheard_at'),)),
    'told_at: since ever': ('schedules', (('self.told, self.told_at = told, seen.asked_at', 'self.told = told'),)),
    'told: never noted, so it has changed each time': ('schedules', (
        ('self.told, self.told_at = told, seen.asked_at', 'self.told_at = seen.asked_at'),)),
    'told: whatever its checks': ('alarmed', (
        ("told = seen.peer_state, seen.peer_checks == 'impaired'", 'told = seen.peer_state, False'),)),
    'holders: the heir is oneself': ('apart', (
        ('            for who in pair:\n', '            for who in (SELF, PEER):\n'),)),
    'here_at: what has come is believed for ever': ('schedules', (
        ('if asked_at - self.here_at.get(part, NEVER) < LAG:', 'if part in self.here_at:'),)),
    'here_at: claims again what came in this silence': ('blind', (
        ('and self.here_at.get(part, NEVER) <= since)', ')'),)),
    'changed_at: never': ('lost', (('self.holders, self.changed_at = self.heir, holders, at',
                                    'self.holders = self.heir, holders'),)),
    'heir_at: as soon as any part has come': ('refused_relief', (
        ('self.heir_at = at if self.heir != heir else self.heir_at', 'self.heir_at = at'),)),
    'seen_at: never': ('schedules', (('        self.seen_at = seen.asked_at\n', ''),)),
    'watched_at: since the latest observation only': ('schedules', (
        ('elif gap or self.watched_at == math.inf:', 'else:'),)),
    'aside_until: a minute only': ('contests', (
        ('patience = (AN_HOUR + 2 * LAG if came_at > self.silent_at else',
         'patience = (settings.wait_for_instance_stop if came_at > self.silent_at else'),)),
    'aside_until: for a peer that has been down meanwhile': ('schedules', (
        ('        if self.unheard_at < came_at:\n', '        if True:\n'),)),
    'aside_until: an answer does not end it': ('schedules', (
        ('        self.aside_until = min(self.aside_until, now + settings.wait_for_instance_stop)\n', ''),)),
    'forwarded_at: never': ('unlit', (('self.forwarded_at, self.unforwarded = sent_at, 0', 'self.unforwarded = 0'),)),
    'unforwarded: an answer does not end the misses': ('unlit', (
        ('self.forwarded_at, self.unforwarded = sent_at, 0', 'self.forwarded_at = sent_at'),)),
    'own_way_at: never': ('unlit', (('            self.own_way_at = sent_at\n', '            pass\n'),)),
    'refusals: a silence inherits them': ('denied', (
        ('self.silent_at, self.claim_at, self.refusals = since, NEVER, 0',
         'self.silent_at, self.claim_at = since, NEVER'),)),
    'claim_at: a silence inherits it': ('denied', (
        ('self.silent_at, self.claim_at, self.refusals = since, NEVER, 0',
         'self.silent_at, self.refusals = since, 0'),)),
    'reliefs: never noted': ('flapping', (('            self.memory.note_relief(now)\n', '            pass\n'),)),
    'steps: never noted': ('schedules', (
        ('if step.at - one.at < REMEMBERED] + [step]', 'if step.at - one.at < REMEMBERED]'),)),
    'steps: only the last one is remembered': ('crash_loops', (
        ('if step.at - one.at < REMEMBERED] + [step]', 'if False] + [step]'),)),
    # A take-over
    'left: claims what was given to something outside the pair': ('schedules', (
        ('if holder in (PEER, NOBODY))', 'if holder in (PEER, NOBODY, OTHER))'),)),
    'left: claims what was given to something outside, as far as is known': ('blind', (
        ('if holder not in (OTHER, ABSENT)\n', 'if holder != ABSENT\n'),)),
    'claim: the address alone, wherever the heir is': ('denied', (
        ('not memory.refusals if calls else memory.address_may_come', 'True'),)),
    'claim: does not ask what has become of a lost answer': ('schedules', (
        ('            if len(results) < len(parts) or not is_answered:\n                self.ask_at = NEVER\n',
         ''),)),
    'claim: waits for the answer to the move of the address': ('schedules', (
        ('min(CALL_DEADLINE, MOVE_DEADLINE * rounds) if address in calls else CALL_DEADLINE', 'CALL_DEADLINE'),)),
    'pause: none': ('denied', (
        ('return float(self.chance.uniform(0.0, SOON))', 'return 0.0'),
        ('return 60.0 if count < 30 else 300.0', 'return 0.0'))),
    # The loop
    'loop: decides though EC2 does not answer': ('schedules', (
        ('        if not has_answered(states):\n            return None\n', ''),)),
    'loop: the ping that decides does not wait for EC2': ('schedules', (
        ('if self.misses == self.threshold - 1 or self.peer_address is None:', 'if self.peer_address is None:'),
        ('return math.inf if self.misses == self.threshold - 1 else max(0.0, pause)', 'return max(0.0, pause)'))),
    'loop: one ping too few': ('schedules', (
        ('return self.settings.num_pings * (2', 'return -1 + self.settings.num_pings * (2'),)),
    'loop: a suspension keeps the misses': ('suspended', (
        ('            self.start_over()  # nothing takes so long: this process was suspended', '            pass'),
        ('            answered = None  # suspended, too', '            pass'))),
    'loop: a suspension within a ping keeps the misses': ('suspended', (
        ('            answered = None  # suspended, too', '            pass'),)),
    'loop: a fault of its own keeps the misses': ('suspended', (
        ('        elif answered is None:\n            self.start_over()\n', '        elif answered is None:\n'),)),
    'loop: a fault of its own is a miss': ('suspended', (
        ('            failure = str(fault)\n', '            failure, answered = str(fault), False\n'),)),
    'loop: an old observation decides': ('schedules', (
        ('if self.clock.monotonic() - seen.asked_at > lifetime:', 'if False:'),)),
    'loop: judges between the first miss and silence': ('schedules', (
        ('        return not self.misses or (\n', '        return self.misses < self.threshold or (\n'),)),
    'loop: no question at the first miss': ('schedules', (
        ('if self.misses in (1, self.threshold - 1):', 'if self.misses == self.threshold - 1:'),)),
    'loop: EC2 is asked one ping later': ('schedules', (
        ('if self.misses in (1, self.threshold - 1):', 'if self.misses == self.threshold:'),)),
    'loop: never looks': ('schedules', (('LOOK_INTERVAL = 120.0 ', 'LOOK_INTERVAL = 1e9 '),)),
    'loop: an observation serves more than once': ('schedules', (
        ('        self.observation = None\n        if self.ask_at != NEVER', '        if self.ask_at != NEVER'),)),
    'EC2: keeps a client that has no credentials': ('schedules', (
        ('self.client = None  # a new one', 'pass  # a new one'),)),
    'EC2: keeps connections that a move of the address has killed': ('schedules', (
        ('        self.close_connections()  # an older one may have died without a FIN', '        pass'),)),
    'EC2: keeps the old private address of the peer': ('schedules', (
        ("            self.facts = {**self.facts, **results['instances']}",
         "            self.facts = self.facts or results['instances']"),)),
    'EC2: forgets one of the two that it leaves out': ('schedules', (
        ("self.facts = {**self.facts, **results['instances']}", "self.facts = results['instances']"),)),
}


def mistaken(name: str) -> Any:
    """Return a fresh copy of the monitor's module that contains the mistake."""
    source = inspect.getsource(nat_monitor)
    for right, wrong in MISTAKES[name][1]:
        if source.count(right) != 1:
            raise LookupError(f'mistake "{name}": nat_monitor.py contains {right!r} {source.count(right)} times')
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
        found = search(seed, BATCH, module, shrink=False, drawn=GENERATORS[MISTAKES[name][0]])
        runs += found.runs
        if found.failure:
            return name, runs, found.failure.rpartition('\n')[2]
    return name, runs, ''
