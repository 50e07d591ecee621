"""`vit-hf push-data`."""

import argparse
import shlex
import sys

from .words import Add, read_overrides

_FIELDS = ("image_column", "label_column", "config_name", "revision")


def add_commands(add: Add) -> None:
    """Add the command about data sets."""
    push = add(
        "push-data",
        _push_data,
        "Check every picture of an image set and push it to a data set repo, with its card.",
        takes_fields=True,
        epilog=f"What to read of SOURCE can be set as for `vit-hf train`: {', '.join(f'--data.{f}' for f in _FIELDS)}.",
    )
    push.add_argument("source", metavar="SOURCE", help="folder, Parquet, CIFAR archive, saved set, Hub id, or digits")
    push.add_argument("repo", metavar="OWNER/NAME", help="data set repo; made where there is none")
    push.add_argument("--public", action="store_true", help="for everybody to see (default: private)")
    push.add_argument("--license", metavar="L", help="the Hub's name of a licence, such as cc-by-4.0")
    push.add_argument("--revision", metavar="R", help="branch to push to (default: main)")
    push.add_argument("--replace", action="store_true", help="replace another data set that the repo holds")


def _push_data(options: argparse.Namespace) -> int:
    from transformers.utils import logging

    from ..sharing.dataset import push_data

    fields = {name.removeprefix("data."): value for name, value in read_overrides(options.overrides).items()}
    if unknown := sorted(set(fields) - set(_FIELDS)):
        raise ValueError(
            f"--{unknown[0]} is no option of push-data; expected one of --data.{', --data.'.join(_FIELDS)}"
        )
    if sys.stderr.isatty():
        logging.enable_progress_bar()  # also of uploads
    try:
        pushed = push_data(
            options.source,
            options.repo,
            private=not options.public,
            license=options.license,
            revision=options.revision,
            replace=options.replace,
            reading=fields,
        )
    except (ConnectionError, PermissionError) as error:
        raise type(error)(f"{error}; to retry: {_retry_command(options)}") from error
    record, pictures = pushed.record, pushed.record["pictures"]
    visible = "private" if pushed.private else "public"
    if not pushed.is_new:
        print(f"{pushed.url} ({visible}) holds this already, at commit {pushed.commit}: nothing was sent")
        return 0
    splits = ", ".join(f"{name} {split['n']:,}" for name, split in record["splits"].items())
    print(
        f"{splits} pictures in {len(record['label_names']):,} classes: {pushed.url} ({visible}), commit {pushed.commit}"
    )
    if options.public and pushed.private:
        print("the repo was there before and stays private; change that in its settings on the Hub")
    if record["left_out_columns"]:
        print(f"left out, neither pictures nor labels: columns {', '.join(record['left_out_columns'])}")
    print(
        f"the files went up as they are, with what is in them: {pictures['with_exif']:,} have EXIF, "
        f"{pictures['with_gps']:,} tell where they were taken"
    )
    at = f" --data.revision {shlex.quote(options.revision)}" if options.revision else ""
    print(f"\nnext:\n  vit-hf train RECIPE --data {options.repo}{at}")
    return 0


def _retry_command(options: argparse.Namespace) -> str:
    words = ["vit-hf", "push-data", options.source, options.repo]
    words += [
        word for name in ("license", "revision") if (value := getattr(options, name)) for word in (f"--{name}", value)
    ]
    words += [f"--{name}" for name in ("public", "replace") if getattr(options, name)]
    return shlex.join([*words, *options.overrides])
