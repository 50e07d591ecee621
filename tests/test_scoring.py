"""Scoring: each sample counts once and in its place, and what is wrong with the scores is said, not averaged."""

from types import SimpleNamespace

import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from vit_hf import VitHfForImageClassification, VitHfImageProcessor
from vit_hf.evaluation.scoring import Scores, align_labels, classify, score

CLASSES = 7


class Reader(nn.Module):
    """A classifier whose logits are the first pixels of the picture; remembers the mode it ran in."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.modes = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return SimpleNamespace(logits=self.dropout(pixel_values.flatten(1)[:, :CLASSES]))


class Duplicating(Accelerator):
    """Stands for three processes: every gathered batch comes with samples twice and out of order."""

    def gather(self, tensors):
        return tuple(torch.cat([tensor.flip(0), tensor, tensor[:1]]) for tensor in tensors)


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def loader(count: int, *, rows=None, batch_size: int = 4) -> DataLoader:
    """Return batches of noise pictures whose first pixels are the logits that `expected` returns."""
    pixels = torch.randn(count, 3, 2, 4, generator=torch.Generator().manual_seed(count))
    labels = torch.arange(count) % CLASSES
    samples = [
        {"pixel_values": pixels[row], "labels": labels[row], "rows": torch.tensor(row)}
        for row in (range(count) if rows is None else rows)
    ]
    return DataLoader(samples, batch_size=batch_size)


def expected(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randn(count, 3, 2, 4, generator=torch.Generator().manual_seed(count))
    return pixels.flatten(1)[:, :CLASSES], torch.arange(count) % CLASSES


# ---------------------------------------------------------------------------------------------- numbers
def test_measured_numbers_equal_counts_by_hand():
    logits = torch.tensor([[2.0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5]])
    labels = torch.tensor([0, 0, 1, 0])  # right, place 6 of 6, place 5, right
    measured = Scores(logits, labels).measure()
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    loss = -probabilities[torch.arange(4), labels].log().mean()
    assert measured == {"top1": 0.5, "top5": 0.75, "loss": pytest.approx(loss.item(), rel=1e-6), "n": 4}


def test_logits_of_any_size_have_a_finite_loss():
    assert Scores(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([0, 0])).measure()["loss"] == 5000.0


# ---------------------------------------------------------------------------------------------- each sample once
@pytest.mark.parametrize("kind", [Accelerator, Duplicating])
@pytest.mark.parametrize("num_samples", [10, None])
def test_every_sample_is_scored_once_and_in_the_order_of_the_split(kind, num_samples):
    found = score(Reader(), loader(10), kind(cpu=True), num_samples=num_samples)
    logits, labels = expected(10)
    assert torch.equal(found.logits, logits)
    assert torch.equal(found.labels, labels)
    assert found.logits.dtype == torch.float32


def test_samples_that_come_in_another_order_are_put_in_their_places(accelerator):
    found = score(Reader(), loader(10, rows=[7, 3, 9, 0, 1, 8, 2, 6, 5, 4]), accelerator, num_samples=10)
    assert torch.equal(found.logits, expected(10)[0])


@pytest.mark.parametrize(
    ("rows", "num_samples", "found"), [([0, 1, 3], 4, 3), ([0, 1, 2], 4, 3), ([0, 1, 2], 2, 3), ([1, 2], None, 2)]
)
def test_missing_or_surplus_rows_are_an_error(accelerator, rows, num_samples, found):
    wanted = 2 if num_samples is None else num_samples
    with pytest.raises(RuntimeError, match=f"scored {found} different rows of a split of {wanted}; expected each row"):
        score(Reader(), loader(4, rows=rows), accelerator, num_samples=num_samples)


def test_an_empty_split_is_an_error(accelerator):
    with pytest.raises(RuntimeError, match="the split is empty; expected at least 1 sample"):
        score(Reader(), [], accelerator, num_samples=None)


def test_progress_counts_the_samples(accelerator):
    counts = []
    score(Reader(), loader(10), accelerator, num_samples=10, on_batch=counts.append)
    assert counts == [4, 4, 2]


# ---------------------------------------------------------------------------------------------- what can go wrong
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_name_the_row(accelerator, bad):
    class Broken(Reader):
        def forward(self, pixel_values):
            output = super().forward(pixel_values)
            output.logits[expected(10)[0][6].eq(output.logits).all(dim=1)] = bad
            return output

    with pytest.raises(FloatingPointError, match="the scores of row 6 are not finite"):
        score(Broken(), loader(10), accelerator, num_samples=10)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_scored_without_dropout_or_gradients_and_gets_its_mode_back(accelerator, training):
    model = Reader().train(training)
    score(model, loader(10), accelerator, num_samples=10)
    assert set(model.modes) == {(False, False)}
    assert model.training is model.dropout.training is training
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------------------------------------- names
def test_labels_are_matched_by_name():
    labels = align_labels(torch.tensor([0, 1, 2, 0]), ("eel", "ant", "dog"), ("ant", "bee", "dog", "eel"))
    assert labels.tolist() == [3, 0, 2, 3]


def test_equal_names_leave_the_labels_as_they_are():
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(align_labels(labels, ("a", "b", "c"), ("a", "b", "c")), labels)


def test_a_class_that_the_model_does_not_know_is_an_error():
    expectation = r"data has 3 classes, 2 of them unknown to the model \(first: 'yak'; the model knows 2, first 'ant'\)"
    with pytest.raises(ValueError, match=expectation):
        align_labels(torch.tensor([0]), ("ant", "yak", "zebra"), ("ant", "bee"))


# ---------------------------------------------------------------------------------------------- classify
@pytest.fixture(scope="module")
def classifier(tiny, randomise):
    config = tiny(num_labels=None, id2label=dict(enumerate(("ant", "bee", "cat", "dog", "eel"))))
    return randomise(VitHfForImageClassification(config)), VitHfImageProcessor(size={"height": 16, "width": 24})


def pictures() -> list[PIL.Image.Image]:
    noise = torch.randint(256, (5, 20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    modes = ["RGB", "L", "P", "RGBA", "1"]
    return [PIL.Image.fromarray(pixels.numpy()).convert(mode) for pixels, mode in zip(noise, modes, strict=True)]


@pytest.mark.parametrize("batch_size", [2, 32])
def test_probabilities_are_the_softmax_of_the_logits_the_likeliest_first(classifier, batch_size):
    model, processor = classifier
    answers = classify(model, processor, pictures(), top_k=5, batch_size=batch_size)
    with torch.no_grad():
        probabilities = model(processor(pictures(), return_tensors="pt")["pixel_values"]).logits.softmax(dim=-1)
    assert len(answers) == 5
    for answer, wanted in zip(answers, probabilities, strict=True):
        values = [probability for _, probability in answer]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-6)
        found = torch.tensor([dict(answer)[name] for name in ("ant", "bee", "cat", "dog", "eel")])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)  # batches of another size sum otherwise


@pytest.mark.parametrize(("top_k", "length"), [(1, 1), (3, 3), (50, 5)])
def test_so_many_classes_are_named_as_asked_for_or_all(classifier, top_k, length):
    every = classify(*classifier, pictures(), top_k=5)
    assert classify(*classifier, pictures(), top_k=top_k) == [answer[:length] for answer in every]


def test_no_pictures_have_no_answers(classifier):
    assert classify(*classifier, []) == []
