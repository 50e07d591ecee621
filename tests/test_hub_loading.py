"""Models on the Hub: loaded by their id where nothing of this package is installed, from a clean cache, bit by bit.

Few processes, each of which does all that can be done in it, since the clients read their variables when they are
imported: an owner, who has the package and pushes; a stranger, who has not and loads; the stranger again, offline; and
one who is asked and says nothing.
"""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import WITHOUT_PACKAGE
from hub_server import Hub
from PIL import Image

OWNER = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from huggingface_hub import HfApi
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling,
    pipeline,
)
import vit_hf

api, found, outputs = HfApi(), {}, {}
pixels, picture = torch.load("pixels.pt", weights_only=True), Image.open("picture.png")
sizes = {"image_size": [16, 24], "patch_size": [4, 8], "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 64, "num_register_tokens": 2, "qk_norm": True,
         "id2label": {0: "ant", 1: "bee", 2: "cat"}}

def make(seed, kind=vit_hf.VitHfForImageClassification):
    torch.manual_seed(seed)
    model = kind(vit_hf.VitHfConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model

def push(model, repo, **options):
    commit = model.push_to_hub(repo, private=True, **options).oid
    vit_hf.VitHfImageProcessor(size=(16, 24)).push_to_hub(repo, private=True, **options)
    return api.model_info(repo, revision=options.get("revision")).sha

@torch.no_grad()
def keep(name, model):
    outputs[f"{name} logits"] = model(pixels).logits
    outputs[f"{name} tokens"] = model.vit(pixels).last_hidden_state

def mark(repo, text, revision=None):
    code = Path(vit_hf.modeling_vit_hf.__file__).read_text() + f"\\nMARK = {text!r}\\n"
    return api.upload_file(path_or_fileobj=code.encode(), path_in_repo="modeling_vit_hf.py", repo_id=repo,
                           revision=revision).oid

for name, seed in (("first", 0), ("second", 1), ("other", 2)):
    keep(name, make(seed))
push(make(0), "me/insects")
found["first"] = mark("me/insects", "first")
api.create_tag("me/insects", tag="v1")
push(make(1), "me/insects")
found["second"] = mark("me/insects", "second")
push(make(2), "me/insects", revision="other")
mark("me/insects", "other", revision="other")

masked = make(3, vit_hf.VitHfForMaskedImageModeling)
push(masked, "me/masked")
outputs["masked tokens"] = masked.vit(pixels).last_hidden_state.detach()

run = vit_hf.train("digits", output="run", max_steps=2, **{"data.max_train_images": 32, "data.max_test_images": 8,
                   "trackers": "none"}).output
api.create_repo("me/digits-run", private=True)
api.upload_folder(repo_id="me/digits-run", folder_path=run)
processor = vit_hf.VitHfImageProcessor.from_pretrained(run)
model = vit_hf.VitHfForImageClassification.from_pretrained(run)
outputs["run logits"] = model(**processor(picture, return_tensors="pt")).logits.detach()

# the package is here: its own classes answer, with the flag and without
classes = []
for flag in ({}, {"trust_remote_code": True}):
    for load in (AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling,
                 AutoImageProcessor):
        loaded = load.from_pretrained("me/insects", **flag)
        classes.append(f"{type(loaded).__module__}.{type(loaded).__name__}")
    classes.append(type(AutoImageProcessor.from_pretrained("me/insects", backend="pil", **flag)).__module__)
    classes.append(type(pipeline("image-classification", model="me/insects", **flag).model).__module__)
with torch.no_grad():
    loaded = AutoModelForImageClassification.from_pretrained("me/insects", revision="v1")
    found["package_logits"] = torch.equal(loaded(pixels).logits, outputs["first logits"])
found["classes"] = classes
found["remote_modules"] = [name for name in sys.modules if name.startswith("transformers_modules")]
torch.save(outputs, "expected.pt")
Path("owner.json").write_text(json.dumps(found))
"""

STRANGER = """
import json, sys, time
from pathlib import Path

class Stdin:
    reads = 0
    def readline(self, *_):
        Stdin.reads += 1
        return ""  # nobody is there

sys.stdin = Stdin()
from huggingface_hub import HfApi
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling,
    Trainer, TrainingArguments, pipeline,
)

