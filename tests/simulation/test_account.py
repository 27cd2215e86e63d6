"""Pairs of one account that fail over together, with buckets as much smaller as they are fewer."""
from __future__ import annotations

import pytest

from .account import AFTER, BACK, BEFORE, LAGS, PAIRS, TARGET, Account


@pytest.mark.parametrize('lag', LAGS)
def test_pairs_of_one_account_that_fail_together_are_served_nearly_as_soon_as_its_buckets_allow(lag: int) -> None:
    account = Account(pairs=40, scale=40 / PAIRS, check_lag=lag).run()

    assert len(account.outages()) == 40 and account.best()[-1] > 60.0
    assert all(account.at(percent)[2] <= TARGET for percent in (50, 95, 100)), str(account)
    assert account.back() <= BACK
    assert account.mean(AFTER - 300, AFTER) < 1.3 * account.mean(-BEFORE, 0)


def test_a_call_without_a_token_is_refused_and_takes_none() -> None:
    account = Account(pairs=0)

    assert [account.admits('start_instances', {}) for _ in range(6)] == [True] * 5 + [False]
    account.hub.run(0.6)
    assert [account.admits('start_instances', {'DryRun': True}) for _ in range(2)] == [True, False]
