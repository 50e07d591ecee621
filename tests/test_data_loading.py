"""Loading: batches depend on addresses (seed, epoch, row) alone, each row comes once, a broken row is named.

What is said of training batches is said of both ways there: pictures of one size, whose pixels are cached, and of two.
"""

import contextlib
import gc
import io
import itertools
import os
import resource
import traceback
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from torch.utils.data import DataLoader

from vit_hf import VitHfImageProcessor
from vit_hf.data import loading, preparation, streams
from vit_hf.data.drafts import cut_picture
from vit_hf.data.draws import sample_keys
from vit_hf.data.images import BadImageError, read_image, read_rgb
from vit_hf.data.loading import TrainRows, TrainStream, build_evaluation_loader, build_train_loader, finisher
from vit_hf.data.order import Address, FullBatches, StepSampler, seed_from
from vit_hf.data.pixel_cache import cached_pixels
from vit_hf.data.preparation import Preparation
from vit_hf.data.sources import load_source
from vit_hf.data.transforms import Augmentation, TrainTransform
from vit_hf.data.workers import Sent
from vit_hf.evaluation.views import ViewCutter

COLUMNS = {"image_column": "image", "label_column": "label"}
STRONG = Augmentation(crop="inception", flip=True, randaugment_ops=2, color_jitter=0.4, erasing=0.5)
CPU = torch.device("cpu")


def png(row: int, height: int = 12) -> bytes:
    generator = torch.Generator().manual_seed(row)
    pixels = torch.randint(256, (height, 10, 3), generator=generator, dtype=torch.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def pictures(count: int, **replaced) -> Dataset:
    """Return `count` noise pictures of three classes; `replaced` maps "row_5" to other bytes."""
    images = [{"bytes": replaced.get(f"row_{row}", png(row)), "path": None} for row in range(count)]
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["cat", "dog", "eel"])})
    return Dataset.from_dict({"image": images, "label": [row % 3 for row in range(count)]}, features=features)


@pytest.fixture(scope="module")
def processor():
    return VitHfImageProcessor(size={"height": 8, "width": 8})


@pytest.fixture(scope="module")
def transform(processor):
    return TrainTransform(STRONG, processor)


@pytest.fixture(scope="module", params=["cached", "by the picture"])
def split(request):
    if request.param == "cached":
        return pictures(22)
    return pictures(22, row_21=png(21, height=13))


def prepared(built, count=None) -> list[dict]:
    """Return the batches of a training loader as the model gets them."""
    loader, prepare = built
    return [prepare(batch, CPU) for batch in itertools.islice(loader, count)]


def batches_of(split, transform, *, steps=6, batch_size=8, accumulation=1, seed=3, workers=0):
    built = build_train_loader(
        split,
        **COLUMNS,
        transform=transform,
        batch_size=batch_size,
        accumulation=accumulation,
        num_steps=steps,
        seed=seed,
        workers=workers,
    )
    return prepared(built, steps * accumulation)


def samples_of(split, transform, addresses, *, seed=0) -> torch.Tensor:
    """Return the pixels of addresses, (B, C, H, W), as the loader of a split gives them."""
    pixels = cached_pixels(split, "image")
    rows = TrainRows(split, "image", "label", transform, seed, cached=pixels is not None)
    return Preparation(transform, pixels)(rows.__getitems__(addresses), CPU)["pixel_values"]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("rows", "labels", "pixel_values"))


# ---------------------------------------------------------------------------------------------- order
@pytest.mark.parametrize("num_rows", [1, 7, 64, 97])
def test_every_row_comes_once_an_epoch_and_no_step_is_ragged(num_rows):
    steps = list(StepSampler(num_rows, 8, num_steps=3 * num_rows, seed=0))  # 24 whole epochs
    assert [len(step) for step in steps] == [8] * (3 * num_rows)
    addresses = [address for step in steps for address in step]
    assert Counter((a.epoch, a.row) for a in addresses) == Counter(itertools.product(range(24), range(num_rows)))
    assert [a.epoch for a in addresses] == sorted(a.epoch for a in addresses)
    assert [a.position for a in addresses] == list(range(24 * num_rows))
    assert {a.copy for a in addresses} == {0}