owner, where = json.loads(Path("owner.json").read_text()), sys.argv[1]
pixels, picture = torch.load("pixels.pt", weights_only=True), Image.open("picture.png")
outputs, found = {}, {"marks": {}}
trust = {"trust_remote_code": True}

# without the flag nothing runs and nobody is asked twice
refusals, started = {}, time.monotonic()
loaders = (AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling, AutoImageProcessor)
tries = [(load.__name__, load.from_pretrained) for load in loaders]
tries.append(("pipeline", lambda repo, **flag: pipeline("image-classification", model=repo, **flag)))
for name, load in tries:
    for flag in ({}, {"trust_remote_code": False}):
        try:
            load("me/insects", **flag)
            refusals[f"{name} {flag}"] = "loaded"
        except ValueError as error:
            refusals[f"{name} {flag}"] = str(error)
found["refusals"], found["refusal_seconds"] = refusals, time.monotonic() - started
found["run_unasked"] = [name for name in sys.modules if name.startswith("transformers_modules.")]
Stdin.reads = 0

@torch.no_grad()
def load_all(name, repo, **revision):
    options = {**trust, **revision}
    classifier = AutoModelForImageClassification.from_pretrained(repo, **options)
    outputs[f"{name} logits"] = classifier(pixels).logits
    outputs[f"{name} tokens"] = AutoModel.from_pretrained(repo, **options)(pixels).last_hidden_state
    masked = AutoModelForMaskedImageModeling.from_pretrained(repo, **options)
    outputs[f"{name} masked tokens"] = masked.vit(pixels).last_hidden_state
    config = AutoConfig.from_pretrained(repo, **options)
    found["marks"][name] = [sys.modules[type(classifier).__module__].MARK, config.id2label[2]]

load_all("default", "me/insects")
load_all("tag", "me/insects", revision="v1")
load_all("commit", "me/insects", revision=owner["first"])
load_all("branch", "me/insects", revision="other")
with torch.no_grad():
    model = AutoModelForImageClassification.from_pretrained("me/insects", code_revision="v1", **trust)
    outputs["pinned code logits"] = model(pixels).logits
    found["marks"]["pinned code"] = sys.modules[type(model).__module__].MARK

    # the two image processors, and the pipeline
    for backend in ("torchvision", "pil"):
        processor = AutoImageProcessor.from_pretrained("me/insects", backend=backend, **trust)
        values = processor(picture, return_tensors="pt")["pixel_values"]
        found[backend] = [type(processor).__name__, type(processor).__module__.split(".")[0], list(values.shape)]
    found["pipeline"] = pipeline("image-classification", model="me/insects", **trust)(picture)
    model = pipeline("image-classification", model="me/insects", revision="v1", **trust).model
    found["marks"]["pipeline"] = sys.modules[type(model).__module__].MARK
    outputs["pipeline logits"] = model(pixels).logits

    # the whole folder of a run
    model = AutoModelForImageClassification.from_pretrained("me/digits-run", **trust)
    processor = AutoImageProcessor.from_pretrained("me/digits-run", **trust)
    outputs["run logits"] = model(**processor(picture, return_tensors="pt")).logits
    found["run_pipeline"] = pipeline("image-classification", model="me/digits-run", top_k=10, **trust)(picture)

    # another head than the one that was saved
    found["heads"] = {}
    for name, auto, repo in (("masked", AutoModelForMaskedImageModeling, "me/insects"),
                             ("classifier", AutoModelForImageClassification, "me/masked")):
        model, info = auto.from_pretrained(repo, output_loading_info=True, **trust)
        found["heads"][name] = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys")}
        outputs[f"{name} head tokens"] = model.vit(pixels).last_hidden_state
        outputs[f"{name} head"] = model(pixels)[0]

