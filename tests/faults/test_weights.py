"""Hostile and damaged model folders (cases 24 to 32)."""

import pytest

from . import weights


def test_every_flipped_bit_and_every_cut_is_found(tmp_path, hold):
    """Cases 24 and 25."""
    tally = hold(weights.flips_and_cuts(tmp_path, seed=1, flips=120, cuts=40))
    assert (tally.counts["flips"], tally.counts["cuts"], tally.counts["not found"]) == (120, 40, 0)


@pytest.mark.parametrize(
    "case", [weights.crafted_headers, weights.spoiled_tensors, weights.shard_indices, weights.manifests]
)
def test_a_hostile_file_is_one_clear_error(case, tmp_path, hold):
    """Cases 24, 26, 27, 29 and 32."""
    assert hold(case(tmp_path)).counts["refused"] >= 13


def test_no_pickle_is_ever_run(tmp_path, hold):
    """Case 28."""
    assert hold(weights.pickles(tmp_path)).counts["canaries"] == 0


@pytest.mark.parametrize("name", [*weights.BOMBS, *weights.TEXTS])
def test_an_impossible_config_names_its_field(name, tmp_path, hold):
    """Case 30, without a limit of memory."""
    model, tally = weights.make(tmp_path / "model"), weights.Tally()
    fields, words = weights.BOMBS.get(name, ({}, "config.json"))
    if name in weights.TEXTS:
        (model / "config.json").write_text(weights.TEXTS[name])
    else:
        weights.rewrite(model / "config.json", **fields)
    weights.refused(tally, name, lambda: weights.VitHfForImageClassification.from_pretrained(model), words)
    hold(tally)


@pytest.mark.parametrize("field", weights.WISHES)
def test_a_field_that_only_the_caller_may_set_is_refused_by_name(field, tmp_path, hold):
    """Case 31, in this process."""
    model, tally = weights.make(tmp_path / "model"), weights.Tally()
    weights.rewrite(model / "config.json", **{field: weights.WISHES[field]})
    for load in (weights.VitHfForImageClassification.from_pretrained, weights.AutoConfig.from_pretrained):
        weights.refused(tally, field, lambda load=load: load(model), field)
    hold(tally)


@pytest.mark.slow
def test_a_config_that_asks_for_too_much_fails_at_the_config(tmp_path, hold):
    """Case 30."""
    hold(weights.config_bombs(tmp_path))


@pytest.mark.slow
def test_a_config_that_asks_for_code_gets_none(tmp_path, hold):
    """Case 31."""
    assert hold(weights.config_wishes(tmp_path)).counts["canaries"] == 0