def test_the_order_depends_on_seed_and_epoch_only():
    def orders(seed, batch_size):
        addresses = itertools.chain(*StepSampler(40, batch_size, num_steps=80 // batch_size, seed=seed))
        return [
            [address.row for address in of_epoch] for _, of_epoch in itertools.groupby(addresses, lambda a: a.epoch)
        ]

    first, second = orders(0, 8)
    assert first != second
    assert first != sorted(first)
    torch.manual_seed(99)
    assert orders(0, 20) == [first, second]
    assert orders(1, 8)[0] != first


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("first_step", range(11))
def test_a_run_that_begins_at_a_step_has_the_batches_of_the_whole_run(first_step, accumulation):
    options = {"accumulation": accumulation, "num_steps": 10, "seed": 5}
    whole = list(StepSampler(23, 6, **options))
    rest = StepSampler(23, 6, first_step=first_step, **options)
    assert list(rest) == whole[first_step * accumulation :]
    assert len(rest) == (10 - first_step) * accumulation


@pytest.mark.parametrize("accumulation", [2, 3, 6])
def test_accumulation_splits_the_rows_of_a_step(accumulation):
    whole = list(StepSampler(23, 6, num_steps=10, seed=5))
    parts = list(StepSampler(23, 6, accumulation=accumulation, num_steps=10, seed=5))
    assert {len(part) for part in parts} == {6 // accumulation}
    joined = [list(itertools.chain(*parts[at : at + accumulation])) for at in range(0, len(parts), accumulation)]
    assert joined == whole


def test_two_processes_share_each_batch_without_overlap():
    options = {"accumulation": 2, "num_steps": 6, "seed": 1}
    halves = [
        list(BatchSamplerShard(StepSampler(23, 8, **options), 2, process, split_batches=True)) for process in range(2)
    ]
    whole = list(StepSampler(23, 8, **options))
    assert len(halves[0]) == len(halves[1]) == len(whole) == 12
    for left, right, batch in zip(*halves, whole, strict=True):
        assert len(left) == len(right) == 2
        assert left + right == batch
        assert not set(left) & set(right)


def test_equal_addresses_have_equal_seeds_and_others_do_not():
    addresses = list(itertools.product(("order", "augment"), range(10), range(10), range(10)))
    assert len({seed_from(*address) for address in addresses}) == len(addresses)
    assert seed_from("order", 1, 23) != seed_from("order", 12, 3)
    assert seed_from("order", 0, 0) == 8105155533265743171  # on every machine and version


# ---------------------------------------------------------------------------------------------- training batches
def test_training_batches_have_the_shapes_and_types_the_model_takes(split, transform):
    for batch in batches_of(split, transform):
        assert batch["pixel_values"].shape == (8, 3, 8, 8)
        assert batch["pixel_values"].dtype == torch.float32
        assert batch["labels"].dtype == batch["rows"].dtype == torch.int64
        assert torch.equal(batch["labels"], batch["rows"] % 3)


def test_batches_are_the_same_with_no_worker_and_with_two(split, transform):
    assert_same(batches_of(split, transform, workers=2), batches_of(split, transform))


def test_accumulated_batches_hold_the_same_pixels(split, transform):
    parts, whole = batches_of(split, transform, accumulation=2), batches_of(split, transform)
    joined = [
        {name: torch.cat([first[name], second[name]]) for name in first}
        for first, second in zip(parts[::2], parts[1::2], strict=True)
    ]
    assert_same(joined, whole)


def test_another_seed_changes_order_and_pixels(split, transform):
    one, other = batches_of(split, transform, steps=1)[0], batches_of(split, transform, steps=1, seed=4)[0]
    assert not torch.equal(one["rows"], other["rows"])


def test_a_loader_gives_bytes_and_only_what_is_not_there_yet(split, transform):
    cached = cached_pixels(split, "image") is not None
    options = {**COLUMNS, "transform": transform, "batch_size": 8, "accumulation": 1, "num_steps": 1, "seed": 3}
    loader, _ = build_train_loader(split, **options, workers=2)
    assert loader.num_workers == (0 if cached else 2)
    batch = next(iter(loader))
    assert set(batch) == {"keys", "labels", "rows"} | (set() if cached else {"pixels"})
    assert all(tensor.dtype == torch.int64 for name, tensor in batch.items() if name != "pixels")
    if not cached:
        assert batch["pixels"].dtype == torch.uint8
        assert batch["pixels"].shape == (8, 3, 8, 8)


def test_the_pixels_of_a_sample_are_what_the_transform_makes_of_picture_and_key(split, transform):
    (address,) = [Address(5, 2, 7, 1)]
    (key,) = sample_keys(9, [2], [7], [1])
    picture = read_rgb(split[7]["image"], where="test")
    if cached_pixels(split, "image") is None:
        expected = transform.batch(transform.picture(picture, int(key))[None], [key], cut=True)
    else:
        whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        expected = transform.batch(whole, [key], cut=False)
    assert torch.equal(samples_of(split, transform, [address], seed=9), expected)


def test_without_augmentation_a_sample_is_what_the_image_processor_makes_of_it(split, processor):
    plain = TrainTransform(Augmentation(), processor)
    found = samples_of(split, plain, [Address(row, 0, row) for row in range(22)])
    expected = processor([read_image(row["image"], where="test") for row in split], return_tensors="pt")["pixel_values"]
    assert torch.equal(found, expected)


def test_augmentation_depends_on_seed_epoch_and_row_only(split, transform):
    addresses = list(itertools.product(range(2), range(6)))
    found = samples_of(split, transform, [Address(0, *address) for address in addresses])
    first = dict(zip(addresses, found, strict=True))
    torch.manual_seed(12345)
    for epoch, row in reversed(addresses):
        again = samples_of(split, transform, [Address(99, epoch, row)])
        assert torch.equal(first[epoch, row], again[0])
    other_seed = samples_of(split, transform, [Address(0, *address) for address in addresses], seed=1)
    for row in range(6):
        assert not torch.equal(first[0, row], first[1, row])
        assert not torch.equal(first[0, row], other_seed[row])


def test_augmentation_leaves_the_global_generator_as_it_was(split, transform):
    before = torch.get_rng_state()
    samples_of(split, transform, [Address(0, 0, 1)])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_that_is_cut_into_pieces_has_the_same_pixels(split, transform):
    options = {**COLUMNS, "transform": transform, "batch_size": 8, "accumulation": 1, "num_steps": 2, "seed": 3}
    loader, prepare = build_train_loader(split, **options, workers=0)
    for batch in loader:
        whole = prepare(batch, CPU)
        pieces = [prepare({name: tensor[at : at + 2] for name, tensor in batch.items()}, CPU) for at in range(0, 8, 2)]
        assert_same([{name: torch.cat([piece[name] for piece in pieces]) for name in whole}], [whole])


def test_preparing_a_batch_changes_neither_it_nor_the_cache(split, transform):
    options = {**COLUMNS, "transform": transform, "batch_size": 8, "accumulation": 1, "num_steps": 1, "seed": 3}
    loader, prepare = build_train_loader(split, **options, workers=0)
    cached = cached_pixels(split, "image")
    before = None if cached is None else cached.clone()
    for batch in loader:
        kept = {name: tensor.clone() for name, tensor in batch.items()}
        first, second = prepare(batch, CPU), prepare(batch, CPU)
        assert all(torch.equal(batch[name], tensor) for name, tensor in kept.items())
        assert_same([second], [first])
    assert before is None or torch.equal(cached, before)


def test_a_broken_training_picture_is_named_by_row(transform):
    split = pictures(6, row_4=png(4)[:60])
    for workers in (0, 2):
        with pytest.raises(BadImageError, match="row 4 of the training split") as caught:
            batches_of(split, transform, steps=1, batch_size=6, workers=workers)
        traceback.clear_frames(caught.tb)  # they hold the loader, whose queues torch 2.11 lets go in any order


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_bit_and_stays(split, transform, threads, monkeypatch):
    expected = batches_of(split, transform)
    if threads == 2:
        monkeypatch.setattr(preparation, "one_thread", lambda device: contextlib.nullcontext())
    seen, batch = [], TrainTransform.batch
    monkeypatch.setattr(TrainTransform, "batch", lambda *a, **k: seen.append(torch.get_num_threads()) or batch(*a, **k))
    torch.set_num_threads(2)
    try:
        assert_same(batches_of(split, transform), expected)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {threads}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resident", [True, False])
def test_batches_prepared_on_cuda_are_those_of_the_cpu(split, processor, resident, monkeypatch):
    monkeypatch.setattr(preparation, "_SHARE_OF_DEVICE", 8 if resident else 10**15)
    transform = TrainTransform(Augmentation(crop="inception", flip=True, randaugment_ops=2), processor)
    options = {**COLUMNS, "transform": transform, "batch_size": 8, "accumulation": 1, "num_steps": 3, "seed": 3}
    loader, prepare = build_train_loader(split, **options, workers=0)
    for batch in loader:
        there, here = prepare(batch, torch.device("cuda")), Preparation(transform, prepare.pixels)(batch, CPU)
        assert there["pixel_values"].device.type == "cuda"
        # A pixel that lies between two of 256 levels may be rounded to the other one.
        difference = (there["pixel_values"].cpu() - here["pixel_values"]).abs()
        assert difference.max() < 2.01 / 127.5
        assert difference.mean() < 0.1 / 127.5
        assert torch.equal(there["labels"].cpu(), here["labels"])
    assert (prepare._resident is not None) == (resident and prepare.pixels is not None)


def test_open_files_and_memory_stay_as_they_are_over_epochs(split):
    processor = VitHfImageProcessor(size={"height": 48, "width": 48})
    transform = TrainTransform(STRONG, processor)

    def epochs(count: int) -> None:
        for _ in range(count):
            batches_of(split, transform, steps=3)
            list(evaluation_loader(split, processor))

    def state() -> tuple[int, int]:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/fd")), pages * resource.getpagesize()

    epochs(5)
    files, memory = state()
    epochs(20)
    files_later, memory_later = state()
    assert files_later == files
    assert (
        memory_later - memory < 4 * 2**20
    )  # were they kept, 20 epochs of 24 training and 24 evaluation pictures would be 26 MB


# ---------------------------------------------------------------------------------------------- streams
def test_a_streamed_set_trains_epoch_after_epoch_in_another_order(split, transform):
    stream = split.to_iterable_dataset(num_shards=2)
    whole = batches_of(stream, transform, steps=11, batch_size=4)  # 2 epochs of 22 samples
    labels = torch.cat([batch["labels"] for batch in whole]).tolist()
    rows = torch.cat([batch["rows"] for batch in whole]).tolist()
    assert rows == [*range(22)] * 2
    counts = Counter(split["label"])
    assert Counter(labels[:22]) == Counter(labels[22:]) == counts
    assert labels[:22] != labels[22:]


def test_a_streamed_set_gives_the_same_batches_again(split, transform):
    stream = split.to_iterable_dataset()
    first = batches_of(stream, transform)
    torch.manual_seed(7)
    assert_same(batches_of(stream, transform), first)
    assert_same(batches_of(stream, transform, workers=2), first)  # workers are for map-style sets


def test_an_empty_stream_is_an_error(transform):
    empty = pictures(3).to_iterable_dataset().filter(lambda sample: False)
    with pytest.raises(ValueError, match="training stream has no samples; expected at least 1"):
        next(iter(TrainStream(empty, "image", "label", transform, seed=0)))


@pytest.mark.parametrize("label", [-1, None])
def test_a_missing_label_in_a_stream_names_sample_value_and_range(transform, processor, label):
    split = pictures(5)
    stream = split.remove_columns("label").add_column("label", [0, 1, 2, label, 0], feature=split.features["label"])
    stream = stream.to_iterable_dataset()
    with pytest.raises(ValueError, match=rf"training stream has label {label} in column 'label'; expected 0 to 2"):
        batches_of(stream, transform, steps=1, batch_size=5)
    with pytest.raises(ValueError, match=rf"sample 3 of split test has label {label} in column 'label'"):
        list(evaluation_loader(stream, processor))


# ---------------------------------------------------------------------------------------------- evaluation
def test_a_batch_leaves_a_loader_process_with_its_small_tensors_by_value_and_shares_the_large_ones():
    batch = Sent(
        rows=torch.arange(5), mask=torch.tensor([True, False]), half=torch.ones(3, dtype=torch.bfloat16),
        pixel_values=torch.randn(2, 3, 80, 80), views=[torch.randn(4)],
    )  # fmt: skip
    received = ForkingPickler.loads(ForkingPickler.dumps(batch))
    assert list(received) == list(batch)
    assert received.pop("views")[0].equal(batch.pop("views")[0])
    for name, tensor in batch.items():
        assert torch.equal(received[name], tensor)
        assert received[name].dtype == tensor.dtype
        assert received[name].is_shared() == (name in ("half", "pixel_values")), name


def processed(processor, images) -> torch.Tensor:
    collate = loading.EvaluationCollator(processor)
    return collate.finish(collate({"images": images}))["pixel_values"]


def evaluated(loader) -> list:
    return list(map(finisher(loader), loader))


def evaluation_loader(split, processor, *, workers=0):
    return build_evaluation_loader(split, **COLUMNS, name="test", processor=processor, batch_size=8, workers=workers)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_every_row_once_in_order_as_the_processor_makes_it(split, processor, streamed, workers):
    given = split.to_iterable_dataset() if streamed else split
    batches = evaluated(evaluation_loader(given, processor, workers=workers))
    assert [len(batch["rows"]) for batch in batches] == [8, 8, 8]
    assert torch.cat([batch["rows"] for batch in batches]).tolist() == [*range(22), 21, 21]  # the last one fills up
    assert torch.cat([batch["labels"] for batch in batches])[:22].tolist() == split["label"][:]
    decoded = [read_image(sample["image"], where="test") for sample in split]
    expected = processor(decoded, return_tensors="pt")["pixel_values"]
    found = torch.cat([batch["pixel_values"] for batch in batches])
    assert torch.equal(found[:22], expected)
    assert torch.equal(found[22:], expected[[21, 21]])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("rows", "batches"), [(1, 1), (7, 1), (8, 1), (9, 2)])
def test_evaluation_batches_are_always_full_and_none_is_needless(processor, streamed, rows, batches):
    split = pictures(rows)
    found = list(evaluation_loader(split.to_iterable_dataset() if streamed else split, processor))
    assert [len(batch["rows"]) for batch in found] == [8] * batches
    assert torch.cat([batch["rows"] for batch in found]).unique().tolist() == list(range(rows))


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("rows", [5, 51, 96])
def test_several_processes_take_the_batches_that_one_takes(processes, rows):
    shards = [
        list(BatchSamplerShard(FullBatches(rows, 8 * processes), processes, index, split_batches=True))
        for index in range(processes)
    ]
    assert {len(batches) for batches in shards} == {len(shards[0])}
    taken = [batch for step in zip(*shards, strict=True) for batch in step]
    alone = list(FullBatches(rows, 8))
    assert len(alone) == -(-rows // 8)
    assert taken[: len(alone)] == alone
    assert all(batch == [rows - 1] * 8 for batch in taken[len(alone) :])


def test_a_picture_that_fills_up_a_batch_is_decoded_once(processor, monkeypatch):
    decoded = []

    def count(image, *, where):
        decoded.append(where)
        return read_rgb(image, where=where)

    monkeypatch.setattr("vit_hf.data.loading.read_rgb", count)
    list(evaluation_loader(pictures(9, row_8=png(8, height=13)), processor))
    assert decoded == [f"row {row} of split test" for row in range(9)]


PROCESSORS = {
    "same size": {"size": {"height": 12, "width": 10}},
    "smaller": {"size": {"height": 8, "width": 9}},
    "larger": {"size": {"height": 31, "width": 20}},
    "bicubic": {"size": {"height": 7, "width": 20}, "resample": 3},
    "nearest": {"size": {"height": 7, "width": 20}, "resample": 0},
    "not antialiased": {"size": {"height": 7, "width": 8}, "antialias": False},
    "cropped": {"size": {"shortest_edge": 9}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
    "rounded": {"size": {"shortest_edge": 11}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}}
    | {"crop_rounding": "round"},
    "larger crop": {"size": {"height": 8, "width": 8}, "do_center_crop": True, "crop_size": {"height": 9, "width": 10}},
    "not resized": {"do_resize": False},
    "only rescaled": {"size": {"height": 8, "width": 8}, "do_normalize": False},
    "only normalised": {"size": {"height": 8, "width": 8}, "do_rescale": False},
    "neither": {"size": {"height": 8, "width": 8}, "do_rescale": False, "do_normalize": False},
    "padded": {"size": {"height": 8, "width": 8}, "do_pad": True, "pad_size": {"height": 11, "width": 9}},
    "unconverted": {"size": {"height": 8, "width": 8}, "do_convert_rgb": False},
    "by pieces": {"size": {"height": 200, "width": 190}},  # too large for all to stay in a cache
    "only rescaled, by pieces": {"size": {"height": 200, "width": 190}, "do_normalize": False},
}


@pytest.mark.parametrize("settings", PROCESSORS.values(), ids=PROCESSORS)
def test_a_batch_is_processed_as_each_picture_of_it_alone_bit_for_bit(settings):
    processor = VitHfImageProcessor(**settings)
    split = pictures(7)
    decoded = [read_rgb(row["image"], where="test") for row in split]
    found = processed(processor, cached_pixels(split, "image"))
    one_by_one = processed(processor, decoded)
    alone = [processor([picture], return_tensors="pt")["pixel_values"] for picture in decoded]
    assert found.dtype == one_by_one.dtype == alone[0].dtype
    assert torch.equal(found, torch.cat(alone))
    assert torch.equal(one_by_one, found)


def test_a_processor_with_steps_of_its_own_takes_its_own_steps(processor):
    class Inverted(VitHfImageProcessor):
        def _preprocess(self, images, **options):
            return super()._preprocess([255 - image for image in images], **options)

    pixels = cached_pixels(pictures(7), "image")
    inverted = Inverted(size={"height": 8, "width": 8})
    assert torch.equal(processed(inverted, pixels), processed(processor, 255 - pixels))


@pytest.mark.parametrize("size", [8, 5, 32])
def test_digits_are_evaluated_from_the_cache_as_from_their_files(size, monkeypatch):
    source, processor = load_source("digits"), VitHfImageProcessor(size={"height": size, "width": size})
    options = {"image_column": "image", "label_column": "label", "name": "test", "processor": processor}
    found = evaluated(build_evaluation_loader(source.test, **options, batch_size=64, workers=0))
    monkeypatch.setattr(loading, "cached_pixels", lambda *_: None)
    expected = evaluated(build_evaluation_loader(source.test, **options, batch_size=64, workers=0))
    assert_same(found, expected)


@pytest.mark.parametrize("size", [32, 224])
def test_cifar_is_evaluated_from_the_cache_as_from_its_files(size, shared_data, monkeypatch):
    source = load_source(shared_data("cifar100") / "cifar100")
    options = {"image_column": source.image_column, "label_column": source.label_column, "name": "test", "workers": 0}
    options["processor"] = VitHfImageProcessor(size={"height": size, "width": size})
    split = source.test.select(range(0, 10_000, 100))
    found = evaluated(build_evaluation_loader(split, **options, batch_size=50))
    monkeypatch.setattr(loading, "cached_pixels", lambda *_: None)
    assert_same(found, evaluated(build_evaluation_loader(split, **options, batch_size=50)))


@pytest.mark.parametrize("crops", [1, 5])
def test_views_are_cut_from_cached_pixels_as_from_pictures(processor, crops, monkeypatch):
    split, cutter = pictures(9), ViewCutter([processor], crops)
    options = {**COLUMNS, "name": "test", "processor": processor, "batch_size": 4, "workers": 0, "to_pixels": cutter}
    found = [batch["pixel_values"] for batch in build_evaluation_loader(split, **options)]
    monkeypatch.setattr(loading, "cached_pixels", lambda *_: None)
    for one, batch in zip(found, build_evaluation_loader(split, **options), strict=True):
        assert one[0].shape == (4, crops, 3, 8, 8)
        assert torch.equal(one[0], batch["pixel_values"][0])


def test_no_loader_process_is_started_for_cached_pixels(split, processor):
    loader = evaluation_loader(split, processor, workers=2)
    assert loader.num_workers == (2 if cached_pixels(split, "image") is None else 0)


def test_evaluation_accepts_pictures_of_several_modes_and_sizes(processor):
    buffer = io.BytesIO()
    PIL.Image.new("LA", (30, 5), (90, 128)).save(buffer, format="PNG")
    batch = next(iter(evaluation_loader(pictures(4, row_2=buffer.getvalue()), processor)))
    assert batch["pixel_values"].shape == (8, 3, 8, 8)


@pytest.mark.parametrize(("streamed", "place"), [(False, "row 3 of split test"), (True, "sample 3 of split test")])
def test_a_broken_evaluation_picture_is_named_by_row_and_split(processor, streamed, place):
    split = pictures(5, row_3=b"<html>not found</html>")
    with pytest.raises(BadImageError, match=f"{place}: an HTML page"):
        list(evaluation_loader(split.to_iterable_dataset() if streamed else split, processor))


# ---------------------------------------------------------------------------------------------- repeats
def steps_of(batch_size: int, repeats: int, *, num_rows=50, steps=20, **options) -> list[list[Address]]:
    return list(StepSampler(num_rows, batch_size, num_steps=steps, seed=2, repeats=repeats, **options))


@pytest.mark.parametrize(("batch_size", "repeats"), [(8, 2), (8, 3), (12, 3), (7, 2), (6, 6), (10, 4)])
def test_a_step_with_repeats_has_each_of_its_rows_that_often_or_once_less(batch_size, repeats):
    for step in steps_of(batch_size, repeats):
        counts = Counter((address.epoch, address.row) for address in step)
        assert sum(counts.values()) == batch_size
        assert len(counts) == -(-batch_size // repeats)
        assert set(counts.values()) <= {repeats, repeats - 1}
        for sample, count in counts.items():
            assert sorted(a.copy for a in step if (a.epoch, a.row) == sample) == list(range(count))


def test_with_repeats_rows_still_come_once_an_epoch_and_copies_stand_far_apart():
    steps = steps_of(12, 3, num_rows=20, steps=15)  # 4 rows a step: 3 epochs of 5 steps
    rows = [(a.epoch, a.row) for step in steps for a in step if a.copy == 0]
    assert Counter(rows) == Counter(itertools.product(range(3), range(20)))
    assert [a.position for step in steps for a in step] == list(range(12 * 15))
    for step in steps:
        assert [(a.epoch, a.row) for a in step] == [(a.epoch, a.row) for a in step[:4]] * 3


def test_one_copy_is_the_order_without_repeats():
    assert steps_of(8, 1) == list(StepSampler(50, 8, num_steps=20, seed=2))
    assert {address.copy for step in steps_of(8, 1) for address in step} == {0}


@pytest.mark.parametrize("accumulation", [2, 3, 4])
def test_repeats_are_the_same_addresses_for_any_accumulation(accumulation):
    parts = steps_of(12, 3, accumulation=accumulation)
    joined = [list(itertools.chain(*parts[at : at + accumulation])) for at in range(0, len(parts), accumulation)]
    assert joined == steps_of(12, 3)


@pytest.mark.parametrize("first_step", [1, 7, 13])
def test_repeats_from_a_first_step_are_the_whole_run_without_the_steps_before(first_step):
    assert steps_of(8, 3, first_step=first_step) == steps_of(8, 3)[first_step:]


def test_copies_of_a_row_are_augmented_each_on_its_own_and_the_first_as_without_repeats(split, transform):
    copies = samples_of(split, transform, [Address(0, 0, 5, copy) for copy in range(3)])
    assert torch.equal(copies[0], samples_of(split, transform, [Address(17, 0, 5)])[0])
    assert not torch.equal(copies[0], copies[1])
    assert not torch.equal(copies[1], copies[2])
    assert torch.equal(copies[2], samples_of(split, transform, [Address(9, 0, 5, 2)])[0])


def test_the_loader_hands_on_repeats_and_the_first_step(split, transform):
    options = {**COLUMNS, "transform": transform, "batch_size": 6, "accumulation": 1, "num_steps": 6, "seed": 3}
    whole = prepared(build_train_loader(split, **options, workers=0, repeats=3))
    assert all(torch.equal(batch["rows"], batch["rows"][:2].repeat(3)) for batch in whole)
    rest = build_train_loader(split, **options, workers=0, repeats=3, first_step=2)
    assert_same(prepared(rest), whole[2:])


# ---------------------------------------------------------------------------------------------- resuming a stream
@pytest.mark.parametrize("first_step", [1, 5, 6, 11])
def test_a_stream_from_a_first_step_is_the_whole_run_without_the_steps_before(split, transform, first_step):
    options = {**COLUMNS, "transform": transform, "batch_size": 4, "accumulation": 1, "num_steps": 14, "seed": 3}
    stream = split.to_iterable_dataset(num_shards=2)
    whole = prepared(build_train_loader(stream, **options, workers=0), 14)  # over two epochs of 22
    rest = build_train_loader(stream, **options, workers=0, first_step=first_step)
    assert_same(prepared(rest, 14 - first_step), whole[first_step:])


def test_what_a_resumed_stream_passes_over_is_not_decoded(transform):
    broken = pictures(12, **{f"row_{row}": b"broken" for row in range(12)})
    split = TrainStream(broken.to_iterable_dataset(), "image", "label", transform, seed=3, first_position=11)
    read = []
    split.on_sample = lambda: read.append(1)  # signs of life
    sample = next(iter(split))
    assert len(read) == 12
    with pytest.raises(BadImageError, match="sample 11 of epoch 0"):
        sample["pixels"]()


def test_labels_of_a_stream_may_be_numpys_numbers(transform):
    def rows():
        for label in np.arange(4):
            yield {"image": PIL.Image.new("RGB", (8, 8)), "label": label}

    stream = IterableDataset.from_generator(rows, features=Features({"image": Image(), "label": Value("int64")}))
    stream = stream.cast_column("image", Image(decode=False))
    samples = list(itertools.islice(TrainStream(stream, "image", "label", transform, seed=0), 4))
    assert sorted(sample["labels"] for sample in samples) == [0, 1, 2, 3]
    assert {type(sample["labels"]) for sample in samples} == {int}


def test_a_process_decodes_only_what_it_takes_of_a_stream(split, transform, monkeypatch):
    cut, read = [], []
    monkeypatch.setattr(streams, "cut_picture", lambda *args, **rest: cut.append(1) or cut_picture(*args, **rest))
    monkeypatch.setattr(streams, "read_rgb", lambda *args, **rest: read.append(1) or read_rgb(*args, **rest))
    stream = split.to_iterable_dataset()
    options = {**COLUMNS, "transform": transform, "batch_size": 8, "accumulation": 1, "num_steps": 2, "seed": 3}
    loader, _ = build_train_loader(stream, **options, workers=0)
    shard = {"batch_size": 8, "num_processes": 2, "split_batches": True, "drop_last": True}
    share = DataLoader(IterableDatasetShard(loader.dataset, process_index=1, **shard), 4, collate_fn=loader.collate_fn)
    batches = list(itertools.islice(share, 2))
    whole = list(itertools.islice(loader, 2))
    assert len(cut) == 4 + 4 + 8 + 8
    for mine, all_of_it in zip(batches, whole, strict=True):
        assert torch.equal(mine["pixels"], all_of_it["pixels"][4:])
        assert torch.equal(mine["rows"], all_of_it["rows"][4:])
    scored = build_evaluation_loader(
        stream, **COLUMNS, name="test", processor=VitHfImageProcessor(size=8), batch_size=8, workers=0
    )
    shard = IterableDatasetShard(scored.dataset, process_index=0, **{**shard, "drop_last": False})
    rows = [row for batch in DataLoader(shard, 4, collate_fn=scored.collate_fn) for row in batch["rows"].tolist()]
    assert rows == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]  # of 22
    assert len(read) == 12


# ---------------------------------------------------------------------------------------------- draws of a batch
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("first_step", [0, 2])
def test_what_is_drawn_for_a_batch_is_drawn_from_the_positions_in_the_whole_run(split, transform, streamed, first_step):
    def draw(positions: list[int], height: int, width: int) -> dict[str, torch.Tensor]:
        return {"drawn": torch.tensor(positions), "sizes": torch.tensor([[height, width]] * len(positions))}

    given = split.to_iterable_dataset() if streamed else split
    options = {**COLUMNS, "transform": transform, "batch_size": 6, "accumulation": 2, "num_steps": 4, "seed": 3}
    loader, _ = build_train_loader(given, **options, workers=0, first_step=first_step, draw=draw)
    batches = list(itertools.islice(loader, 2 * (4 - first_step)))
    assert torch.cat([batch["drawn"] for batch in batches]).tolist() == list(range(6 * first_step, 24))
    assert all(batch["sizes"].tolist() == [[8, 8]] * 3 for batch in batches)
    assert "positions" not in batches[0]
