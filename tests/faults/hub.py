"""A Hub that fails: pushes, pulls and runs that push, against the local server by the real client (cases 47 to 52)."""

import contextlib
import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfImageProcessor

from . import harness
from .harness import Tally, valid

sys.path.append(str(Path(__file__).parents[1]))  # where the server is, when this is not run by pytest
from hub_server import Hub
from push_client import CallError, Client

REPO = "tester/tiny"
WRITES = ("create", "info", "preupload", "lfs_batch", "lfs_put", "validate", "commit", "branch", "tag")
READS = ("info", "head", "get")
PASSING = (*(("status", status) for status in (429, 500, 502, 503, 504)), ("reset", 0), ("hang", 0), ("lost_reply", 0),
           ("cut", 0))  # fmt: skip
_TRAIN = """
import contextlib, io, logging
from vit_hf.cli import main
with contextlib.redirect_stdout(io.StringIO()) as printed:
    handler = logging.StreamHandler(printed)
    logging.getLogger("vit_hf").addHandler(handler)
    code = main(WORDS)
    logging.getLogger("vit_hf").removeHandler(handler)
value = [code, printed.getvalue()]
"""
_RUN = ["train", "digits", "--max-steps", "3", "--checkpoint_steps", "1", "--checkpoint_limit", "9",
        "--trackers", "none", "--data.max_train_images", "64", "--data.max_test_images", "40"]  # fmt: skip


@contextlib.contextmanager
def hub_and_client(folder: Path) -> Iterator[tuple[Hub, Client]]:
    """A server, and a process with the real client."""
    with Hub() as hub, Client(hub, folder / "home") as client:
        yield hub, client


def save(folder: Path, seed: int = 0, **fields) -> Path:
    """A model folder with an image processor."""
    torch.manual_seed(seed)
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "num_labels": 3}  # fmt: skip
    network = VitHfForImageClassification(VitHfConfig(**{**sizes, **fields}))
    with torch.no_grad():
        network.classifier.weight.normal_()
    network.save_pretrained(folder)
    VitHfImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def settle(hub: Hub) -> None:
    """Empty the server and mend it."""
    hub.repos.clear()
    hub.mend()


def run_command(client: Client, line: str) -> tuple[int, str]:
    """Run a `vit-hf` command in the client; returns its code and what it printed."""
    words = shlex.split(line)[1:]
    return tuple(client.run(f"WORDS = {words!r}\n{_TRAIN}"))


def passing_faults(folder: Path) -> Tally:
    """One fault of every kind on every endpoint of a push, then all is well: one commit (case 47)."""
    tally, model = Tally(), save(folder / "model")
    with hub_and_client(folder) as (hub, client):
        for endpoint in WRITES:
            for how, status in PASSING:
                settle(hub)
                hub.fail(endpoint, how, status=status)
                name = f"{endpoint}, {how} {status or ''}"
                tally.counts["trials"] += 1
                try:
                    client.push(model, REPO, revision="dev", tag="v1")
                except CallError as error:
                    tally.problems.append(f"{name}: {error}")
                    continue
                commits = len(hub.repos["model", REPO].history("dev")) - 1
                tally.counts["commits too many"] += commits - 1
                tally.counts["seconds waited at most"] = max(tally.counts["seconds waited at most"], sum(client.pauses))
                tally.check(commits == 1, f"{name}: {commits} commits")
                tally.check(not hub._faults[endpoint][0].times, f"{name}: did not happen")
    return tally


def lasting_faults(folder: Path) -> Tally:
    """A fault that stays, on every endpoint: the tries end, the folder is as it was, the printed command works (47)."""
    tally, model = Tally(), save(folder / "model")
    before = harness.digest(model)
    with hub_and_client(folder) as (hub, client):
        for endpoint in WRITES:
            for how, status in (("status", 429), ("status", 503), ("reset", 0), ("hang", 0)):
                settle(hub)
                hub.fail(endpoint, how, status=status, times=10**6)
                name = f"{endpoint}, {how} {status or ''}, lasting"
                asked = len(hub.requests)
                tally.counts["trials"] += 1
                try:
                    client.push(model, REPO, revision="dev", tag="v1")
                    tally.problems.append(f"{name}: pushed")
                    continue
                except CallError as error:
                    message = str(error)
                requests, waited = len(hub.requests) - asked, sum(client.pauses)
                tally.counts["requests at most"] = max(tally.counts["requests at most"], requests)
                tally.counts["seconds waited at most"] = max(tally.counts["seconds waited at most"], waited)
                tally.check(requests < 50 and waited < 60, f"{name}: {requests} requests, {waited} s")
                tally.counts["local files changed"] += harness.digest(model) != before
                tally.check(harness.digest(model) == before, f"{name}: the folder has changed")
                hub.mend()
                code, _ = run_command(client, message.partition("to try again: ")[2] or "vit-hf none")
                commits = len(hub.repos["model", REPO].history("dev")) - 1 if hub.repos else 0
                tally.check((code, commits) == (0, 1), f"{name}: the command ended with {code}, {commits} commits")
    return tally


