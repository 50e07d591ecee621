"""`vit-hf probe`: what the frozen features of a model are worth."""

import argparse
from typing import Any

from .words import Add, positive


def add_commands(add: Add) -> None:
    """Add the command about probes."""
    probe = add(
        "probe",
        _probe,
        "Score simple classifiers on frozen features: few-shot, nearest neighbours, logistic regression; VTAB-1k.",
        epilog="Features are computed once and kept in $HF_HOME/vit-hf/features, or in $VIT_HF_CACHE/features.",
    )
    probe.add_argument("model", nargs="?", metavar="MODEL", help="model folder, weights file or Hub id")
    probe.add_argument("--data", metavar="SOURCE", help="data with a test split (default: what a run was trained on)")
    probe.add_argument("--method", nargs="+", metavar="NAME", help="fewshot, knn, logistic (default: all)")
    probe.add_argument("--shots", nargs="+", type=positive, metavar="N", help="pictures a class (default: 1 5 10 25)")
    probe.add_argument("--seeds", type=positive, metavar="N", help="draws of the shots (default: 3)")
    probe.add_argument("--vtab", metavar="TASK", help="a task of VTAB-1k instead; `list` lists them")
    probe.add_argument(
        "--vtab-summary", nargs="+", metavar="RESULTS", help="put results of VTAB tasks together (folders or files)"
    )
    probe.add_argument("--output", metavar="DIR", help="new folder for results.json")
    probe.add_argument("--batch-size", type=positive, default=64, metavar="N", help="default: 64")


def _probe(options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console()
    chosen = {"--method": options.method, "--shots": options.shots, "--seeds": options.seeds}
    given = [name for name, value in chosen.items() if value is not None]
    if (options.vtab or options.vtab_summary) and given:
        raise ValueError(f"{', '.join(given)}: VTAB-1k has one way to probe; leave them out")
    if options.vtab_summary:
        if options.vtab or options.model or options.data:
            raise ValueError("--vtab-summary reads results and runs nothing; leave MODEL, --vtab and --data out")
        return _summarise(options, console)
    if options.vtab == "list":
        console.print(_task_table())
        return 0
    if options.model is None:
        raise ValueError("there is no MODEL to probe; give a model folder, weights file or Hub id")
    return _run(options, console)


def _run(options: argparse.Namespace, console: Any) -> int:
    """Probe on data, or on a task of VTAB."""
    from rich.console import Console
    from rich.progress import Progress

    from ..evaluation.probes.run import METHODS, SEEDS, SHOTS, probe, probe_vtab

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def show(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(f"features of {split}", total=total)
            progress.update(tasks[split], completed=done)

        where: dict[str, Any] = {"data": options.data, "output": options.output, "batch_size": options.batch_size}
        if options.vtab:
            results = probe_vtab(options.model, options.vtab, **where, on_batch=show)
        else:
            results = probe(
                options.model,
                methods=options.method or METHODS,
                shots=options.shots or SHOTS,
                seeds=options.seeds or SEEDS,
                **where,
                on_batch=show,
            )
    if results is None:  # not the main process
        return 0
    if options.vtab:
        console.print(_say_task(results), soft_wrap=True)
    else:
        console.print(_probe_table(results))
    return 0


def _summarise(options: argparse.Namespace, console: Any) -> int:
    """Print the tasks and the means of the groups; a mean without all its tasks is none."""
    from rich.markup import escape
    from rich.table import Table

    from ..evaluation.probes.run import summarise_vtab
    from ..evaluation.probes.vtab_tasks import TASKS

    summary = summarise_vtab(options.vtab_summary, output=options.output)
    table = Table(title=f"VTAB-1k, {escape(summary['model'])}")
    table.add_column("task")
    table.add_column("top-1", justify="right")
    for group, found in summary["groups"].items():
        for name, score in summary["tasks"].items():
            if TASKS[name].group == group:
                table.add_row(name, f"{score:.2%}")
        count = sum(task.group == group for task in TASKS.values())
        table.add_row(f"[bold]{group}", _mean(found, count), end_section=True)
    table.add_row("[bold]all", _mean(summary, len(TASKS)))
    console.print(table)
    for name, differences in summary["differs"].items():
        console.print(f"{name} is not as in the benchmark: {'; '.join(differences)}", soft_wrap=True)
    if summary["missing"]:
        console.print(f"incomplete, so there is no overall mean: no {', '.join(summary['missing'])}", soft_wrap=True)
    return 0


def _mean(found: dict[str, Any], count: int) -> str:
    if found["mean"] is None:
        return f"{count - len(found['missing'])} of {count} tasks"
    return f"[bold]{found['mean']:.2%}"


def _probe_table(results: dict[str, Any]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"{escape(results['data'])}: {results['n_train']:,} pictures to learn from, {results['n']:,} of split "
        f"{escape(results['split'])}; {results['width']} features",
        title_justify="left",
    )
    for name in ("probe", "top-1", "95% interval", "seeds; choice"):
        table.add_column(name, justify="right" if name in ("top-1", "95% interval") else "left")
    for score in results.get("fewshot", ()):
        detail = " ".join(f"{100 * value:.2f}" for value in score["top1"])
        if score["spread"] is not None:
            detail += f" ± {100 * score['spread']:.2f}"
        if score["short_classes"]:
            detail += f"; {score['short_classes']} classes have fewer"
        plural = "shot" if score["shots"] == 1 else "shots"
        table.add_row(f"{score['shots']} {plural}", f"{score['mean']:.2%}", _interval(score), detail)
    for score in results.get("knn", {}).get("scores", ()):
        table.add_row(f"{score['neighbours']} neighbours", f"{score['top1']:.2%}", _interval(score), "")
    if "logistic" in results:
        score = results["logistic"]
        table.add_row("logistic regression", f"{score['top1']:.2%}", _interval(score), _say_choice(score))
    return table


def _say_task(results: dict[str, Any]) -> str:
    text = (
        f"VTAB-1k {results['vtab']} ({results['group']}): top-1 {results['top1']:.2%} (95% {_interval(results)}) on "
        f"{results['n']:,} pictures of {results['data']}; {_say_choice(results)}; the 1,000 pictures were "
        f"{'drawn here' if results['pictures'] == 'drawn' else 'chosen by the data'}"
    )
    return "\n".join([text, *(f"not as in the benchmark: {difference}" for difference in results["differs"])])


def _say_choice(score: dict[str, Any]) -> str:
    tried = list(map(float, score["validation"]))
    ends = {min(tried): ", the smallest tried", max(tried): ", the largest tried"}
    stopped = "" if score["converged"] else "; the solver stopped before it converged"
    return f"C {score['c']:g}{ends.get(score['c'], '')}{stopped}"


def _interval(score: dict[str, Any]) -> str:
    low, high = score["interval"]
    return f"{low:.2%} to {high:.2%}"


def _task_table() -> Any:
    from rich.table import Table

    from ..evaluation.probes.vtab_tasks import GROUPS, TASKS

    table = Table(title="VTAB-1k")
    for name in ("task", "classes", "test", "copy on the Hub"):
        table.add_column(name, justify="right" if name in ("classes", "test") else "left", no_wrap=True)
    for group in GROUPS:
        table.add_row(f"[bold]{group}")
        for task in TASKS.values():
            if task.group == group:
                numbers = (f"{task.num_labels}", f"{task.test_images:,}")
                table.add_row(f"  {task.name}", *numbers, task.hub_id or "none: give --data")
        table.add_section()
    return table
