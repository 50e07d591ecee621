"""A Space that serves the page of `demo`: a folder ready for `hf upload --repo-type space`.

The Space brings a copy of this package beside its `app.py`, so that it runs what was tried here, and needs no release
of the package on an index. A local model is loaded and saved anew into it: nothing of a run folder but weights, config,
processor, code, examples and the line of its scores gets in. Of a Hub model only the id is written down.
"""

import shutil
import sys
from importlib.metadata import requires, version
from pathlib import Path

from huggingface_hub import SpaceCardData

from ..checkpoints.load import load_model
from .demo import find_examples, read_results, say_results

_PACKAGE = Path(__file__).resolve().parents[1]
_MODEL = "model"

_APP = '''"""Serve the page to try a model; README.md tells the rest."""

from pathlib import Path

from vit_hf.sharing.demo import build_page, launch

page = build_page({model}, name={name!r}, scores={scores!r})
print("page:", launch(page), flush=True)
page.block_thread()
'''
_README = """---
{metadata}
---

# {name}

Drop a picture and see what a Vision Transformer takes it for, what it saw of it, and where it looked.{link}

```bash
pip install "gradio=={gradio}" -r requirements.txt
python app.py
```
"""


def write_space(path_or_hub_id: str | Path, output: str | Path) -> Path:
    """Write a Space folder: app.py, requirements.txt, README.md, this package, and a local model.

    Args:
        path_or_hub_id: as `load_model` takes it. A Hub id is loaded by the Space when it starts; a private one needs a
            token in the Space's secrets.
        output: folder to make; an empty one may be there.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds something, or is a file.
        ValueError, OSError: see `load_model`; the folder is not made then.
    """
    folder = Path(output)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; give a new folder for the Space, or remove this one first")
    source, local = Path(path_or_hub_id), Path(path_or_hub_id).exists()
    model, processor = load_model(path_or_hub_id)
    name = source.resolve().name if local else str(path_or_hub_id)
    folder.mkdir(parents=True, exist_ok=True)
    if local:
        model.save_pretrained(folder / _MODEL)
        processor.save_pretrained(folder / _MODEL)
        for example in find_examples(source):
            (folder / _MODEL / "examples").mkdir(exist_ok=True)
            shutil.copy(example, folder / _MODEL / "examples")
    shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    needed = [line for line in requires("vit-hf") or [] if "extra ==" not in line]
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")
    scores = say_results(read_results(source)) if local else None
    where = f'Path(__file__).parent / "{_MODEL}"' if local else repr(str(path_or_hub_id))
    (folder / "app.py").write_text(_APP.format(model=where, name=name, scores=scores), encoding="utf-8")
    (folder / "README.md").write_text(_card(name, None if local else str(path_or_hub_id)), encoding="utf-8")
    return folder


def _card(name: str, hub_id: str | None) -> str:
    gradio = version("gradio")
    data = SpaceCardData(
        title=name,
        emoji="🖼️",
        colorFrom="blue",
        colorTo="indigo",
        sdk="gradio",
        sdk_version=gradio,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        models=[hub_id] if hub_id else None,
        tags=["vit_hf", "vision-transformer"],
        pinned=False,
    )
    link = f"\nThe model: [{hub_id}](https://huggingface.co/{hub_id})." if hub_id else ""
    return _README.format(metadata=data.to_yaml(), name=name, link=link, gradio=gradio)


__all__ = ["write_space"]