def runs_with_a_dead_hub(folder: Path, *, how: str) -> Tally:
    """Training with a push of every checkpoint to a dead endpoint: the run is bit for bit the same (case 47)."""
    tally = Tally()
    with hub_and_client(folder) as (hub, client):
        code, printed = run_command(client, shlex.join(["vit-hf", *_RUN, "--output", str(folder / "alone")]))
        tally.check(code == 0, f"without a Hub: {printed[-800:]}")
        reference = harness.digest(folder / "alone")["model.safetensors"]
        for endpoint in ("create", "info", "preupload", "lfs_batch", "lfs_put", "validate", "commit"):
            settle(hub)
            hub.fail(endpoint, how, times=10**6, status=503)
            run, name = folder / f"{endpoint}-{how}", f"a run with {endpoint}, {how}"
            push = ["--output", str(run), "--push-to-hub", REPO, "--hub-strategy", "every-checkpoint"]
            code, printed = run_command(client, shlex.join(["vit-hf", *_RUN, *push]))
            tally.counts["runs"] += 1
            tally.check(code == 0, f"{name}: exit code {code}: {printed[-800:]}")
            changed = harness.digest(run)["model.safetensors"] != reference
            tally.counts["different"] += changed
            tally.check(not changed, f"{name}: other weights")
            wrong = [valid(path) for path in (run / "checkpoints").glob("step-*")]
            tally.check(len(wrong) == 3 and not any(wrong), f"{name}: {wrong}")
            left = [path.name for path in run.rglob(".*push*")]
            tally.check(not left, f"{name}: left {left}")
            hub.mend()
            lines = [line for line in printed.splitlines() if f"vit-hf push {run} {REPO}" in line]
            tally.check(bool(lines), f"{name}: no command in {printed[-800:]}")
            code, printed = run_command(client, f"vit-hf push {run} {REPO}")
            tally.check(code == 0, f"{name}: the command ended with {code}: {printed[-500:]}")
            shutil.rmtree(run)
    return tally


def lost_answers(folder: Path) -> Tally:
    """The answer to a commit is lost once or often, or comes too late: never a second commit (case 48)."""
    tally, model = Tally(), save(folder / "model")
    with hub_and_client(folder) as (hub, client):
        for times in (1, 2, 9):
            for how in ("lost_reply", "cut", "flip"):
                for endpoint in ("commit", "create", "branch", "tag"):
                    if endpoint != "commit" and (how != "lost_reply" or times > 2):
                        continue
                    settle(hub)
                    hub.fail(endpoint, how, times=times)
                    client.push(model, REPO, revision="dev", tag="v1")
                    found = len(hub.repos["model", REPO].history("dev")) - 1
                    tally.counts["pushes"] += 1
                    tally.counts["commits too many"] += found - 1
                    tally.check(found == 1, f"{endpoint}, {how} x {times}: {found} commits")
    return tally


def refusals(folder: Path) -> Tally:
    """401, 403, 404 and 413 of every endpoint: asked once, no pause, and a remedy (case 49)."""
    tally, model = Tally(), save(folder / "model")
    with hub_and_client(folder) as (hub, client):
        for endpoint in WRITES:
            for status in (401, 403, 404, 413):
                settle(hub)
                hub.fail(endpoint, "status", times=10**6, status=status)
                name = f"{endpoint}, {status}"
                tally.counts["refusals"] += 1
                try:
                    client.push(model, REPO, revision="dev", tag="v1")
                    tally.problems.append(f"{name}: pushed")
                except CallError as error:
                    tally.check(f"the Hub answered {status}" in str(error), f"{name}: {error}")
                asked = 10**6 - hub._faults[endpoint][0].times
                tally.counts["tried again"] += asked - 1 + len(client.pauses)
                tally.check(asked == 1 and not client.pauses, f"{name}: asked {asked} times, waited {client.pauses}")
    return tally


def damaged_downloads(folder: Path) -> Tally:
    """Every file is cut, flipped, refused or reset once: the result is whole, or refused and then whole (case 50)."""
    tally, model = Tally(), save(folder / "model")
    with hub_and_client(folder) as (hub, client):
        client.push(model, REPO)
        files = [name for name in hub.files(REPO) if name != ".gitattributes"]
        for number in range(len(files)):
            for how in ("cut", "flip", "status", "reset", "hang"):
                hub.fail("get", how, after=number, status=503)
                place, name = folder / f"{how}-{number}", f"file {number}, {how}"
                tally.counts["downloads"] += 1
                try:
                    client.pull(REPO, place)
                    tally.check(how != "flip", f"{name}: taken")
                except CallError as error:
                    tally.counts["refused"] += 1
                    tally.check(how == "flip" and "came damaged" in str(error), f"{name}: {error}")
                    tally.check(not place.exists(), f"{name}: something was left at the output")
                    asked = len(hub.requests)
                    client.pull(REPO, place)
                    fetched = [line for line in hub.requests[asked:] if line.startswith("GET") and "/api/" not in line]
                    tally.check(len(fetched) == 1, f"{name}: fetched again: {fetched}")
                tally.counts["not whole"] += valid(place) is not None
                tally.check(valid(place) is None, f"{name}: {valid(place)}")
                hub.mend()
    return tally


