"""Bad pictures and sets of few (cases 33 to 41); each picture of the corpus is a test of its own beside this folder."""

import pytest

from . import pictures


def test_random_damage_is_never_a_hang_a_crash_or_an_error_without_a_path(tmp_path, hold):
    """Case 35."""
    tally = hold(pictures.damaged_pictures(tmp_path, seed=1, pictures=300))
    assert tally.counts["errors"] > 100


def test_two_processes_pass_over_the_same_pictures_as_one(tmp_path, hold):
    """Case 35."""
    assert hold(pictures.passed_over_by_two(tmp_path)).counts["bad pictures"] == 14


def test_a_broken_source_ends_two_processes_with_one_message(tmp_path, hold):
    """Case 35."""
    hold(pictures.a_broken_source_on_two(tmp_path))


def test_two_processes_train_on_one_picture(tmp_path, hold):
    """Case 41."""
    hold(pictures.fewer_pictures_than_processes(tmp_path))


@pytest.mark.slow
def test_the_corpus_comes_to_what_it_should(tmp_path, hold):
    """Cases 33 to 38."""
    tally = hold(pictures.bad_pictures(tmp_path))
    assert (tally.counts["hangs"], tally.counts["crashes"], tally.counts["errors without a path"]) == (0, 0, 0)
