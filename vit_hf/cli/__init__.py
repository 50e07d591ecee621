"""The command `vit-hf`: parse, call the package, print. Modules of this room hold a few commands each."""

import argparse
import re
import signal
import sys
import threading
from collections.abc import Sequence

from transformers.utils import logging

from .. import __version__
from . import (
    audit,
    compare,
    dataset,
    demo,
    evaluation,
    export,
    hub,
    inspection,
    models,
    probe,
    report,
    reproduce,
    training,
    weights,
)
from .memory import keep_freed_memory

DESCRIPTION = "Train, evaluate, convert, share and look at Vision Transformers in the Hugging Face ecosystem."
_IN_A_LOADER = re.compile(
    r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback .*^[\w.]*\1: ", re.DOTALL | re.MULTILINE
)
ROOMS = (
    training,
    evaluation,
    models,
    inspection,
    compare,
    audit,
    report,
    reproduce,
    hub,
    dataset,
    demo,
    export,
    weights,
    probe,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done; 1 an error, the message tells how to mend it; 2 usage; 75 training was stopped by SIGTERM or Ctrl-C and can
    be resumed; 130 Ctrl-C elsewhere, or twice; 143 SIGTERM elsewhere.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.takes_fields:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = rest
    keep_freed_memory()
    in_main_thread = threading.current_thread() is threading.main_thread()
    takes_signal = in_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if takes_signal:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that half-made files are removed
    logging.disable_progress_bar()  # of loading and saving weights; ours show what takes long
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except _user_errors() as error:
        if options.debug:
            raise
        print(f"vit-hf {options.command}: error: {_clean(error)}", file=sys.stderr)
        return 1
    finally:
        if takes_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="vit-hf", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"vit-hf {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run, text: str, takes_fields: bool = False, **options) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[common], help=text, description=text, **options)
        command.set_defaults(run=run, takes_fields=takes_fields)
        return command

    for room in ROOMS:
        room.add_commands(add)
    return parser


def _user_errors() -> tuple[type[Exception], ...]:
    """What a user can mend; anything else is a fault of ours and keeps its traceback."""
    from huggingface_hub.errors import StrictDataclassError

    return (ValueError, OSError, FloatingPointError, MemoryError, StrictDataclassError)


def _clean(error: Exception) -> str:
    """The message without the wrapping of validators, or the traceback that torch adds to it in a loader process."""
    cause = error.__cause__
    text = str(cause) if type(error).__name__.startswith("StrictDataclass") and cause is not None else str(error)
    return _IN_A_LOADER.sub("", text) or type(error).__name__
