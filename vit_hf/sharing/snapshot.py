"""What leaves a folder: a frozen copy of the files of a model repo, chosen by name, and a manifest of what they hold.

Optimiser state, logs, `.env` and pickles are on no list, so they cannot be among the files. The copy is a model repo of
its own: card and scores are rendered anew from the records in it, and records carry no path of this machine.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open

from ..training.state import MANIFEST, describe_files
from .card import eval_result_files, render_card

CODE = (
    "configuration_vit_hf.py",
    "files_vit_hf.py",
    "inference_vit_hf.py",
    "masked_vit_hf.py",
    "modeling_vit_hf.py",
    "image_processing_vit_hf.py",
)
RECORDS = ("recipe.yaml", "run.json", "results.json", "receipt.json")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NAMES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        _INDEX,
        "README.md",
        "metrics.jsonl",
        "predictions.parquet",
        "learning_curves.png",
        MANIFEST,
        *CODE,
        *RECORDS,
    }
)
_WEIGHT_FILE = re.compile(r"model[\w.-]*\.safetensors")
_EVAL_RESULT = re.compile(r"\.eval_results/\w[\w.-]*\.ya?ml")
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PATH = re.compile(r"""(?<![^\s="'])(?:file://)?(?:~|/|[A-Za-z]:[\\/])[^\s"']*""")
_PATH_FIELDS = ("source", "init_from", "origin")


def is_allowed(name: str) -> bool:
    """Whether a file of this relative name belongs to a model repo as it is pushed and pulled."""
    return name in _NAMES or is_weights(name) or bool(_EVAL_RESULT.fullmatch(name))


def is_weights(name: str) -> bool:
    """Whether a file of this relative name holds weights, or says where they are."""
    return name == _INDEX or bool(_WEIGHT_FILE.fullmatch(name))


def snapshot(
    folder: str | Path, target: str | Path, *, license: str | None = None, repo: str | None = None
) -> list[str]:
    """Copy the model repo that a folder holds, as it is now, into an empty folder.

    Weights that a run has published are hard-linked: they are replaced by renaming, so what happens to the run folder
    later does not reach the copy. Everything else, and weights of other folders, are copied.

    Args:
        folder: a finished run, a checkpoint or best model in one, or any folder that `save_pretrained` wrote.
        target: an empty folder on any file system.
        license: for the card, an identifier of the Hub such as "apache-2.0"; None for what the folder's card says.
        repo: for the card, the Hub id that its code loads; None likewise.

    Returns:
        The names of the files, sorted; "manifest.json" among them.

    Raises:
        ValueError: there is no model in the folder, the run is not finished, a file holds a token, or is a link to
            somewhere else; the message names it.
        OSError: a file cannot be read or written.
    """
    freeze(folder, target)
    return complete(target, license=license, repo=repo)


def freeze(folder: str | Path, target: str | Path) -> None:
    """Do the part of `snapshot` that must be done before the folder changes; arguments and errors as there."""
    folder, target = Path(folder), Path(target)
    if any(target.iterdir()):
        raise ValueError(f"{target} is not empty; expected an empty folder for the snapshot")
    check_model(folder)
    link = _is_published(folder)
    for name in _files(folder):
        source, copy = folder / name, target / name
        if not source.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{source} is a link to a place outside of the folder; put the file itself there")
        copy.parent.mkdir(exist_ok=True)
        if link and is_weights(name):
            try:
                os.link(source.resolve(), copy)
                continue
            except OSError:  # another file system, or one without hard links
                pass
        shutil.copyfile(source, copy)


def complete(target: str | Path, *, license: str | None = None, repo: str | None = None) -> list[str]:
    """Do the rest of `snapshot` in the copy: clean records, render the card, look for tokens, write the manifest."""
    target = Path(target)
    (target / MANIFEST).unlink(missing_ok=True)  # that of a checkpoint, which lists other files
    for name in RECORDS:
        if (target / name).is_file():
            _clean_record(target / name)
    rendered = {"README.md": render_card([target], license=license, repo=repo), **eval_result_files(target)}
    for name, text in rendered.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).unlink(missing_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    names = _files(target)
    _refuse_tokens(target, names)
    (target / MANIFEST).write_text(json.dumps(describe_files(target), indent=2) + "\n", encoding="utf-8")
    return sorted([*names, MANIFEST])


def check_model(folder: Path) -> None:
    """Raise ValueError when a folder has no whole model at its root; says which it may be that was meant."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; expected a run folder, or one that save_pretrained wrote")
    index, weights = folder / _INDEX, folder / _WEIGHTS
    if not weights.is_file() and not index.is_file():
        steps = sorted((folder / "checkpoints").glob("step-*"))
        if steps or (folder / "recipe.yaml").is_file():
            other = f", or push its newest checkpoint {steps[-1]}" if steps else ""
            raise ValueError(
                f"{folder} is a run that is not finished (it has no {_WEIGHTS}); go on with "
                f"vit-hf train {shlex.quote(str(folder / 'recipe.yaml'))} --resume {shlex.quote(str(folder))}{other}"
            )
        raise ValueError(f"{folder} has no {_WEIGHTS}; expected a run folder, or one that save_pretrained wrote")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; expected a run folder, or one that save_pretrained wrote")
    for name in [_WEIGHTS] if weights.is_file() else sorted(_shards(index)):
        if not is_weights(name) or not (folder / name).is_file():
            raise ValueError(f"{index} lists {name!r}, which is not there; save the model again")
        try:
            with safe_open(folder / name, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / name} is no whole safetensors file ({error}); save the model again") from error


def _shards(index: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is no index of weights ({error}); save the model again") from error


def _is_published(folder: Path) -> bool:
    """Whether the weights in a folder are those of `RunFolder`, which are replaced by renaming, never written over."""
    is_checkpoint = folder.parent.name == "checkpoints" and bool(re.fullmatch(r"(step|best)-\d{8,}", folder.name))
    return is_checkpoint or (folder / "recipe.yaml").is_file()


def _files(folder: Path) -> list[str]:
    """Names of the files of a model repo in a folder."""
    found = [path for path in (*folder.iterdir(), *(folder / ".eval_results").glob("*")) if path.is_file()]
    return sorted(name for name in (path.relative_to(folder).as_posix() for path in found) if is_allowed(name))


# ------------------------------------------------------------------------------------------- what must not leave
def _clean_record(path: Path) -> None:
    """Rewrite a record so that it holds no path of this machine; one that holds none stays as it is."""
    text = path.read_text(encoding="utf-8")
    value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    cleaned = _clean(value)
    if cleaned != value:
        path.unlink()
        dumped = yaml.safe_dump(cleaned, sort_keys=False) if path.suffix == ".yaml" else json.dumps(cleaned, indent=2)
        path.write_text(dumped.rstrip("\n") + "\n", encoding="utf-8")


def _clean(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _clean(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if len(Path.home().parts) > 1:
        value = value.replace(str(Path.home()) + os.sep, "~/")
    if key in _PATH_FIELDS and _PATH.match(value):
        return last_name(value)
    return _PATH.sub(lambda found: last_name(found[0]), value) if key == "command" else value


def last_name(path: str) -> str:
    """Return the last name of a path in the manner of any system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _refuse_tokens(folder: Path, names: Iterable[str]) -> None:
    """Raise ValueError when files, or the descriptions in front of weights, hold a token of the Hub."""
    known = {get_token(), *(os.environ.get(name) for name in _TOKEN_VARIABLES)}
    secrets = [token.strip().encode() for token in known if token and len(token.strip()) >= 8]
    found = []
    for name in names:
        with open(folder / name, "rb") as file:
            size = 8 + int.from_bytes(file.read(8), "little") if _WEIGHT_FILE.fullmatch(name) else -1
            file.seek(0)
            content = file.read(size)
        if _TOKEN.search(content) or any(secret in content for secret in secrets):
            found.append(name)
    if found:
        raise ValueError(
            f"{' and '.join(found)} holds a token of the Hub; take it out (and revoke it, if others have seen it)"
        )
