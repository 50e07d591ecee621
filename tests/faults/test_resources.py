"""Bad numbers, too little memory, lost processes (cases 43 to 46)."""

import pytest

from . import resources


def test_a_number_that_is_not_finite_stops_before_the_update_and_names_the_rows(tmp_path, hold):
    """Case 44."""
    hold(resources.bad_numbers(tmp_path))


def test_a_bad_number_on_the_second_of_two_ranks_ends_both_and_is_named(tmp_path, hold):
    """Case 44."""
    hold(resources.bad_numbers_on_one_of_two_ranks(tmp_path))


def test_too_little_memory_halves_the_device_batch_and_keeps_the_step(tmp_path, hold):
    """Case 45."""
    hold(resources.too_little_memory(tmp_path))


def test_a_killed_loader_process_is_an_error_within_ten_seconds(tmp_path, hold):
    """Case 43: in an evaluation and in a step."""
    hold(resources.killed_loaders(tmp_path, kills=2))


@pytest.mark.parametrize("kind", ["killed", "hanging"])
def test_the_other_of_two_ranks_notices_the_loss_and_ends(kind, tmp_path, hold):
    """Case 46."""
    hold(resources.a_lost_rank_without_a_launcher(tmp_path, kind=kind))


def test_accelerate_launch_ends_and_names_a_rank_that_was_killed(tmp_path, hold):
    """Case 46."""
    hold(resources.a_lost_rank(tmp_path, kind="killed"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raising", "hanging"])
def test_accelerate_launch_ends_with_the_traceback_of_a_rank_that_raises_or_hangs(kind, tmp_path, hold):
    """Case 46."""
    hold(resources.a_lost_rank(tmp_path, kind=kind))
