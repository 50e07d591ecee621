"""A run that is asked to stop (cases 11 to 14)."""

from . import preemption


def test_random_requests_lose_no_step_and_change_nothing(tmp_path, hold):
    """Cases 11 and 14."""
    tally = hold(preemption.random_requests(tmp_path, seed=0, requests=3))
    assert tally.counts["stopped"] == 3
    assert tally.counts["steps lost"] == 0


def test_requests_in_a_step_an_evaluation_and_a_save_are_followed_at_the_next_boundary(tmp_path, hold):
    """Cases 12 and 14."""
    hold(preemption.named_requests(tmp_path))


def test_a_request_that_is_not_waited_for_leaves_a_whole_checkpoint(tmp_path, hold):
    """Cases 12 and 14."""
    hold(preemption.requests_that_are_not_waited_for(tmp_path, points=(25,)))


def test_a_request_to_the_whole_group_does_not_kill_the_loader_processes(tmp_path, hold):
    """Cases 11 and 14."""
    hold(preemption.requests_to_the_whole_group(tmp_path, steps=(3,)))


def test_a_request_before_or_after_the_steps_leaves_no_empty_checkpoint(tmp_path, hold):
    """Cases 11 and 14."""
    hold(preemption.a_request_outside_the_steps(tmp_path))


def test_a_request_to_one_of_two_ranks_stops_both_after_the_same_step(tmp_path, hold):
    """Case 13."""
    hold(preemption.a_request_to_one_of_two_ranks(tmp_path, in_an_evaluation=False))
