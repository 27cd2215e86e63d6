"""Proof that the one that serves forwards, with real packets: what a lost probe leads to, and what it does not.

The full connection table is missing here: the kernel lets nobody lower nf_conntrack_max in a network namespace but the
first, and a table that is filled up instead would be that of the whole machine.
"""
from __future__ import annotations

import contextlib
import time
from typing import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.network import ECHO
from tests.test_failover import SETTINGS, called, nobody_was_stopped, serves, serving_pair

pytestmark = pytest.mark.lab

# Something that no program which looks at rules and settings is sure about.
HIDDEN = 'table inet hidden { chain forward { type filter hook forward priority 0; ether type ip drop; }; }'


@contextlib.contextmanager
def probed_pair(python: str) -> Iterator[Lab]:
    """Open a lab in which the primary serves, and the secondary has had an answer through it."""
    with serving_pair(python, settings={**SETTINGS, 'PROBE_ADDRESS': ECHO}) as lab:
        lab.wait_until(lab.probes, 'a probe has come through')
        yield lab


@pytest.mark.core
def test_a_holder_that_answers_pings_and_forwards_nothing_is_replaced_and_not_restarted(python: str) -> None:
    with probed_pair(python) as lab:
        since = time.monotonic()

        lab.primary.node.run('nft', HIDDEN)

        lab.wait_until(lambda: lab.holds(lab.secondary), 'the secondary takes over')
        serves(lab, lab.secondary)
        lab.stays(lambda: lab.holds(lab.secondary) and nobody_was_stopped(lab), 2, 'it stays so')
        assert called(lab, lab.primary, since) == []
        assert lab.secondary.log.count('restarting nobody') == 1


def test_a_primary_that_boots_without_its_rules_leaves_the_secondary_serving(python: str) -> None:
    with probed_pair(python) as lab:
        rules = lab.primary.node.run('nft', 'list', 'ruleset').stdout
        with lab.ec2.lock:  # before anybody starts it
            lab.ec2.stop('primary')
            lab.primary.node.run('nft', 'flush', 'ruleset')
        serves(lab, lab.secondary)
        since = time.monotonic()

        lab.wait_until(lambda: 'cannot NAT' in lab.primary.log, 'the primary is back and says what it lacks')

        lab.stays(lambda: lab.holds(lab.secondary), 6, 'the secondary serves on')
        assert called(lab, lab.primary, since) == [] and nobody_was_stopped(lab)
        assert lab.traffic.lost(since) == 0

        lab.primary.node.run('nft', '-f', '-', input=rules)
        lab.primary.look()

        serves(lab, lab.primary)
