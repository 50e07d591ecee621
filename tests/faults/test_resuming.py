"""A run that goes on where it stopped (cases 15 to 23)."""

import pytest

from . import resuming


@pytest.mark.parametrize(
    "mix",
    ["everything, two loader processes", "frozen backbone", "accumulation 5, an epoch ends inside a step", "Muon"],
)
def test_a_resumed_run_equals_one_that_was_not_stopped(mix, tmp_path, hold):
    """Cases 15, 16 and 22: after one of the steps; the command tries all, and all mixes."""
    hold(resuming.resume_at_every_step(tmp_path, mix=mix, steps=(3,)))


def test_evaluating_in_between_changes_no_weight(tmp_path, hold):
    """Case 17."""
    hold(resuming.evaluation_in_between(tmp_path))


def test_a_finished_run_says_so_and_stays_as_it_is(tmp_path, hold):
    """Case 18."""
    from .harness import finish, small

    recipe = small(optimization__max_steps=2)
    hold(resuming.already_finished(finish(tmp_path, recipe).output, recipe))


def test_another_number_of_processes_takes_the_same_pictures_and_learns_the_same(tmp_path, hold):
    """Case 19."""
    hold(resuming.other_numbers_of_processes(tmp_path))


def test_another_run_is_refused_with_a_list_of_what_differs(tmp_path, hold):
    """Case 20."""
    hold(resuming.refused(tmp_path))


def test_a_named_checkpoint_with_a_damaged_file_is_an_error(every_step, tmp_path, hold):
    """Case 21."""
    hold(resuming.a_damaged_state(*every_step[:1], tmp_path, every_step[1]))


def test_the_saved_model_has_the_best_recorded_score(tmp_path, hold):
    """Case 23."""
    hold(resuming.the_best_model(tmp_path))