# two steps with the stock Trainer, from the Hub and back
torch.manual_seed(0)
model = AutoModelForImageClassification.from_pretrained("me/insects", num_labels=2, **trust)
before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
rows = [{"pixel_values": pixels[row % len(pixels)], "labels": row % 2} for row in range(8)]
told = TrainingArguments(f"tuned-{where}", max_steps=2, per_device_train_batch_size=4, report_to="none",
                         logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True, learning_rate=1e-2)
trainer = Trainer(model, told, train_dataset=rows)
trainer.train()
found["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
found["unchanged"] = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
trainer.save_model()
again = AutoModelForImageClassification.from_pretrained(f"tuned-{where}", **trust)
with torch.no_grad():
    outputs["tuned"], outputs["tuned again"] = model.eval()(pixels).logits, again(pixels).logits
found["tuned_files"] = sorted(path.name for path in Path(f"tuned-{where}").iterdir())

found["reads"] = Stdin.reads
found["package"] = [name for name in sys.modules if name.split(".")[0] == "vit_hf"]
torch.save(outputs, f"{where}.pt")
Path(f"{where}.json").write_text(json.dumps(found))
"""


def run(script, folder, environment, *arguments, **options):
    done = subprocess.run(
        [sys.executable, *options.pop("flags", []), "-c", script, *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        **{"stdin": subprocess.DEVNULL, **options},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """What the owner says; the folder holds what the model gave before it was pushed."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(1)
    torch.save(torch.randn(2, 3, 16, 24), folder / "pixels.pt")
    colours = torch.randint(0, 255, (20, 30, 3), dtype=torch.uint8)
    Image.fromarray(colours.numpy()).save(folder / "picture.png")
    run(OWNER, folder, hub.environment(folder / "owner"))
    return (
        json.loads((folder / "owner.json").read_text()),
        torch.load(folder / "expected.pt", weights_only=True),
        folder,
    )


@pytest.fixture(scope="module")
def stranger(hub, pushed):
    """Give a function: what a process without the package finds, "online" with a clean cache, or "offline" after it."""
    folder = pushed[2]
    environment = hub.environment(folder / "stranger")

    @functools.cache
    def load(where):
        switches = {}
        if where == "offline":
            load("online")
            switches = {"HF_HUB_OFFLINE": "1"}
        asked = list(hub.requests)
        run(WITHOUT_PACKAGE + STRANGER, folder, {**environment, **switches}, where, flags=["-I"])
        assert (hub.requests == asked) == (where == "offline")
        outputs = torch.load(folder / f"{where}.pt", weights_only=True)
        return json.loads((folder / f"{where}.json").read_text()), outputs

    return load


WHERE = pytest.mark.parametrize("where", ["online", pytest.param("offline", marks=pytest.mark.slow)])


# ------------------------------------------------------------------------------------------- with the package
def test_with_the_package_its_own_classes_answer_with_the_flag_and_without(pushed):
    found = pushed[0]
    modeling, images = "vit_hf.modeling_vit_hf", "vit_hf.image_processing_vit_hf"
    expected = [
        "vit_hf.configuration_vit_hf.VitHfConfig",
        f"{modeling}.VitHfModel",
        f"{modeling}.VitHfForImageClassification",
        "vit_hf.masked_vit_hf.VitHfForMaskedImageModeling",
        f"{images}.VitHfImageProcessor",
        images,
        modeling,
    ]
    assert found["classes"] == expected * 2
    assert found["remote_modules"] == []
    assert found["package_logits"]


# ------------------------------------------------------------------------------------------- without it
@WHERE
def test_nobody_is_asked_and_the_package_is_not_there(where, stranger):
    found = stranger(where)[0]
    assert found["reads"] == 0
    assert found["package"] == []


@WHERE
@pytest.mark.parametrize(
    ("name", "model"), [("default", "second"), ("tag", "first"), ("commit", "first"), ("branch", "other")]
)
def test_every_class_gives_the_pushed_models_bits_at_every_revision(name, model, where, stranger, pushed):
    expected, (found, outputs) = pushed[1], stranger(where)
    assert torch.equal(outputs[f"{name} logits"], expected[f"{model} logits"])
    assert torch.equal(outputs[f"{name} tokens"], expected[f"{model} tokens"])
    assert torch.equal(outputs[f"{name} masked tokens"], expected[f"{model} tokens"])
    assert found["marks"][name] == [model, "cat"]  # the code is that of the revision too


@WHERE
def test_code_can_be_pinned_apart_from_weights(where, stranger, pushed):
    found, outputs = stranger(where)
    assert found["marks"]["pinned code"] == "first"
    assert torch.equal(outputs["pinned code logits"], pushed[1]["second logits"])


@WHERE
def test_both_image_processors_and_the_pipeline_load(where, stranger, pushed):
    found, outputs = stranger(where)
    assert found["torchvision"] == ["VitHfImageProcessor", "transformers_modules", [1, 3, 16, 24]]
    assert found["pil"] == ["VitHfImageProcessorPil", "transformers_modules", [1, 3, 16, 24]]
    assert {answer["label"] for answer in found["pipeline"]} == {"ant", "bee", "cat"}
    assert sum(answer["score"] for answer in found["pipeline"]) == pytest.approx(1, abs=1e-5)
    assert found["marks"]["pipeline"] == "first"  # of the revision that was asked for
    assert torch.equal(outputs["pipeline logits"], pushed[1]["first logits"])


@WHERE
def test_the_whole_folder_of_a_run_is_a_model_repo(where, stranger, pushed, hub):
    found, outputs = stranger(where)
    assert any(name.startswith("checkpoints/") for name in hub.files("me/digits-run"))
    assert torch.equal(outputs["run logits"], pushed[1]["run logits"])
    scores = {answer["label"]: answer["score"] for answer in found["run_pipeline"]}
    here = pushed[1]["run logits"].softmax(-1)[0]
    assert [scores[str(digit)] for digit in range(10)] == pytest.approx(here.tolist(), abs=1e-6)


@WHERE
def test_another_head_than_the_saved_one_is_new_and_reported(where, stranger, pushed):
    expected, (found, outputs) = pushed[1], stranger(where)
    masked, classifier = found["heads"]["masked"], found["heads"]["classifier"]
    assert any(name.startswith("decoder.") for name in masked["missing_keys"])
    assert masked["unexpected_keys"] == ["classifier.bias", "classifier.weight"]
    assert classifier["missing_keys"] == ["classifier.bias", "classifier.weight"]
    assert torch.equal(outputs["masked head tokens"], expected["second tokens"])
    assert torch.equal(outputs["classifier head tokens"], expected["masked tokens"])
    assert torch.equal(outputs["classifier head"], torch.zeros(2, 3))


@WHERE
def test_the_stock_trainer_fine_tunes_a_model_of_the_hub(where, stranger):
    found, outputs = stranger(where)
    assert len(found["losses"]) == 2
    assert found["losses"][0] == pytest.approx(0.6931, abs=1e-4)  # ln 2: the new head begins at zero
    assert found["losses"][1] != found["losses"][0]
    assert found["unchanged"] == []
    assert torch.equal(outputs["tuned again"], outputs["tuned"])
    assert {"modeling_vit_hf.py", "configuration_vit_hf.py"} <= set(found["tuned_files"])


@WHERE
def test_without_the_flag_the_error_names_it_and_nothing_runs(where, stranger):
    found = stranger(where)[0]
    assert len(found["refusals"]) == 12
    for case, message in found["refusals"].items():
        assert "trust_remote_code=True" in message, case
    assert found["run_unasked"] == []
    assert found["refusal_seconds"] < 10


@pytest.mark.slow
def test_who_says_nothing_when_asked_gets_the_error_after_the_time_that_transformers_waits(hub, pushed):
    script = """
import time
from transformers import pipeline

started = time.monotonic()
try:
    pipeline("image-classification", model="me/insects")
except ValueError as error:
    print("REFUSED", "trust_remote_code=True" in str(error), time.monotonic() - started < 20)
"""
    reading, writing = os.pipe()  # open, and silent
    try:
        environment = hub.environment(pushed[2] / "silent")
        done = run(WITHOUT_PACKAGE + script, pushed[2], environment, flags=["-I"], stdin=reading)
    finally:
        os.close(reading)
        os.close(writing)
    assert "REFUSED True True" in done.stdout
