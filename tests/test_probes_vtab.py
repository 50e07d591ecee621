"""VTAB-1k: the table of the benchmark, labels made of made-up rows, the choice of pictures, the means of the paper."""

import io
from collections import Counter

import numpy as np
import PIL.Image
import pytest
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from vit_hf import VitHfForImageClassification, VitHfImageProcessor
from vit_hf.evaluation.probes import vtab
from vit_hf.evaluation.probes.features import Features as Frozen
from vit_hf.evaluation.probes.features import freeze
from vit_hf.evaluation.probes.vtab import LABEL, open_task, probe_task, summarise
from vit_hf.evaluation.probes.vtab_tasks import TASKS, get_task

# The ViT paper's Table 9: ViT-H/14 pre-trained on JFT, VTAB-1k; its mean is 77.63 in Table 2 of the paper.
PAPER = {
    "caltech101": 95.3, "cifar100": 85.5, "dtd": 75.2, "flowers102": 99.7, "pets": 97.2, "sun397": 65.0, "svhn": 88.9,
    "camelyon": 83.3, "eurosat": 96.7, "resisc45": 91.4, "retinopathy": 76.6,
    "clevr_count": 91.7, "clevr_distance": 63.8, "dmlab": 53.1, "dsprites_location": 79.4,
    "dsprites_orientation": 63.3, "kitti_distance": 84.5, "smallnorb_azimuth": 33.2, "smallnorb_elevation": 51.2,
}  # fmt: skip


