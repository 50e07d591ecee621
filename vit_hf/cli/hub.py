"""`vit-hf push`, `pull`."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from .words import Add


def add_commands(add: Add) -> None:
    """Add the commands that send a model repo to the Hub and fetch one."""
    push = add("push", _push, "Push a run or model folder to the Hub: one commit of the files of a model repo.")
    push.add_argument("folder", metavar="FOLDER", help="finished run, checkpoint of one, or saved model")
    push.add_argument("repo", metavar="OWNER/NAME", help="made when it is not there")
    push.add_argument("--public", action="store_true", help="make a new repo public, not private")
    push.add_argument("--revision", metavar="R", help="branch (default: main), made when it is not there")
    push.add_argument("--tag", metavar="T", help="tag the commit")
    push.add_argument("--license", metavar="L", help="for the card, such as apache-2.0")
    push.add_argument("--message", metavar="M", help="of the commit")

    pull = add("pull", _pull, "Fetch a model repo from the Hub and prove it by its manifest.")
    pull.add_argument("repo", metavar="OWNER/NAME")
    pull.add_argument("output", metavar="OUT", help="new folder")
    pull.add_argument("--revision", metavar="R", help="branch, tag or commit (default: main)")


def _push(options: argparse.Namespace) -> int:
    from ..sharing.hub import push

    _show_progress()
    pushed = push(
        options.folder,
        options.repo,
        private=not options.public,
        revision=options.revision,
        tag=options.tag,
        license=options.license,
        message=options.message,
    )
    who = "private: only you and your organisation see it" if pushed.is_private else "public"
    print(f"{pushed.url} ({who})")
    print(f"commit {pushed.commit}" + ("" if pushed.is_new else " (nothing has changed since)"))
    name = options.repo.partition("/")[2]
    revision = ["--revision", options.tag or options.revision] if options.tag or options.revision else []
    config = json.loads((Path(options.folder) / "config.json").read_text(encoding="utf-8"))
    is_classifier = "VitHfForImageClassification" in (config.get("architectures") or ())
    auto = "AutoModelForImageClassification" if is_classifier else "AutoModel"
    where = f"{options.repo!r}, revision={pushed.commit!r}, trust_remote_code=True"
    lines = [shlex.join(["vit-hf", "pull", options.repo, name, *revision])]
    if (Path(options.folder) / "results.json").is_file():
        lines.append(shlex.join(["vit-hf", "reproduce", options.repo, *revision]))
    lines.append(f'python -c "from transformers import {auto}; print({auto}.from_pretrained({where}))"')
    print("\nnext:")
    for line in lines:
        print(f"  {line}")
    return 0


def _pull(options: argparse.Namespace) -> int:
    from ..sharing.hub import pull

    _show_progress()
    folder = pull(options.repo, options.output, revision=options.revision)
    count = sum(1 for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {count} files of {options.repo}, equal to the manifest that was pushed with them")
    where = shlex.quote(str(folder))
    print(f"\nnext:\n  vit-hf evaluate {where}\n  vit-hf predict {where} PICTURE.jpg")
    return 0


def _show_progress() -> None:
    """Let the client show what it sends and fetches, where somebody looks; `main` has hidden all bars."""
    from huggingface_hub.utils import enable_progress_bars

    if sys.stderr.isatty() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        enable_progress_bars()