def round_trips(folder: Path) -> Tally:
    """Push then pull: every file, tensor, logit and pixel is equal, for several members of the family (case 51)."""
    tally = Tally()
    members = {"cls": {}, "gap": {"pooling": "gap"}, "map": {"pooling": "map"}, "registers": {"num_register_tokens": 3},
               "scaled": {"layer_scale_init": 0.1, "qk_norm": True}, "swiglu": {"hidden_act": "swiglu"}}  # fmt: skip
    with hub_and_client(folder) as (_, client):
        for seed, (name, fields) in enumerate(members.items()):
            model = save(folder / name, seed, **fields)
            client.push(model, f"tester/{name}")
            back = client.pull(f"tester/{name}", folder / f"{name}-back")
            tally.counts["models"] += 1
            networks = [VitHfForImageClassification.from_pretrained(path).eval() for path in (model, back)]
            states = [network.state_dict() for network in networks]
            tally.check(states[0].keys() == states[1].keys(), f"{name}: other tensors")
            tally.check(all(torch.equal(states[0][key], states[1][key]) for key in states[0]), f"{name}: other weights")
            pictures = [torch.randint(0, 255, (3, 11, 9), dtype=torch.uint8) for _ in range(3)]
            processors = [VitHfImageProcessor.from_pretrained(path) for path in (model, back)]
            tally.check(processors[0].to_dict() == processors[1].to_dict(), f"{name}: another processor")
            pixels = [processor(pictures, return_tensors="pt").pixel_values for processor in processors]
            with torch.no_grad():
                logits = [network(x).logits for network, x in zip(networks, pixels, strict=True)]
            tally.check(torch.equal(*pixels), f"{name}: other pixels")
            tally.check(torch.equal(*logits), f"{name}: other logits")
            tally.counts["largest difference"] = max(
                tally.counts["largest difference"], (logits[0] - logits[1]).abs().max().item()
            )
    return tally


def what_leaves(folder: Path) -> Tally:
    """A run with secrets beside it: only listed files leave, and the token is in no byte of anything (case 52)."""
    tally, run = Tally(), folder / "run"
    with hub_and_client(folder) as (hub, client):
        token = hub.TOKEN
        push = ["--output", str(run), "--push-to-hub", REPO, "--hub-strategy", "every-checkpoint"]
        code, printed = run_command(client, shlex.join(["vit-hf", *_RUN, *push]))
        tally.check(code == 0, printed[-800:])
        places = {
            "sent": hub.received,
            "printed": [printed.encode(), client.log.encode()],
            "written": [path.read_bytes() for path in run.rglob("*") if path.is_file()],
            "kept by the Hub": [
                blob.body for repo in hub.repos.values() for c in repo.commits.values() for blob in c.files.values()
            ],
        }
        for place, blocks in places.items():
            tally.counts[f"bytes {place}"] = sum(map(len, blocks))
            tally.check(blocks and not any(token.encode() in block for block in blocks), f"the token was {place}")
        (run / ".env").write_text(f"HF_TOKEN={token}\n")
        (run / "training_args.bin").write_bytes(token.encode())
        (run / "optimizer.pt").write_bytes(b"state")
        (run / "notes.txt").write_text("mine")
        code, printed = run_command(client, f"vit-hf push {run} {REPO}")
        tally.check(code == 0, printed[-800:])
        for sha, _ in hub.log(REPO):
            names = set(hub.files(REPO, sha))
            tally.counts["commits"] += 1
            found = {name for name in names if not name.startswith(".eval_results/")} - _LISTED
            tally.check(not found, f"{sha[:8]} holds {sorted(found)}")
        manifest = json.loads(hub.files(REPO)["manifest.json"])
        for name, body in hub.files(REPO).items():
            if name not in ("manifest.json", ".gitattributes"):
                same = manifest[name]["sha256"] == hashlib.sha256(body).hexdigest()
                tally.check(same, f"{name} is not what the manifest says")
        (run / "metrics.jsonl").write_text(f'{{"note": "{token}"}}\n')
        code, printed = run_command(client, f"vit-hf push {run} {REPO}")
        tally.counts["files with a token refused"] += code == 1
        tally.check(code == 1 and token not in printed + client.log, f"a file with the token: {code} {printed[-500:]}")
    return tally


_LISTED = {".gitattributes", "README.md", "config.json", "configuration_vit_hf.py", "files_vit_hf.py",
           "image_processing_vit_hf.py", "inference_vit_hf.py", "masked_vit_hf.py",
           "learning_curves.png", "manifest.json", "metrics.jsonl", "model.safetensors", "modeling_vit_hf.py",
           "predictions.parquet", "preprocessor_config.json", "recipe.yaml", "results.json", "run.json"}  # fmt: skip