def picture(number: int = 0) -> dict:
    """Return a 1x1 PNG whose colour is the number."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (1, 1), (number // 65536, number // 256 % 256, number % 256)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def number_of(sample: dict) -> int:
    """Return the number that `picture` got."""
    red, green, blue = PIL.Image.open(io.BytesIO(sample["image"]["bytes"])).getpixel((0, 0))
    return (red * 256 + green) * 256 + blue


def made_up(column: str, values: list, feature=None) -> Dataset:
    data = Dataset.from_dict({"image": [picture(row) for row in range(len(values))], column: values})
    data = data.cast_column("image", Image(decode=False))
    return data if feature is None else data.cast_column(column, feature)


def labels_of(name: str, column: str, values: list, feature=None) -> list[int]:
    """Return the labels that a task makes of one column."""
    task, data = get_task(name), made_up(column, values, feature)
    rule = vtab._find_rule(task, data, where="here")
    return vtab._with_labels(data, task, rule, "image", where="here")[LABEL][:]


def clevr(*distances: float) -> dict:
    return {"size": [row % 2 for row in range(len(distances))], "pixel_coords": [[1.0, 2.0, d] for d in distances]}


def kitti(*objects: tuple) -> dict:
    return {"type": [kind for kind, _ in objects], "location": [[100.0, -50.0, z] for _, z in objects]}


# ---------------------------------------------------------------------------------------------- the table
def test_the_table_has_the_tasks_of_the_benchmark():
    groups = Counter(task.group for task in TASKS.values())
    assert groups == {"natural": 7, "specialized": 4, "structured": 8}
    classes = {"caltech101": 102, "cifar100": 100, "dtd": 47, "flowers102": 102, "pets": 37, "sun397": 397, "svhn": 10,
               "camelyon": 2, "eurosat": 10, "resisc45": 45, "retinopathy": 5, "clevr_count": 8, "clevr_distance": 6,
               "dmlab": 6, "dsprites_location": 16, "dsprites_orientation": 16, "kitti_distance": 4,
               "smallnorb_azimuth": 18, "smallnorb_elevation": 9}  # fmt: skip
    assert {name: task.num_labels for name, task in TASKS.items()} == classes
    assert all(task.read_in for task in TASKS.values())


def test_the_test_splits_have_the_sizes_of_their_slices():
    whole = {"eurosat": 27_000, "resisc45": 31_500, "dsprites_location": 737_280, "dsprites_orientation": 737_280,
             "smallnorb_azimuth": 24_300, "smallnorb_elevation": 24_300}  # fmt: skip
    for name, task in TASKS.items():
        _, start, stop = vtab._parse_slice(task.test)
        assert ((start, stop) != (0, 100)) == (name in whole)
        if name in whole:
            assert whole[name] * stop // 100 - whole[name] * start // 100 == task.test_images


def test_no_slices_of_a_task_overlap():
    for task in TASKS.values():
        covered = []
        for text in (task.train, task.validation, task.test):
            name, start, stop = vtab._parse_slice(text)
            covered += [(name, percent) for percent in range(start, stop)]
        assert len(covered) == len(set(covered)), task.name


# ---------------------------------------------------------------------------------------------- labels
PLAIN = ["caltech101", "dtd", "flowers102", "pets", "sun397", "svhn", "camelyon", "eurosat", "resisc45", "retinopathy",
         "dmlab"]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tasks_take_the_label_column(name):
    last = TASKS[name].num_labels - 1
    assert labels_of(name, "label", [0, last, 1]) == [0, last, 1]
    names = ClassLabel(names=[f"class {number}" for number in range(last + 1)])
    assert labels_of(name, "label", [last, 0], names) == [last, 0]


@pytest.mark.parametrize("column", ["fine_label", "label"])
def test_cifar100_takes_the_fine_label(column):
    assert labels_of("cifar100", column, [99, 0, 7]) == [99, 0, 7]


def test_clevr_count_is_the_number_of_objects_from_three():
    rows = [clevr(*[9.0] * count) for count in range(3, 11)]
    assert labels_of("clevr_count", "objects", rows) == list(range(8))


def test_clevr_distance_is_the_step_of_the_closest_object():
    wanted = {
        0.5: 0,
        7.9: 0,
        8.0: 0,
        8.01: 1,
        8.5: 1,
        8.6: 2,
        9.0: 2,
        9.2: 3,
        9.5: 3,
        9.6: 4,
        10.0: 4,
        10.5: 5,
        60.0: 5,
    }
    rows = [clevr(99.0, distance, 70.0) for distance in wanted]
    assert labels_of("clevr_distance", "objects", rows) == list(wanted.values())


def test_objects_may_be_a_list_of_dicts_too():
    row = clevr(9.1, 12.0, 13.0, 14.0)
    rows = [[{"size": size, "pixel_coords": place} for size, place in zip(*row.values(), strict=True)]]
    assert labels_of("clevr_count", "objects", rows) == [1]
    assert labels_of("clevr_distance", "objects", rows) == [3]


@pytest.mark.parametrize("names", [True, False])
def test_kitti_distance_is_the_step_of_the_closest_car_van_or_truck(names):
    kinds = {"Car": 0, "Van": 1, "Truck": 2, "Pedestrian": 3, "DontCare": 8}

    def row(*objects):
        return kitti(*[(kind if names else kinds[kind], z) for kind, z in objects])

    rows = [
        row(("Car", 1.0)),
        row(("Van", 8.0), ("Pedestrian", 1.0)),
        row(("Truck", 8.1), ("Car", 40.0)),
        row(("Car", 20.0)),
        row(("Car", 20.1), ("DontCare", -1000.0)),
        row(("Pedestrian", 3.0)),
    ]
    assert labels_of("kitti_distance", "objects", rows) == [0, 0, 1, 1, 2, 3]


def test_dsprites_location_has_two_positions_a_class():
    assert labels_of("dsprites_location", "label_x_position", list(range(32))) == [x // 2 for x in range(32)]


def test_dsprites_orientation_has_two_or_three_angles_a_class():
    wanted = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 6, 7, 7]
    wanted += [number + 8 for number in wanted]
    assert labels_of("dsprites_orientation", "label_orientation", list(range(40))) == wanted


@pytest.mark.parametrize(("name", "count"), [("smallnorb_azimuth", 18), ("smallnorb_elevation", 9)])
def test_smallnorb_takes_its_own_label(name, count):
    column = "label_" + name.removeprefix("smallnorb_")
    assert labels_of(name, column, list(range(count))) == list(range(count))
    with pytest.raises(ValueError, match=rf"row 1 has '34' in column '{column}', which makes class 34; expected 0 to"):
        labels_of(name, column, [2, 34])  # the raw file's azimuths are even numbers


@pytest.mark.parametrize(
    ("name", "column"),
    [("clevr_count", "label_count"), ("clevr_distance", "label_distance"), ("kitti_distance", "label_distance"),
     ("dsprites_location", "label_x_position_16"), ("dsprites_orientation", "label_orientation_16"),
     *((name, "label") for name in TASKS)],
)  # fmt: skip
def test_ready_labels_are_taken_as_they_are(name, column):
    last = TASKS[name].num_labels - 1
    assert labels_of(name, column, [last, 0]) == [last, 0]


def test_the_column_of_the_definition_goes_before_a_ready_one():
    data = made_up("objects", [clevr(9.0, 9.0, 9.0)]).add_column("label_count", [5])
    assert vtab._find_rule(get_task("clevr_count"), data, where="here").column == "objects"


@pytest.mark.parametrize(
    ("name", "column", "values", "feature", "message"),
    [
        ("dtd", "texture", [1], None, r"columns \['image', 'texture'\]; the task dtd makes its labels of label; give"),
        ("clevr_count", "x", [1], None, r"makes its labels of objects \(with size\) or label_count or label"),
        ("dtd", "label", [3, None], None, r"row 1 has 'None' in column 'label' \(TypeError.*expected a class number"),
        ("dtd", "label", ["striped"], None, r"row 0 has 'striped' in column 'label' \(ValueError"),
        ("dtd", "label", [46, 47], None, r"row 1 has '47' in column 'label', which makes class 47; expected 0 to 46"),
        ("dtd", "label", [-1], None, r"makes class -1; expected 0 to 46; give the data of the task dtd"),
        ("dtd", "label", [1], ClassLabel(num_classes=10), "has 10 classes; the task dtd has 47; give the data"),
        ("clevr_distance", "objects", [{"size": [1]}], None, r"\(KeyError: 'pixel_coords'\); expected pixel_coords"),
        ("clevr_count", "objects", [clevr(9.0)], None, "makes class -2; expected 0 to 7"),
    ],
)
def test_data_that_is_not_the_task_is_an_error(name, column, values, feature, message):
    with pytest.raises(ValueError, match=message):
        labels_of(name, column, values, feature)


# ---------------------------------------------------------------------------------------------- pictures
@pytest.fixture(scope="module")
def pictures():
    """Encoded pictures, each with its number."""
    return [picture(row) for row in range(2100)]


def save(folder, pictures, sizes: dict[str, int], classes: int):
    """Save a data set whose picture number k of split s has class k % classes."""
    features = Features({"image": Image(decode=False), "label": Value("int64")})
    splits, start = {}, 0
    for name, size in sizes.items():
        rows = {"image": pictures[start : start + size], "label": [row % classes for row in range(start, start + size)]}
        splits[name], start = Dataset.from_dict(rows, features=features), start + size
    DatasetDict(splits).save_to_disk(folder)
    return folder


def numbers(data: Dataset) -> list[int]:
    return [number_of(sample) for sample in data]


def test_a_thousand_pictures_are_drawn_from_train_always_the_same(tmp_path, pictures):
    folder = save(tmp_path / "data", pictures, {"train": 2000, "test": 60}, 100)
    data = open_task(get_task("cifar100"), folder)
    learn, choose, test = (numbers(data.parts[name]) for name in ("train800", "val200", "test"))
    assert (len(learn), len(choose)) == (800, 200)
    assert test == list(range(2000, 2060))  # whole, in order
    assert len({*learn, *choose, *test}) == 1060
    assert max(learn + choose) < 2000
    assert learn[:5] == [1765, 751, 1415, 1628, 1586]  # on every machine, with every version
    assert data.drawn
    for part in data.parts.values():
        assert [number % 100 for number in numbers(part)] == part[LABEL][:]
    again = open_task(get_task("cifar100"), folder)
    assert numbers(again.parts["train800"]) == learn
    assert data.differs == ("60 test pictures, not 10,000",)


def test_two_hundred_pictures_come_from_the_validation_split_where_the_benchmark_has_one(tmp_path, pictures):
    data = open_task(get_task("dtd"), save(tmp_path / "a", pictures, {"train": 900, "val": 300, "test": 50}, 47))
    assert all(900 <= number < 1200 for number in numbers(data.parts["val200"]))
    assert all(number < 900 for number in numbers(data.parts["train800"]))
    without = open_task(get_task("dtd"), save(tmp_path / "b", pictures, {"train": 1200, "test": 50}, 47))
    assert set(numbers(without.parts["val200"])) <= set(range(1200)) - set(numbers(without.parts["train800"]))
    assert without.differs[0] == "the 200 pictures are from train: there is no validation split"


def test_tasks_without_a_test_split_cut_one_off_train(tmp_path, pictures):
    data = open_task(get_task("eurosat"), save(tmp_path / "data", pictures, {"train": 2000}, 10))
    parts = {name: numbers(part) for name, part in data.parts.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train800": 800, "val200": 200, "test": 400}
    assert len({number for part in parts.values() for number in part}) == 1400
    assert all(count > 20 for count in Counter(data.parts["test"][LABEL][:]).values())  # drawn over all classes


def test_half_of_smallnorbs_test_split_is_for_choosing(tmp_path, pictures):
    features = {"train": 900, "test": 500}
    data = open_task(get_task("smallnorb_azimuth"), save(tmp_path / "data", pictures, features, 18))
    test, choose = numbers(data.parts["test"]), numbers(data.parts["val200"])
    assert len(test) == 250
    assert not set(test) & set(choose)
    assert all(number >= 900 for number in test + choose)


def test_published_choices_are_used_as_they_are(tmp_path, pictures):
    sizes = {"train": 20, "train800": 800, "val200": 200, "test": 40}
    data = open_task(get_task("svhn"), save(tmp_path / "data", pictures, sizes, 10))
    assert not data.drawn
    assert numbers(data.parts["train800"]) == list(range(20, 820))
    assert numbers(data.parts["val200"]) == list(range(820, 1020))
    assert numbers(data.parts["test"]) == list(range(1020, 1060))


def test_too_few_pictures_are_an_error(tmp_path, pictures):
    with pytest.raises(ValueError, match=r"\{'val200': 50\} pictures; VTAB-1k needs \{'train800': 800"):
        open_task(get_task("dtd"), save(tmp_path / "data", pictures, {"train": 850, "test": 10}, 47))


def test_a_task_without_a_known_copy_asks_for_data():
    with pytest.raises(ValueError, match=r"retinopathy: no copy on the Hub is known .* give the data with --data"):
        open_task(get_task("retinopathy"))


def test_an_unknown_task_lists_the_tasks():
    with pytest.raises(ValueError, match="no task 'mnist'; expected one of caltech101, cifar100"):
        get_task("mnist")


# ---------------------------------------------------------------------------------------------- the protocol
def test_strength_is_chosen_on_200_then_1000_are_learned_from(tmp_path, pictures, tiny, monkeypatch):
    data = open_task(get_task("svhn"), save(tmp_path / "data", pictures, {"train": 2000, "test": 60}, 10))
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(10, 6))

    def features_of(frozen, part, accelerator, **options):
        labels = np.asarray(part[LABEL])
        return Frozen((centres[labels] + generator.normal(size=(len(labels), 6))).astype(np.float32), labels)

    seen = []
    original = vtab.probe_logistic
    monkeypatch.setattr(vtab, "split_features", features_of)
    monkeypatch.setattr(vtab, "probe_logistic", lambda *a, **k: (seen.append((a, k)), original(*a, **k))[1])
    found = probe_task(None, get_task("svhn"), data, Accelerator(cpu=True))
    (both, test), options = seen[0]
    assert len(both.labels) == 1000
    assert both.labels.tolist() == [*data.parts["train800"][LABEL], *data.parts["val200"][LABEL]]
    assert [len(rows) for rows in options["parts"]] == [800, 200]
    assert options["parts"][1].tolist() == list(range(800, 1000))
    assert len(test.labels) == found["n"] == 60
    assert found["top1"] == (original(both, test, **options).predictions == test.labels).mean()
    low, high = found["interval"]
    assert low < found["top1"] < high
    assert (found["vtab"], found["group"], found["pictures"]) == ("svhn", "natural", "drawn")


@pytest.mark.slow
def test_cifar100_really_runs(shared_data, tmp_path):
    from vit_hf import VitHfConfig

    config = VitHfConfig(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=64, num_labels=2, pooling="gap")  # fmt: skip
    model = VitHfForImageClassification(config)
    processor = VitHfImageProcessor(size={"height": 32, "width": 32})
    task = get_task("cifar100")
    data = open_task(task, shared_data("cifar100") / "cifar100")
    assert data.differs == ()
    assert len(data.parts["test"]) == 10_000
    frozen = freeze(model, processor, name="random")
    found = probe_task(frozen, task, data, Accelerator(cpu=True), cache=tmp_path, batch_size=250)
    assert found["n"] == 10_000
    assert 0.02 < found["top1"] < 0.2  # random features beat chance


# ---------------------------------------------------------------------------------------------- the mean
def results_of(scores: dict[str, float]) -> list[dict]:
    return [{"vtab": name, "top1": score / 100, "weights": "w", "differs": []} for name, score in scores.items()]


def test_the_mean_is_over_tasks_as_in_the_papers_own_table():
    summary = summarise(results_of(PAPER))
    assert 100 * summary["mean"] == pytest.approx(77.63, abs=0.005)
    assert summary["missing"] == []
    groups = {name: 100 * group["mean"] for name, group in summary["groups"].items()}
    assert groups == pytest.approx({"natural": 606.8 / 7, "specialized": 348.0 / 4, "structured": 520.2 / 8})
    assert np.mean(list(groups.values())) != pytest.approx(77.63, abs=0.5)  # not the mean of the groups


def test_an_incomplete_set_has_no_mean():
    some = {name: score for name, score in PAPER.items() if name not in ("dmlab", "svhn")}
    summary = summarise(results_of(some))
    assert summary["mean"] is None
    assert summary["missing"] == ["svhn", "dmlab"]
    assert summary["groups"]["natural"] == {"mean": None, "missing": ["svhn"]}
    assert summary["groups"]["specialized"]["mean"] == pytest.approx(0.87)
    assert len(summary["tasks"]) == 17


def test_results_that_do_not_belong_together_are_an_error():
    one = results_of({"dtd": 50.0})
    with pytest.raises(ValueError, match="several results of dtd; expected one of each task"):
        summarise([*one, *one])
    with pytest.raises(ValueError, match="different weights"):
        summarise([*one, {**results_of({"svhn": 1.0})[0], "weights": "other"}])
    with pytest.raises(ValueError, match="not of a VTAB task"):
        summarise([*one, {"top1": 0.5}])


def test_what_differs_is_handed_on():
    one = results_of({"dtd": 50.0})
    one[0]["differs"] = ["5 test pictures, not 1,880"]
    assert summarise(one)["differs"] == {"dtd": ["5 test pictures, not 1,880"]}
