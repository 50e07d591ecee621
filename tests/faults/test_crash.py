"""A run that is killed, whose disk is full or whose files are damaged (cases 1 to 10 and 21)."""

import functools
import os
import stat
from pathlib import Path

import pytest
import torch

from . import crash, trial
from .harness import finish, small


def test_random_kills_lose_nothing_and_change_nothing(tmp_path, hold):
    """Cases 1 and 4."""
    tally = hold(crash.random_kills(tmp_path, seed=0, kills=5))
    assert tally.counts["kills"] == 5


@pytest.mark.parametrize("phase", ["save", "evaluation", "end"])
def test_a_kill_at_a_named_point_leaves_whole_folders_and_the_same_result(phase, tmp_path, hold):
    """Cases 2 and 3: one point in fifteen; the command tries all."""
    tally = hold(crash.kills_at_points(tmp_path, phase=phase, every=15))
    assert tally.counts["kills"] >= 2


def test_files_are_forced_to_the_disk_before_they_get_their_name_and_the_old_goes_after(tmp_path):
    """Case 1 for a power cut: fsync of each file and both folders, rename, fsync of the parent, then rotation."""
    names = crash.points_of(tmp_path, "save")
    renamed = names.index("os.rename new")
    files = sum(1 for path in (tmp_path / "run" / "checkpoints" / "step-00000003").rglob("*"))
    assert names[renamed - files - 1 : renamed] == ["fsync"] * (files + 1)
    assert names[renamed + 1] == "fsync"
    assert not [name for name in names[: renamed + 2] if name.startswith("os.remove")]
    assert [name for name in names[renamed + 2 :] if name.startswith("os.rename step-")]


def test_a_damaged_newest_checkpoint_is_found_and_the_one_before_it_is_taken(every_step, tmp_path, hold):
    """Cases 6 and 21: a bit, the end, or the whole of each file."""
    assert hold(crash.damaged_files(every_step[0], tmp_path, seed=0, rounds=1)).counts["damaged files"] >= 30


def test_a_run_goes_on_from_before_a_damaged_checkpoint_names_it_and_ends_the_same(every_step, tmp_path):
    """Case 6."""
    import random

    from .harness import checkpoint_path, copy_run, difference

    run, recipe = every_step
    copy_run(run, tmp_path / "run", last_step=4)
    damaged = checkpoint_path(tmp_path / "run", 4) / "training" / "optimizer.safetensors"
    crash.damage(damaged, "flip", random.Random(0))
    session = finish(tmp_path, recipe)
    assert f"{damaged} has another SHA-256 than its manifest says: the checkpoint before it is taken" in session.log
    assert "resumed after step 3" in session.log
    assert difference(run, tmp_path / "run") == 0


def test_a_damaged_checkpoint_in_front_never_outlives_what_is_saved(tmp_path, hold):
    """Cases 4 and 6."""
    hold(crash.a_damaged_checkpoint_in_front(tmp_path))


def test_no_whole_checkpoint_is_an_error(every_step, tmp_path, hold):
    """Case 6."""
    hold(crash.all_damaged(every_step[0], tmp_path))


def test_a_full_disk_is_an_error_with_bytes_and_the_run_goes_on_later(tmp_path, hold):
    """Case 7."""
    assert hold(crash.full_disks(tmp_path, seed=0, budgets=2)).counts["older checkpoints changed"] == 0


def test_a_second_writer_refuses_at_once_and_names_the_first(tmp_path, hold):
    """Case 9."""
    hold(crash.two_writers(tmp_path))


def test_a_run_killed_with_its_loader_processes_is_resumed_at_once(tmp_path, hold):
    """Cases 5 and 9."""
    hold(crash.killed_with_workers(tmp_path))


def test_left_over_folders_are_removed_only_if_their_writer_is_dead(tmp_path, hold):
    """Case 5."""
    hold(crash.left_over_folders(tmp_path))


def test_a_step_folder_that_is_there_is_replaced_whole(tmp_path, hold):
    """Case 10."""
    hold(crash.a_step_that_is_there_already(tmp_path, points=(24, 33)))


def test_an_output_that_is_a_file_or_vanishes_is_an_error(tmp_path, hold):
    """Case 8."""
    hold(crash.places_that_cannot_be_written(tmp_path))


def test_a_read_only_output_is_an_error_before_a_step_is_taken(open_folder, hold):
    """Case 8."""
    closed = [path for path in Path(torch.__file__).parents if not path.stat().st_mode & stat.S_IXOTH]
    if closed and os.geteuid() == 0:
        pytest.skip(f"without the rights of root nothing can be imported from {closed[0]}")
    hold(crash.read_only(open_folder))


def test_the_suite_sees_a_save_that_is_not_atomic(tmp_path):
    """The proof that the cases above can fail: a save that writes into its place is caught."""
    recipe = small(checkpoint_limit=1)
    session = crash.Session(
        tmp_path, recipe, trial.publish_in_place, functools.partial(trial.at_point, "save", 20, skip=1)
    )
    session.end()
    tally = crash.Tally()
    crash.check_what_is_left(session, tally, "not atomic")
    assert tally.counts["invalid"] == 1
