"""A Hub that fails (cases 47 to 52): the short ones of each kind are in tests/test_hub.py."""

import pytest

from . import hub


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [hub.passing_faults, hub.lasting_faults, hub.lost_answers, hub.refusals,
     hub.damaged_downloads, hub.round_trips, hub.what_leaves],
    ids=lambda case: case.__name__,
)  # fmt: skip
def test_a_hub_that_fails_costs_nothing_but_time(case, tmp_path, hold):
    assert sum(hold(case(tmp_path)).counts.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["status", "reset", "hang"])
def test_a_dead_hub_stops_no_run_and_changes_none(how, tmp_path, hold):
    assert hold(hub.runs_with_a_dead_hub(tmp_path, how=how)).counts["runs"] == 7
