"""What the results say: lines on the screen, what README.adoc shows of them, a page of all figures, and the picture."""
from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import nat_monitor

from .contenders import CONTENDERS

Record = Dict[str, Any]
PICTURE = Path(__file__).parent / 'failover.svg'
README = Path(__file__).parents[2] / 'README.adoc'
PAGE = Path(__file__).parent / 'results' / 'README.adoc'
BEGIN = '// measured: begin (python -m tests.bench --report writes what follows)'
END = '// measured: end'
MAIN = ('default', 'reference', 'keepalived')
OURS = ('careful', 'default', 'quick')
BEFORE = {0: 0, 5: 0, 20: 0, 40: 1}  # false failovers in 5 min as shipped, by loss: what an earlier version had
REDUNDANT = {60.0: 195.0, 120.0: 259.0, 300.0: 435.0}  # s, by those after which EC2's checks tell of a crash
MOVES = {'crash': 'the holder crashes', 'fail-back': 'it comes back', 'hand-over': 'a planned hand-over'}
WAYS_TO_SEND = {'client': 'the private host sends', 'server': 'the server sends'}


def read(path: Path) -> List[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pick(records: Sequence[Record], what: str, **values: Any) -> List[Record]:
    """Return the records of a measurement with these values."""
    return [one for one in records if one['what'] == what and all(one.get(k) == v for k, v in values.items())]


def crashes(records: Sequence[Record], who: str, latency: float = 0.15, tables: int = 1) -> List[Record]:
    return pick(records, 'crash', who=who, latency=latency, tables=tables)


def settings_of(who: str) -> nat_monitor.Settings:
    chosen = {name.lower(): value for name, value in CONTENDERS[who].settings.items()}
    return nat_monitor.Settings('', '', [], **chosen)


def floor(who: str, latency: float = 0.15, wait: float = 0.5, call: float = 0.5) -> float:
    """Return the outage that cannot be undercut: half of the wait, in the mean, misses, and half an API call.

    In the lab a call takes effect in its middle, so that half of its time is part of the outage. EC2 is asked at the
    first miss, and its answer is awaited before the ping that decides: where a call takes longer than the pings
    between those two, the rest of it is part of the outage, too.
    """
    its = settings_of(who)
    awaited = max(0.0, latency - (its.num_pings - 2) * its.ping_timeout)
    return wait * its.wait_between_pings + its.num_pings * its.ping_timeout + awaited + call * latency


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that is not below that share of the values."""
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


def spread(values: Sequence[float], form: str = '.2f') -> List[str]:
    """Return median, 95 % and maximum, as text."""
    if not values:
        return ['–'] * 3
    return [f'{value:{form}}' for value in (statistics.median(values), percentile(values, 95), max(values))]


def ratio(values: Sequence[float], of: Sequence[float]) -> str:
    return f'{statistics.median(values) / statistics.median(of):.2f}' if values and of else '–'


def median(records: Sequence[Record], key: str, form: str = '.2f') -> str:
    return f'{statistics.median(one[key] for one in records):{form}}' if records else '–'


def in_short(record: Record) -> str:
    """Say on a line what was measured."""
    return ' '.join(f'{key}={round(value, 2) if isinstance(value, float) else value}' for key, value in record.items()
                    if key not in ('strip', 'cpu', 'told'))


def rate(records: Sequence[Record]) -> float:
    """Return the false failovers in five minutes."""
    return float(300 * sum(one['failovers'] for one in records) / sum(one['seconds'] for one in records))


# Targets --------------------------------------------------------------------------------------------------------------

def targets(records: Sequence[Record]) -> int:
    """Print what the monitor must reach and whether it does; return the exit code."""
    missed = False
    for what, measured, limit, unit in goals(records):
        missed |= measured > limit
        print(f'{"MISSED" if measured > limit else "reached":8}{what:66}{measured:8.3g} {unit:2} at most {limit:.3g}')
    for who in CONTENDERS:
        some = crashes(records, who)
        print(f'{CONTENDERS[who].label:33} outage {" / ".join(spread([o["outage"] for o in some]))} s '
              f'(median / 95 % / max, n = {len(some)}), address back {median(some, "egress")} s')
    return int(missed)


def goals(records: Sequence[Record]) -> Iterator[Tuple[str, float, float, str]]:
    """Yield what is measured, its value, what that may be at most, and the unit."""
    default, quick = crashes(records, 'default'), crashes(records, 'quick')
    middle = statistics.median

    def share(ours: Sequence[Record], theirs: Sequence[Record], key: str = 'outage') -> float:
        return float(middle(one[key] for one in ours) / middle(one['outage'] for one in theirs))

    if default:
        yield ('outage beyond wait + 3 × 1 s + one call, worst',
               max(one['outage'] for one in default) - floor('default', wait=1, call=1), 0.1, 's')
        yield 'outage as shipped, median', middle(one['outage'] for one in default), 3.3, 's'
        later = middle(one['egress'] - one['outage'] for one in default)
        yield 'address back after the route, median', later, 0.05, 's'
    for latency in sorted({one['latency'] for one in pick(records, 'crash', who='default')}):
        beyond = middle(one['outage'] for one in crashes(records, 'default', latency)) / floor('default', latency) - 1
        yield f'outage beyond the floor, call {latency:g} s, median', 100 * beyond, 5, '%'
    for our_name, their_name, latency, limit in (('default', 'keepalived', 0.15, 0.9),
                                                 ('default', 'keepalived', 0.5, 0.9),
                                                 ('quick', 'keepalived quick', 0.15, 1.0)):
        ours, theirs = (crashes(records, who, latency) for who in (our_name, their_name))
        if ours and theirs:
            yield (f"outage, {our_name}, as a share of {their_name}'s, call {latency:g} s", share(ours, theirs), limit,
                   '')
    if quick:
        yield 'outage with 0.2 s / 0.2 s, median', middle(one['outage'] for one in quick), 0.9, 's'
    many = crashes(records, 'default', tables=50)
    if default and many:
        yield 'outage of the last of 50 tables, in times of one', share(many, default, 'last'), 1.5, ''
    for lag, most in REDUNDANT.items():
        some = pick(records, 'again', who='default', lag=lag)
        if some:
            yield (f"redundant again, EC2's checks tell after {lag:g} s, median",
                   middle(one['seconds'] for one in some), most, 's')
    for loss, before in BEFORE.items():
        mine, others = (pick(records, 'watch', who=who, loss=loss) for who in ('default', 'keepalived'))
        if mine:
            yield (f"false failovers in 5 min at {loss} % loss: keepalived's and before", rate(mine),
                   min(before, rate(others)) if others else before, '')
    costs = pick(records, 'imports', who='boto3')
    for one in pick(records, 'watch', who='default', loss=0):
        looks = 8 * math.ceil(one['seconds'] / 120)  # four calls of two monitors
        yield f'EC2 calls in {one["seconds"]:.0f} s while well', one['calls'], looks, ''
        yield 'CPU while well, of a core', 100 * statistics.mean(one['cpu']), 0.15, '%'
        if costs:
            yield ('resident memory: import boto3, requests and a client + 8 MB', one['memory'],
                   middle(cost['memory'] for cost in costs) + 8, 'MB')
    begun = pick(records, 'begin', who='default')
    if begun:
        yield 'start to first claim, median', middle(one['seconds'] for one in begun), 1.5, 's'
    yield 'measurements that failed twice', len(pick(records, 'failure', attempt=2)), 0, ''


# The texts ------------------------------------------------------------------------------------------------------------

def table(title: str, columns: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    return ['', f'.{title}', f'[cols="{columns}",options="header"]', '|===', '|' + ' |'.join(head), '',
            *('|' + ' |'.join(row) for row in rows), '|===']


def section(records: Sequence[Record]) -> str:
    """Return the text between the two comment markers of README.adoc, with them: ours against the rivals."""
    rows = []
    for who in (*OURS, 'reference', 'keepalived'):
        some = crashes(records, who)
        words = f'*{who}*: {chosen(who)}' if who in OURS else CONTENDERS[who].label
        its = settings_of(who)
        ridden = ', '.join(f'{times * its.num_pings * its.ping_timeout:g} s' for times in (1, 2))
        rows.extend([[words, ' / '.join(spread([one['outage'] for one in some])[:2]), median(some, 'egress'),
                      ridden if who in OURS else '–']] if some else [])
    return '\n'.join([
        BEGIN, '.The packets of a private host as the primary crashes',
        'image::tests/bench/failover.svg[A row of packets for each contender]',
        *table('Settings and rivals, in seconds (an EC2 call takes 0.15 s)', '4,2,1,2',
               ['', 'outage: median / 95 %', 'address back', 'hiccup that moves nothing, by who serves: primary, '
                'secondary'], rows), END])


def page(records: Sequence[Record]) -> str:
    """Return the page that stands beside the results."""
    return '\n'.join([
        '= Measured', '// python -m tests.bench --report writes this page', '',
        'How long private hosts are cut off when the primary crashes, beside Amazon\'s script, beside keepalived, and '
        'beside what no monitor with these settings can undercut.', '',
        *introduction(records), *outages(records), *kept(records), *others(records), ''])


def write(records: Sequence[Record]) -> None:
    """Put both where they belong."""
    before, after = README.read_text().split(BEGIN)[0], README.read_text().split(END)[1]
    README.write_text(before + section(records) + after)
    PAGE.write_text(page(records))


def introduction(records: Sequence[Record]) -> List[str]:
    head, gaps = records[0], [one['gap'] for one in records if 'gap' in one]
    failures = pick(records, 'failure')
    return [
        f'Measured on {head["date"]} by `tox -e bench -- --full`: {head["machine"]}, '
        f'Linux {head["kernel"].partition("-")[0]}, Python {head["python"]}, boto3 {head["boto3"]}, {head["aws"]}, '
        f'{head["keepalived"]}.',
        *sorted({f'The time until redundant again is of {one["date"]}, by the rule of status checks.'
                 for one in pick(records, 'again') if 'date' in one}),
        'Packets are real, one every 10 ms, in network namespaces; EC2 is simulated.',
        'The primary dies at a random moment; its outage ends with the next packet that is answered.',
        "The rivals are the algorithm of Amazon's `nat_monitor.sh`, with the address added, and keepalived with a "
        'script that moves route and address, both on the AWS CLI (`tests/bench/rivals/`), whose start takes much of a '
        'second for each call.',
        'EC2 speaks TLS, and the clients load a bundle of authorities at each handshake, as they do on AWS.',
        'The floor is half of the wait, as in the mean, `NUM_PINGS` × `PING_TIMEOUT`, and half an EC2 call, as the lab '
        'lets a call take effect in its middle. Where a call takes longer than the pings between the first miss and '
        'the one that decides, the rest of that call is part of the floor, as nat_monitor.py waits for an answer of '
        'EC2 before it decides.',
        'keepalived waits for three advertisements of a second each, not for a wait and three pings: it may undercut '
        'that floor, but asks nobody whether it is itself cut off, and restarts nobody.',
        f'All ran interleaved, {head["jobs"]} labs side by side and {2 * head["jobs"]} that mostly wait; between two '
        f'packets of a healthy lab there were never more than {1000 * max(gaps, default=0):.0f} ms '
        f'(in half of the labs {1000 * statistics.median(gaps or [0]):.0f} ms, '
        f'95 %: {1000 * percentile(gaps or [0], 95):.0f} ms).',
        *([f'{len(failures)} measurements failed and were repeated.'] if failures else []),
        *([head['note']] if 'note' in head else []),
        'Raw results: `full.jsonl`.',
        '', '.The packets of a private host as the primary crashes',
        'image::../failover.svg[A row of packets for each contender]']


def outages(records: Sequence[Record]) -> List[str]:
    rows = []
    for latency in sorted({one['latency'] for one in pick(records, 'crash')}):
        ours = [one['outage'] for one in crashes(records, 'default', latency)]
        rows.append([f'{latency:g} s', 'the floor, as shipped', '–', f'{floor("default", latency):.2f}', *['–'] * 5,
                     ratio([floor('default', latency)], ours), '1.00'])
        for who in CONTENDERS:
            some = crashes(records, who, latency)
            values = [one['outage'] for one in some]
            rows.extend([[f'{latency:g} s', CONTENDERS[who].label, str(len(some)), *spread(values),
                          *spread([one['egress'] for one in some]), ratio(values, ours),
                          ratio(values, [floor(who if who in OURS else 'default', latency)])]] if some else [])
    return table('Outage of a private host when the primary crashes, and until it has its egress address again, in '
                 'seconds', '1,3,1,1,1,1,1,1,1,2,2',
                 ['EC2 call', '', 'n', 'median', '95 %', 'max', 'address: median', '95 %', 'max', '× nat_monitor.py',
                  '× floor'], rows)


def kept(records: Sequence[Record]) -> List[str]:
    """Return the table of the TCP connections that survive."""
    def show(who: str, move: str, way: str) -> str:
        some = [(one[move][way], one['count']) for one in pick(records, 'connections', who=who) if move in one]
        stalls = [stall for (_, stall), _ in some if stall is not None]
        count = f'{sum(count for (count, _), _ in some)} of {sum(of for _, of in some)}'
        return f'{count}, {statistics.median(stalls):.2f} s' if stalls else count if some else '–'

    rows = [[words, sends, *(show(who, move, way) for who in MAIN)]
            for move, words in MOVES.items() for way, sends in WAYS_TO_SEND.items()]
    return table('TCP connections that survive, and the median of their longest pauses', '3,3,2,2,2',
                 ['', '', *(CONTENDERS[who].label for who in MAIN)], rows) if pick(records, 'connections') else []


def others(records: Sequence[Record]) -> List[str]:
    """Return the table of what else it takes."""
    def show(some: Sequence[float], form: str) -> str:
        return f'{" / ".join(spread(some, form))} ({len(some)})' if some else '–'

    def times(key: str, what: str, form: str = '.2f', **values: Any) -> Callable[[str], str]:
        return lambda who: show([one[key] for one in pick(records, what, who=who, **values)], form)

    def cpu(who: str) -> str:
        return show([100 * share for one in pick(records, 'watch', who=who, loss=0) for share in one['cpu']], '.3f')

    def false_failovers(loss: int) -> Callable[[str], str]:
        def cell(who: str) -> str:
            some = pick(records, 'watch', who=who, loss=loss)
            count, seconds = (sum(one[key] for one in some) for key in ('failovers', 'seconds'))
            return f'{count} in {seconds / 60:.1f} min' if some else '–'
        return cell

    figures = [
        *((f"redundant again after a crash, s (stop and boot: 30 s each), EC2's checks tell after {lag:g} s",
           times('seconds', 'again', '.0f', lag=lag)) for lag in REDUNDANT),
        ('EC2 calls before the route moves', times('calls_before', 'crash', 'g', latency=0.15, tables=1)),
        ('EC2 calls until the address is back', times('calls', 'crash', 'g', latency=0.15, tables=1)),
        ('EC2 calls until redundant again', times('calls', 'again', '.0f', lag=60.0)),
        ('start to the first claim, s', times('seconds', 'begin')),
        *((f'moving {count} route table{"s" * (count > 1)}, s', times('claim', 'crash', latency=0.15, tables=count))
          for count in sorted({one['tables'] for one in pick(records, 'crash')})),
        ('CPU while both are well, % of a core', cpu),
        ('resident memory, MB', times('memory', 'crash', '.0f', latency=0.15, tables=1)),
        *((f'false failovers at {loss} % loss', false_failovers(loss))
          for loss in sorted({one['loss'] for one in pick(records, 'watch')}))]
    boto3 = pick(records, 'imports', who='boto3')
    return table('What else it takes: median / 95 % / maximum (n)', '4' + ',2' * len(CONTENDERS),
                 ['', *(one.label for one in CONTENDERS.values())],
                 [[words, *map(of, CONTENDERS)] for words, of in figures]) + [
        '', f'For comparison, `import boto3, requests` and one EC2 client: {median(boto3, "seconds")} s and '
        f'{median(boto3, "memory", ".0f")} MB.']


def chosen(who: str) -> str:
    """Say which settings are not as shipped."""
    return ', '.join(f'`{name}` {value}' for name, value in CONTENDERS[who].settings.items()) or 'as shipped'


# The picture ----------------------------------------------------------------------------------------------------------

WAYS = {'egress address': ('#1b7f4d', 24, 'served', 0),  # colour, height, words and where they stand
        'another address': ('#e8a317', 24, 'served from another address', 100), 'lost': ('#d64545', 8, 'lost', 375)}
LEFT, WIDTH, TOP, ROW, FROM = 12, 616, 68, 62, -1.0  # pixels, and the second at which it begins


def draw(records: Sequence[Record]) -> None:
    """Draw the packets around the median outage of each contender, EC2 calls taking 0.15 s."""
    shown = {}
    for who in ('quick', *MAIN, 'keepalived quick'):
        some = sorted(crashes(records, who), key=lambda one: float(one['outage']))
        shown.update({who: some[(len(some) - 1) // 2]} if some else {})
    last = math.ceil(max((one['strip'][-1][1] for one in shown.values()), default=1))
    scale, bottom = WIDTH / (last - FROM), TOP + ROW * len(shown)

    def x(at: float) -> float:
        return round(LEFT + (max(at, FROM) - FROM) * scale, 1)

    def text(left: float, top: float, words: str, more: str = '') -> str:
        return f'<text x="{left:g}" y="{top:g}" {more}>{words}</text>'

    # Narrow, with large letters: it is to be read on a telephone, too.
    size = f'{LEFT + WIDTH + 12} {bottom + 26}'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="16">',
             '<rect width="100%" height="100%" fill="white"/>',
             text(LEFT, 22, 'A packet every 10 ms, ten are a stroke; at 0 s the primary crashes')]
    for colour, _, words, left in WAYS.values():
        parts += [f'<rect x="{LEFT + left}" y="36" width="14" height="14" fill="{colour}"/>',
                  text(LEFT + left + 20, 49, words)]
    for second in range(int(FROM), last + 1):
        parts += [f'<path d="M{x(second)} {TOP - 6}V{bottom}" stroke="{"#000" if second == 0 else "#ddd"}"/>',
                  text(x(second), bottom + 18, f'{second}' + ' s' * (second == 0), 'text-anchor="middle"')]
    for number, (who, one) in enumerate(shown.items()):
        y = TOP + ROW * number
        parts.append(text(LEFT, y + 14, f'{CONTENDERS[who].label}: cut off for {one["outage"]:.2f} s, '
                          f'address back after {one["egress"]:.2f} s',
                          'font-size="15" stroke="white" stroke-width="4" paint-order="stroke"'))
        for start, end, way in one['strip']:
            if end >= FROM:
                parts.append(f'<path d="M{x(start)} {y + 36}H{x(end + 0.01)}" stroke="{WAYS[way][0]}" stroke-width='
                             f'"{WAYS[way][1]}" stroke-dasharray="{0.07 * scale:.3f} {0.03 * scale:.3f}"/>')
    PICTURE.write_text('\n'.join([*parts, '</svg>']) + '\n')
