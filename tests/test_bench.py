"""The figures in README.adoc are those of the stored run, and the report says what the results say."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.bench import report
from tests.bench.__main__ import EXPECTED, RESULTS, plan
from tests.bench.measure import MEASUREMENTS, perform

STORED = RESULTS / 'full.jsonl'
README = Path(__file__).parents[1] / 'README.adoc'


@pytest.mark.skipif(not STORED.exists(), reason='no full run is stored')
def test_the_readme_shows_the_stored_results() -> None:
    assert report.section(report.read(STORED)) in README.read_text()
    assert report.page(report.read(STORED)) == report.PAGE.read_text()


@pytest.mark.skipif(not STORED.exists(), reason='no full run is stored')
def test_the_picture_shows_the_stored_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = report.PICTURE.read_text()
    monkeypatch.setattr(report, 'PICTURE', tmp_path / 'drawn.svg')

    report.draw(report.read(STORED))

    assert report.PICTURE.read_text() == stored


def test_the_95_percent_of_twenty_is_the_last_but_one() -> None:
    assert report.percentile(range(1, 21), 95) == 19
    assert report.percentile([7.0], 95) == 7.0


def test_the_report_compares_with_rival_and_floor() -> None:
    records = [{'what': 'crash', 'who': who, 'latency': 0.5, 'tables': 1, 'outage': outage, 'egress': outage + 1,
                'calls_before': 1, 'calls': 3, 'memory': 60.0, 'claim': 0.2, 'gap': 0.012, 'strip': [], 'silence': 3.75}
               for who, outage in (('default', 4.2), ('reference', 8.4))]
    head = dict.fromkeys(('date', 'seed', 'jobs', 'machine', 'kernel', 'python', 'boto3', 'aws', 'keepalived'), '?')

    text = report.page([{'what': 'run', **head}, *records])

    assert "|0.5 s |Amazon's nat_monitor.sh |1 |8.40 |8.40 |8.40 |9.40 |9.40 |9.40 |2.00 |2.10" in text


def test_the_floor_includes_the_wait_for_an_answer_that_takes_longer_than_the_pings() -> None:
    records = [{'who': 'default', 'silence': 3.25, 'latency': latency} for latency in (0.5, 2.0)]

    assert [report.floor(one) for one in records] == [3.25 + 0.25, 3.25 + 1.0 + 1.0]


def test_the_report_tells_which_connections_survive() -> None:
    one = {'what': 'connections', 'who': 'default', 'count': 20, 'crash': {'client': [20, 6.5], 'server': [0, None]}}

    lines = report.kept([one, {**one, 'crash': {'client': [19, 6.7], 'server': [0, None]}}])

    assert '|the holder crashes |the private host sends |39 of 40, 6.60 s |– |–' in lines
    assert '|the holder crashes |the server sends |0 of 40 |– |–' in lines


def test_each_target_is_reached_or_missed(capsys: pytest.CaptureFixture[str]) -> None:
    records = [{'what': 'again', 'who': 'default', 'lag': lag, 'os_shutdown': 0.0, 'seconds': seconds}
               for lag, seconds in ((60.0, 191.0), (120.0, 260.0))]

    assert report.targets(records) == 1

    reached, missed = (line.split()[0] for line in capsys.readouterr().out.splitlines() if 'redundant' in line)
    assert (reached, missed) == ('reached', 'MISSED')


def test_a_full_run_fits_in_50_minutes_and_a_first_look_in_5() -> None:
    for full, minutes, limit in ((True, 5.0, 42), (False, 1.0, 4)):
        tasks = plan(full, minutes, 1, [])
        assert EXPECTED.keys() <= {task.what for task in tasks}
        for long, jobs in ((True, 4), (False, 2)):
            assert sum(task.seconds for task in tasks if task.long is long) / jobs < 60 * limit


def test_a_measurement_that_fails_or_hangs_is_a_record_and_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    hung: List[float] = []

    def hang() -> Dict[str, Any]:
        hung.append(time.monotonic())
        time.sleep(60 if len(hung) == 1 else 0)
        return {'what': 'hang'}

    monkeypatch.setitem(MEASUREMENTS, 'hang', hang)

    failure, record = perform('hang', {}, 1)

    assert (failure['what'], failure['of'], failure['why']) == ('failure', 'hang', 'TimeoutError: it took too long')
    assert record == {'what': 'hang'}
