"""The figures in README.adoc are those of the stored run, and a run makes every measurement."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.__main__ import RESULTS, plan
from tests.bench.measure import MEASUREMENTS

STORED = RESULTS / 'full.jsonl'


@pytest.mark.skipif(not STORED.exists(), reason='no full run is stored')
def test_readme_page_and_picture_show_the_stored_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, drawn = report.read(STORED), report.PICTURE.read_text()
    assert report.section(records) in report.README.read_text()
    assert report.page(records) == report.PAGE.read_text()
    monkeypatch.setattr(report, 'PICTURE', tmp_path / 'drawn.svg')

    report.draw(records)

    assert report.PICTURE.read_text() == drawn


@pytest.mark.parametrize('full', [True, False])
def test_every_measurement_is_made(full: bool) -> None:
    assert {what for what, _ in plan(full, [])} == MEASUREMENTS.keys()


def test_each_target_is_reached_or_missed(capsys: pytest.CaptureFixture[str]) -> None:
    records = [{'what': 'again', 'who': 'default', 'lag': lag, 'seconds': seconds}
               for lag, seconds in ((60.0, 191.0), (120.0, 260.0))]

    assert report.targets(records) == 1

    reached, missed = (line.split()[0] for line in capsys.readouterr().out.splitlines() if 'redundant' in line)
    assert (reached, missed) == ('reached', 'MISSED')
