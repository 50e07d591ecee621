"""Shared by the tests of faults: a finished run that kept all its checkpoints, and how a tally is judged."""

import tempfile
from pathlib import Path

import pytest

from . import harness


@pytest.fixture(scope="session")
def every_step(tmp_path_factory):
    """A finished run of 6 steps with the checkpoint of each, and its recipe; not to be changed."""
    folder = tmp_path_factory.mktemp("every-step")
    recipe = harness.small(checkpoint_limit=9)
    return harness.finish(folder, recipe).output, recipe


@pytest.fixture
def open_folder():
    """A folder that every user of the machine may enter."""
    with tempfile.TemporaryDirectory(prefix="vit-hf-faults-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def hold():
    """Give a function that fails with all problems of a tally."""

    def check(tally: harness.Tally) -> harness.Tally:
        assert not tally.problems, "\n".join(tally.problems)
        return tally

    return check
