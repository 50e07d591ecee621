"""Compare our speed with that of timm, transformers' own ViT and torchvision, on the same work and the same machine.

The libraries take turns within one process (within a round, where each is a process), so what else the machine does
falls on all alike; what counts is the ratio to the best peer in each round. That all compute the same is checked in the
run that is timed.

    infer   the class logits of one batch in memory, with the same weights in all
    train   a step on that batch: forward, cross-entropy, backward, AdamW
    input   real pictures in, batches on the device out, with the augmentation of cifar100_scratch and of deit
    epoch   `vit-hf train cifar100_scratch` against a timm-style and a Trainer-style script, and its memory

    python scripts/benchmark.py --model Ti/16 B/16 Ti/4@32 --precision fp32
    python scripts/benchmark.py --mode input --cifar100 SOURCE --imagenet SOURCE
    python scripts/benchmark.py --mode epoch --cifar100 SOURCE --images 1000 --rounds 1
    python scripts/benchmark.py --mode infer train input epoch --device cuda --compile no default --cifar100 SOURCE

It prints tables, and writes benchmark.json (machine, versions, settings, every round), benchmark.md and benchmark.png
into the folder that --output names, anew after each case. What cannot be measured here (no CUDA device, no data) is
listed as such.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks import epochs, inputs, models, report
from benchmarks.machine import describe_machine
from benchmarks.networks import network_config
from benchmarks.timing import FAILURES, first_line
from rich.console import Console

from vit_hf.inspection.style import save_figure
from vit_hf.training.setup import multiplies_bfloat16_slowly

MODES = ("infer", "train", "input", "epoch")
PICTURES = {"cifar100": 5120, "imagenet": 2048}  # of a pass in mode input: the pipe fills in a small part of it
Work = tuple[Any, str | None, Callable[[], dict[str, Any]]]


def read_options(words: list[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mode", nargs="+", choices=MODES, default=["infer", "train"])
    add("--device", nargs="+", choices=("cpu", "cuda"), default=["cpu", "cuda"])
    add(
        "--precision",
        nargs="+",
        choices=("fp32", "bf16"),
        help="fp32, and bf16 where the CPU multiplies it fast; for mode epoch fp32 on a CPU, else bf16",
    )
    add("--batch", type=int, help="pictures a batch; by mode, device and model when not given")
    add("--rounds", type=int, help="times that each library is timed: 15, in mode input 7, in mode epoch 3")
    add("--seconds", type=float, default=0.2, help="least time of one timing; short ones are repeated")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of torch on the CPU")
    add("--output", type=Path, default=Path("runs/benchmark"), help="folder for the record")
    net = parser.add_argument_group("modes infer and train")
    add = net.add_argument
    add("--model", nargs="+", default=["Ti/16", "S/16", "B/16", "Ti/4@32", "S/4@32"], metavar="NAME",
        help="variant at 224 px, or with its pixels: Ti/4@32")  # fmt: skip
    add("--compile", nargs="+", choices=("no", "default", "reduce-overhead", "max-autotune"), default=["no"],
        help="mode of torch.compile, the same for all")  # fmt: skip
    add("--no-memory", action="store_true", help="leave peak memory out (a process for each library)")
    data = parser.add_argument_group("modes input and epoch")
    add = data.add_argument
    add("--cifar100", metavar="SOURCE", help="CIFAR-100: folder, archive or Hub id")
    add("--imagenet", metavar="SOURCE", help="pictures of ImageNet's kind")
    add("--workers", type=int, default=2, help="loader processes; in mode input each is measured without, too")
    add("--pictures", type=int, help="pictures of a pass in mode input: 5,120 of CIFAR-100, 2,048 of ImageNet")
    add("--net", nargs="+", default=["Ti/4", "S/4"], metavar="NAME", help="networks of mode epoch, patches for 32 px")
    add("--images", nargs="+", type=int, default=[1000, 10_000, 50_000], help="training pictures in mode epoch")
    add("--processes", nargs="+", type=int, default=[1, 2], help="processes in mode epoch")
    add("--epochs", type=int, default=8, help="epochs over which mode epoch watches memory; 0 for none")
    options = parser.parse_args(words)
    for name in ("rounds", "threads", "batch", "pictures"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} is {value}; expected 1 or more")
    for name in options.model if {"infer", "train"} & set(options.mode) else ():
        try:
            network_config(name)
        except ValueError as error:
            parser.error(f"--model: {error}")
    return options


def plan(options: argparse.Namespace) -> list[Work]:
    """Return the cases, why each cannot be measured here (or None), and what measures it."""
    return [
        *(_plan_models(options)),
        *(_plan_inputs(options) if "input" in options.mode else ()),
        *(_plan_epochs(options) if "epoch" in options.mode else ()),
    ]


def _plan_models(options: argparse.Namespace) -> Iterator[Work]:
    modes = [mode for mode in ("infer", "train") if mode in options.mode]
    graphs, precisions = (
        ["" if word == "no" else word for word in options.compile],
        options.precision or ["fp32", "bf16"],
    )
    for case in models.cases(modes, options.model, precisions, graphs, options.device, options.batch):
        limits = {"rounds": options.rounds or 15, "min_seconds": options.seconds, "memory": not options.no_memory}
        slow = case.precision == "bf16" and multiplies_bfloat16_slowly(torch.device(case.device))
        unasked = _SLOW if slow and options.precision is None else None
        yield case, _no_device(case.device) or unasked, partial(models.measure, case, **limits)


def _plan_inputs(options: argparse.Namespace) -> Iterator[Work]:
    for case in inputs.cases(list(inputs.RECIPES), options.device, options.batch, options.workers):
        source = getattr(options, case.set_name)
        limits = {"rounds": options.rounds or 7, "min_seconds": options.seconds}
        pictures = options.pictures or PICTURES[case.set_name]
        lacking = _no_device(case.device) or _no_data(source, case.set_name)
        yield case, lacking, partial(inputs.measure, case, source, pictures=pictures, **limits)


def _plan_epochs(options: argparse.Namespace) -> Iterator[Work]:
    for device in options.device:
        precisions = options.precision or ["fp32" if device == "cpu" else "bf16"]
        sizes = (options.net, options.images, options.processes, precisions)
        for case in epochs.cases(*sizes, [device], options.batch, options.epochs):
            lacking = epochs.missing(case) or _no_data(options.cifar100, "cifar100")
            limits = {"rounds": options.rounds or 3, "threads": options.threads, "workers": options.workers}
            yield case, lacking, partial(epochs.measure, case, options.cifar100, **limits)


_SLOW = "this CPU multiplies bfloat16 slowly (a training step 20 to 30 times as long): give --precision bf16 for it"


def _no_device(device: str) -> str | None:
    return "no CUDA device here" if device == "cuda" and not torch.cuda.is_available() else None


def _no_data(source: str | None, name: str) -> str | None:
    return f"no data: give --{name} SOURCE" if source is None else None


def main(words: list[str]) -> int:
    """Measure, print, write. Returns 1 where outputs disagree, ours could not be run, or a whole case failed."""
    options = read_options(words)
    torch.set_num_threads(options.threads)
    console = Console()
    console.width = max(console.width, 110)  # the widest table, also into a file
    machine = describe_machine(options.threads)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    records: list[dict[str, Any]] = []
    failed = False
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    for case, lacking, measure in plan(options):
        record = None
        if lacking is None:
            try:
                record = measure()
                console.print(report.render(record, machine["cuda"]))
            except (*FAILURES, OSError) as error:  # the other cases may go
                lacking, failed = first_line(error), True
        if record is None:
            record = {"case": asdict(case), "pictures": case.batch, "rows": {name: {} for name in case.libraries},
                      "not_measured": lacking, "agrees": True}  # fmt: skip
        records.append(record)
        _write(options.output, {"machine": machine, "settings": settings, "records": records})
    missing = [record for record in records if record.get("not_measured")]
    if missing:
        console.print("Not measured:")
        for record in missing:
            console.print(f"  {report.title(record)}: {record['not_measured']}")
    console.print(f"{time.perf_counter() - started:.0f} s; record, tables and plot: {options.output}")
    wrong = [record for record in records if not record["agrees"] or report.ours_failed(record)]
    for record in wrong:
        console.print(f"[bold red]outputs disagree, or ours failed: {report.title(record)}[/]")
    return 1 if wrong or failed else 0


def _write(folder: Path, whole: dict[str, Any]) -> None:
    """Write the record, and what is made of it, anew."""
    made = folder / "benchmark.json.tmp"
    made.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    made.replace(folder / "benchmark.json")
    (folder / "benchmark.md").write_text(report.markdown(whole["records"]), encoding="utf-8")
    if (plot := report.draw(whole["records"])) is not None:
        save_figure(plot, folder / "benchmark.png")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started ends, too
    sys.exit(main(sys.argv[1:]))
