"""`vit-hf reproduce`."""

import argparse

from .words import Add


def add_commands(add: Add) -> None:
    """Add the command that checks what a model repo claims."""
    reproduce = add(
        "reproduce",
        _reproduce,
        "Recompute what a model repo claims from its files and the data; exit code 1 if anything differs.",
    )
    reproduce.add_argument("model", metavar="REPO_OR_FOLDER", help="run folder, or Hub id, which is pulled first")
    reproduce.add_argument("--data", metavar="SOURCE", help="where the data lies (default: where the recipe says)")
    reproduce.add_argument("--revision", metavar="NAME", help="branch, tag or commit of the Hub repo")


def _reproduce(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..sharing.reproduce import reproduce

    console = Console(highlight=False)
    with console.status("running the model over the data"):
        found = reproduce(options.model, data=options.data, revision=options.revision)
    words = {True: "yes", False: "[bold]NO[/]", None: "-"}
    table = Table("what", "recorded", "found", "equal")
    for check in found.checks:
        table.add_row(*map(escape, (check.what, check.recorded, check.found)), words[check.equal])
    console.print(table)
    for check in found.elsewhere:
        print(f"other than then: {check.what} was {check.recorded} and is {check.found}")
    different = [check.what for check in found.checks if check.equal is False]
    print(f"DIFFERENT: {'; '.join(different)}" if different else "everything that could be compared is reproduced")
    return 1 if different else 0
