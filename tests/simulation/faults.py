"""What happens to a pair: the kinds of faults, and the grids of which schedules are made; all tables stand here."""
from __future__ import annotations

import itertools
import math
import random
from typing import Dict, Iterator, NamedTuple, Sequence, Tuple, Union

# Kinds of faults.  `lasts` says for how long where it matters, `how` which way.
ACTIONS = ('describe_instance_status', 'describe_route_tables', 'describe_addresses', 'describe_instances',
           'replace_route', 'associate_address', 'stop_instances', 'start_instances', 'create_route')  # to forbid
GUEST = ('crash', 'hang', 'stubborn', 'reboot', 'stop', 'terminate', 'new private address')
BOOT = {'late metadata': 'metadata_at', 'late credentials': 'credentials_at', 'no forwarding': 'forwards_at'}
MONITOR = ('kill', 'suspend')
NETWORK = ('block ping', 'cut peer', 'cut EC2', 'cut off', 'loss')
FORWARDING = ('forwarding lost', 'source check', 'target dead')  # the first, where `how` is odd, unnoticed by the host
TAG = ('maintenance',)            # the tag of an instance that is being worked on
HINDERS = ('EC2 down', 'slow', 'late', 'lossy', 'garbage', 'throttle', 'forbid', 'left out')  # a take-over
EC2 = (*HINDERS, 'no data', 'false alarm', 'no capacity')  # left out, where `how` is odd, of DescribeInstances, too
SOMEBODY = ('move route', 'move address')
LOST = ('delete route', 'release address', 'stray address')  # by somebody: no reason to move the rest
KINDS = (*GUEST, *BOOT, *MONITOR, *NETWORK, *FORWARDING, *TAG, *EC2, *SOMEBODY, *LOST)

LASTING = (*NETWORK, *FORWARDING, *TAG, *EC2)
OF_BOTH = ('cut peer', 'throttle', 'no data', 'no capacity', 'target dead')
WHOM = ('primary', 'secondary', 'both')
VARIANTS: Dict[str, Tuple[int, ...]] = {  # of a kind, where there are any: what `how` tells
    'forbid': tuple(range(len(ACTIONS))), 'loss': (20, 60, 90, 97, 99), 'slow': (3, 12), 'lossy': (40, 120),
    'EC2 down': (0, 1), 'cut EC2': (0, 1), 'cut off': (0, 1), 'forwarding lost': (0, 1), 'left out': (0, 1),
    'move route': (1, 2, 3), 'move address': (1, 2, 3), 'stray address': (0, 1)}

# Grids, in seconds: after the start (a boot, calm, before a look), of a single fault, of each of two and between these
PHASES = (0.0, 21.0, 239.6)
DURATIONS = (1.4, 4.5, 12.0, 70.0, 400.0)
DURATIONS_OF_PAIRS = (6.5, 95.0, 600.0)
LATER = (0.0, 2.6, 11.0, 40.0, 97.0, 190.0, 420.0)
LATEST_READ = 3                   # s by which a read may lag


class Fault(NamedTuple):
    at: float
    kind: str
    who: str = 'primary'          # primary, secondary, both
    lasts: float = 0
    how: int = 0


class Conditions(NamedTuple):
    """How long things take in one run, in seconds; what the monitor has to live with."""

    tables: int = 1
    address: bool = True
    latency: float = 0.1          # of a call, there and back
    read_lag: int = 0             # a read may show what was true so long ago
    effect_lag: int = 0           # a write may take effect so late
    check_lag: int = 60           # from a failure to 'impaired'
    recovery_lag: int = 60        # from a repair to 'ok'
    stop_takes: int = 10
    boot_takes: int = 20          # from 'running' until the instance answers pings
    monitor_starts: int = 5       # after that
    public_back: int = 0          # who loses the address reaches EC2 again after so long
    frames: int = 0               # to a neighbour, for what lies beyond: 0 are carried, 1 lost, 2 has no neighbour


FAR = Conditions(tables=2, latency=0.5, read_lag=LATEST_READ, effect_lag=3, check_lag=300, recovery_lag=20,
                 stop_takes=40, boot_takes=45, monitor_starts=10, public_back=20)
