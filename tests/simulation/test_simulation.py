"""Some thousands of drawn schedules, and those that have shown a mistake of the monitor."""
from __future__ import annotations

import os

import pytest

from .cloud import Conditions
from .mutations import MISTAKES, mistaken
from .pair import Broken, Fault, Pace, Schedule, World
from .search import search_together, tell


def holds(schedule: Schedule) -> None:
    try:
        World(schedule).run()
    except Broken:
        pytest.fail(tell(schedule))


@pytest.fixture
def schedules(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption('--schedules'))


def test_drawn_schedules_break_no_invariant(schedules: int) -> None:
    found = search_together(seed=1, count=schedules, jobs=min(2, os.cpu_count() or 1))
    assert not found.failure, found.failure
    assert found.runs >= 0.8 * schedules


@pytest.mark.parametrize('generator, one_in', [('contests', 80), ('darkness', 250), ('crash_loops', 400)])
def test_hours_of_trouble_break_no_invariant(schedules: int, generator: str, one_in: int) -> None:
    found = search_together(seed=1, count=schedules // one_in, jobs=min(2, os.cpu_count() or 1), generator=generator)
    assert not found.failure, found.failure


@pytest.mark.parametrize('name', MISTAKES)
def test_the_mistakes_for_the_soak_can_still_be_made(name: str) -> None:
    mistaken(name)


def test_a_schedule_gives_the_same_time_line_each_time() -> None:
    schedule = Schedule((Fault(100, 'crash'), Fault(110, 'loss', 'secondary', 90, 30),
                         Fault(300, 'suspend', 'both', 20)))
    assert tell(schedule) == tell(schedule)


def test_a_peer_that_fails_again_soon_after_its_fail_back_is_taken_over_at_once() -> None:
    """The secondary has started the peer a short while ago, and goes by what EC2 tells."""
    holds(Schedule((Fault(0, 'crash'),), Conditions(address=False, stop_takes=5, boot_takes=15, monitor_starts=15)))


def test_the_memory_of_who_holds_gives_way_to_what_ec2_tells() -> None:
    """A secondary that was started anew while it held has moved nothing itself."""
    holds(Schedule((Fault(2, 'late metadata', 'primary', 18), Fault(2, 'crash'),
                    Fault(6, 'late metadata', 'secondary', 1)),
                   Conditions(address=False, stop_takes=20, boot_takes=15, monitor_starts=1)))


def test_the_peer_is_restarted_though_nothing_is_left_to_take_over() -> None:
    """The only route has been given to something outside the pair."""
    holds(Schedule((Fault(0, 'crash'), Fault(0, 'move route', 'primary', 1, 3)), Conditions(address=False)))


def test_an_answer_from_before_a_suspension_starts_nobody() -> None:
    holds(Schedule((Fault(2, 'crash'), Fault(26, 'suspend', 'secondary', 11)),
                   Conditions(address=False, stop_takes=5, boot_takes=15, monitor_starts=1)))


def test_two_that_may_not_move_an_address_which_nobody_has_do_not_contend_for_the_route() -> None:
    holds(Schedule((Fault(50, 'forbid', 'both', 400, 5), Fault(60, 'move address', 'primary', 1, 2)), Conditions()))


@pytest.mark.parametrize('schedule', [
    Schedule((Fault(67, 'forbid', 'secondary', 800, 4), Fault(97, 'block ping', 'secondary', 200, 5)), Conditions()),
    Schedule((Fault(173, 'forbid', 'secondary', 100, 6), Fault(200, 'cut peer', 'primary', 200, 39),
              Fault(208, 'move address', 'secondary', 200, 50)), Conditions(tables=2)),
    Schedule((Fault(117, 'forbid', 'secondary', 400, 5), Fault(298, 'block ping', 'both', 200, 54),
              Fault(332, 'move route', 'both', 60, 3)), Conditions()),
    Schedule((Fault(54, 'move route', 'secondary', 60, 15), Fault(66, 'cut peer', 'secondary', 200, 47),
              Fault(170, 'forbid', 'both', 100, 8)), Conditions()),
    Schedule((Fault(128, 'forbid', 'secondary', 400, 8), Fault(175, 'forbid', 'both', 400, 4),
              Fault(209, 'move route', 'secondary', 200, 41), Fault(225, 'crash', 'primary', 20, 48)),
             Conditions(tables=2))],
    ids=['no ReplaceRoute', 'no StopInstances', 'no AssociateAddress', 'no route to move', 'neither may move a route'])
def test_two_that_live_and_may_not_do_all_do_not_contend(schedule: Schedule) -> None:
    holds(schedule)


def test_a_take_over_is_not_resumed_against_a_peer_that_is_back() -> None:
    """EC2 has lost calls and answers of the take-over; meanwhile the peer boots, and takes everything back."""
    holds(Schedule((Fault(302, 'lossy', 'secondary', 36, 53), Fault(309, 'late metadata', 'primary', 1),
                    Fault(341, 'suspend', 'secondary', 26)),
                   Conditions(tables=2, address=False, effect_lag=2, stop_takes=5, boot_takes=25, monitor_starts=1),
                   119))


def test_a_primary_that_lost_the_route_long_ago_takes_over() -> None:
    """What it had claimed at its start says nothing about this silence."""
    holds(Schedule((Fault(27, 'move route', 'primary', 1, 2),), Conditions(
        latency=1.5, effect_lag=3, stop_takes=5, boot_takes=15, monitor_starts=1)))


def test_two_that_hold_nothing_do_not_stop_each_other() -> None:
    """The only route is at something outside the pair, so that EC2 cannot tell who of the two may stop the other."""
    for at in range(310, 314):
        holds(Schedule((Fault(161, 'move route', 'primary', 1, 3), Fault(at, 'cut peer', 'primary', 13)),
                       Conditions(address=False, latency=0.5, effect_lag=3), 737))


def test_a_peer_is_restarted_while_a_claim_keeps_failing() -> None:
    """The primary is not allowed to move the route, and the peer that it has stopped must not stay stopped."""
    holds(Schedule((Fault(312, 'cut peer', 'primary', 7), Fault(312, 'forbid', 'primary', 50, 13)),
                   Conditions(address=False, read_lag=3, stop_takes=5, boot_takes=15, monitor_starts=1)))


def test_a_take_over_does_not_outlast_a_suspension() -> None:
    """While the secondary is suspended, the peer comes back, takes everything back, and dies again."""
    holds(Schedule((Fault(2, 'late metadata', 'primary', 1), Fault(13, 'suspend', 'secondary', 126)),
                   Conditions(address=False, stop_takes=5, boot_takes=15, monitor_starts=1)))


def test_a_start_claim_that_cannot_be_completed_does_not_contend_for_the_rest() -> None:
    """The primary may not move the address, and the secondary brings together what that leaves apart."""
    holds(Schedule((Fault(20, 'forbid', 'primary', 900, 5), Fault(60, 'crash')), Conditions()))


def test_a_peer_that_has_been_started_and_passes_its_checks_is_left_alone_though_it_was_not_heard() -> None:
    holds(Schedule((Fault(2, 'cut peer', 'primary', 129), Fault(2, 'kill', lasts=1), Fault(2, 'EC2 down', lasts=110),
                    Fault(21, 'kill', 'secondary', 1)),
                   Conditions(address=False, stop_takes=5, boot_takes=15, monitor_starts=1)))


def test_two_that_live_and_cannot_hear_each_other_do_not_contend() -> None:
    """EC2 refuses the stop of the primary, which stands aside in vain, takes over, and loses all again."""
    holds(Schedule((Fault(2, 'cut peer', lasts=133), Fault(2, 'throttle', lasts=66)),
                   Conditions(address=False, stop_takes=5, boot_takes=15, monitor_starts=1)))


QUICK = Pace(3, 0.2, 0.2)
LAGS = Conditions(read_lag=3, effect_lag=3)
CUTS = tuple(Fault(100 + 16 * n, 'cut peer', lasts=1.4) for n in range(6))
LATER_CUTS = tuple(Fault(500 + 20 * n, 'cut peer', lasts=4.5) for n in range(4))
DEAF = Fault(200, 'cut peer', lasts=10800)


@pytest.mark.parametrize('schedule', [
    Schedule(CUTS, pace=QUICK),
    Schedule((Fault(100, 'crash'), *LATER_CUTS)),
    Schedule(tuple(Fault(100 + 90 * n, 'cut peer', lasts=7.5 + n) for n in range(4)), LAGS, phase=0.5),
    Schedule((Fault(100, 'reboot', 'secondary'), Fault(300, 'reboot', 'primary')), Conditions(boot_takes=30)),
    Schedule((Fault(100, 'cut off', 'primary', 90), Fault(400, 'cut off', 'secondary', 90))),
    Schedule((Fault(100, 'suspend', 'both', 120),)),
    Schedule((Fault(100, 'suspend', 'both', 120), Fault(160, 'crash')))],
    ids=['short cuts', 'cuts after a failover', 'long cuts out of phase, greatest lags', 'reboots', 'isolated in turn',
         'both suspended', 'both suspended, and one dies'])
def test_nobody_is_stopped_for_a_hiccup(schedule: Schedule) -> None:
    """Silence alone stops nobody before WAIT_FOR_INSTANCE_STOP, and misses from before a suspension do not count."""
    holds(schedule)


@pytest.mark.parametrize('schedule', [
    Schedule((DEAF,), LAGS, bound='contest'),
    Schedule((DEAF, Fault(190, 'forbid', 'both', 11000, 6)), bound='contest'),
    Schedule((DEAF, Fault(190, 'forbid', 'both', 11000, 0)), bound='contest'),
    Schedule((DEAF, Fault(190, 'forbid', 'both', 11000, 6), Fault(195, 'forbid', 'secondary', 11000, 5)),
             Conditions(tables=2), bound='contest'),
    Schedule((Fault(200, 'block ping', 'secondary', 10800), Fault(210, 'EC2 down', 'both', 40)), LAGS,
             bound='contest')],
    ids=['all is allowed', 'no StopInstances', 'no DescribeInstanceStatus', 'nor an address', 'one is deaf, no EC2'])
def test_two_that_live_and_cannot_hear_each_other_settle_for_hours(schedule: Schedule) -> None:
    """Who has lost what it took in a silence stands aside for an hour: without that they pass the table to and fro."""
    holds(schedule)


@pytest.mark.parametrize('how', range(4))
def test_what_is_lost_or_added_moves_nothing_else(how: int) -> None:
    """Only an instance that has a part claims what lies apart at the other one, and the heir is given time first."""
    for fault in (Fault(100, 'delete route', 'primary', 1, how), Fault(100, 'release address', 'primary', 1, how),
                  Fault(100, 'add table', ('primary', 'secondary')[how % 2], 100, how)):
        holds(Schedule((fault,), Conditions(tables=1 + how // 2, read_lag=how), phase=how / 4))


def test_a_secondary_that_cannot_nat_takes_nothing_in_a_hiccup() -> None:
    """It knows that a route to it would serve nobody."""
    holds(Schedule((Fault(90, 'forwarding lost', 'secondary', 600, 0), Fault(200, 'cut peer', lasts=4.5))))


def test_a_primary_that_boots_without_forwarding_leaves_the_secondary_serving() -> None:
    holds(Schedule((Fault(100, 'no forwarding', 'primary', 400),)))


@pytest.mark.parametrize('schedule', [
    Schedule((Fault(200, 'forwarding lost', 'primary', 300, 0),), probes=True),
    Schedule((Fault(200, 'forwarding lost', 'primary', 300, 1),), LAGS, probes=True),
    Schedule((Fault(200, 'forwarding lost', 'primary', 300, 1),), Conditions(frames=1), probes=True),
    Schedule((Fault(200, 'forwarding lost', 'primary', 300, 1),), Conditions(frames=2), probes=True),
    Schedule((Fault(200, 'target dead', lasts=300),), probes=True),
    Schedule((Fault(200, 'forwarding lost', 'both', 10800, 1),), probes=True, bound='contest'),
    Schedule((Fault(200, 'forwarding lost', 'primary', 100, 1), Fault(350, 'forwarding lost', 'secondary', 100, 1),
              Fault(500, 'forwarding lost', 'primary', 100, 1)), probes=True),
    Schedule((Fault(150, 'loss', 'both', 300, 40),), probes=True)],
    ids=['noticed', 'unnoticed', 'frames lost', 'no neighbour', 'the target dead', 'both dark', 'in turn', 'loss'])
def test_one_that_does_not_forward_is_relieved_once_and_only_if_a_probe_can_show_it(schedule: Schedule) -> None:
    holds(schedule)


@pytest.mark.parametrize('schedule', [
    Schedule((Fault(200, 'maintenance', 'primary', 400), Fault(300, 'stop', 'primary'))),
    Schedule((Fault(200, 'maintenance', 'secondary', 400), Fault(300, 'crash', 'secondary'))),
    Schedule((Fault(200, 'maintenance', 'secondary', 400), Fault(300, 'crash', 'primary'))),
    Schedule((Fault(200, 'maintenance', 'both', 400), Fault(300, 'reboot', 'primary'))),
    Schedule((Fault(200, 'maintenance', 'primary', 400), Fault(300, 'reboot', 'primary')), fail_back=False)],
    ids=['stopped', 'it crashes', 'its peer crashes', 'both', 'no fail-back'])
def test_maintenance_is_respected(schedule: Schedule) -> None:
    """Who is worked on hands over and is left alone; it serves only where its peer is dead."""
    holds(schedule)


def test_a_primary_that_is_not_to_fail_back_takes_nothing_from_a_secondary_that_works() -> None:
    holds(Schedule((Fault(100, 'crash'), Fault(500, 'kill', lasts=5)), fail_back=False))