NEAR = Conditions(recovery_lag=300, stop_takes=30, boot_takes=30)


class Schedule(NamedTuple):
    faults: Tuple[Fault, ...] = ()
    conditions: Conditions = Conditions()
    seed: int = 0
    pace: Tuple[int, float, float] = (3, 1.0, 0.25)  # NUM_PINGS, PING_TIMEOUT, WAIT_BETWEEN_PINGS
    phase: float = 0.0            # s by which the secondary's monitor starts later
    fail_back: Union[bool, int] = True
    probes: bool = False


def events(kind: str, durations: Sequence[float], whom: Sequence[str] = WHOM) -> Iterator[Fault]:
    """Yield each fault of a kind that begins at 0: whom, how long, which way."""
    if kind in (*OF_BOTH, *SOMEBODY, *LOST):
        whom = whom[:1]
    if kind in (*GUEST, *SOMEBODY, *LOST):
        durations = (1.0,)
    for who, lasts, how in itertools.product(whom, durations, VARIANTS.get(kind, (0,))):
        yield Fault(0.0, kind, who, lasts, how)


def singles(kind: str) -> Iterator[Schedule]:
    """Yield every schedule with one fault of this kind."""
    durations = DURATIONS[1::2] if kind in EC2 or kind == 'loss' else DURATIONS
    for fault, at in itertools.product(events(kind, durations), PHASES[::2] if kind in EC2 else PHASES):
        yield Schedule((fault._replace(at=at),), probes=kind in FORWARDING)
    for fault, (at, conditions) in itertools.product(events(kind, durations[::2]), ((100.0, NEAR), (121.3, FAR))):
        yield Schedule((fault._replace(at=at),), conditions, probes=kind not in FORWARDING, phase=0.5)
    if kind in (*GUEST, *BOOT, *MONITOR, *TAG):
        for fault, at, fail_back in itertools.product(events(kind, DURATIONS[1::2]), PHASES[1:], (False, 120)):
            yield Schedule((fault._replace(at=at),), fail_back=fail_back)


class Pairs:
    """All schedules with two faults, on a grid, in an order that is always the same and takes from everywhere."""

    def __init__(self) -> None:
        self.events = [fault for kind in KINDS for fault in events(kind, DURATIONS_OF_PAIRS, WHOM[:2])
                       if kind != 'loss' or fault.how in (60, 90)]
        self.count = len(self.events) ** 2 * len(LATER)
        self.stride = next(n for n in itertools.count(int(self.count * 0.618)) if math.gcd(n, self.count) == 1)

    def __getitem__(self, number: int) -> Schedule:
        rest, later = divmod(number * self.stride % self.count, len(LATER))
        first, second = divmod(rest, len(self.events))
        at = 100.0 + number % 7 * 3.1
        pair = self.events[first]._replace(at=at), self.events[second]._replace(at=at + LATER[later])
        return Schedule(pair, (Conditions(), NEAR, FAR)[number % 3],
                        fail_back=(True, True, True, False, 120)[number % 5],
                        probes=number % 2 == 0 or any(one.kind in FORWARDING for one in pair))


def drawn(seed: int) -> Iterator[Schedule]:
    """Yield schedules of three faults and more, without end."""
    chance = random.Random(seed)
    pick, number = chance.choice, chance.randint
    while True:
        faults = tuple(Fault(number(0, 600), pick(KINDS), pick(WHOM), pick((number(1, 15), number(1, 200), 600, 3600)),
                             number(0, 99)) for _ in range(number(3, 6)))
        conditions = Conditions(
            number(1, 3), pick((True, False)), pick((0.1, 0.5, 1.5)), number(0, LATEST_READ), number(0, 3),
            pick((20, 60, 150, 300)), pick((20, 60, 300)), number(5, 90), number(15, 60), number(1, 30),
            pick((0, 20, 150)), pick((0, 0, 0, 1, 2)))
        pace = pick(((3, 1.0, 0.25),) * 3 + ((3, 0.2, 0.2), (2, 1.0, 0.25), (6, 1.0, 2.0)))
        yield Schedule(faults, conditions, number(0, 999), pace, chance.uniform(0.0, 120.0),
                       pick((True, True, False, 120)), pick((True, False)))
