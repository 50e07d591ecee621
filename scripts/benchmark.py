"""Compare our speed with that of timm, transformers' own ViT and torchvision, on the same work and the same machine.

The libraries run in turns within one process, so what else the machine does falls on all alike; what counts is the
ratio to the best peer in each round. In the same run it is checked that all compute the same.

    python scripts/benchmark.py --mode infer train --model Ti/16 B/16 Ti/4@32 --precision fp32 bf16
    python scripts/benchmark.py --mode infer train --device cuda --compile yes     # on a machine with CUDA

It prints tables, and writes benchmark.json (machine, versions, settings, every round), benchmark.md and benchmark.png
into the folder that --output names.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmarks import models, report
from benchmarks.machine import describe_machine
from rich.console import Console

from vit_hf.inspection.style import save_figure

MODES = ("infer", "train")


def read_options(words: list[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--mode", nargs="+", choices=MODES, default=["infer", "train"])
    parser.add_argument("--model", nargs="+", default=["Ti/16", "S/16", "B/16", "Ti/4@32"], metavar="NAME",
                        help="variant at 224 px, or with its pixels: Ti/4@32")  # fmt: skip
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--compile", nargs="+", choices=("no", "yes"), default=["no"], help="torch.compile for all")
    parser.add_argument("--device", nargs="+", choices=("cpu", "cuda"), default=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, help="pictures a batch; by device and model when not given")
    parser.add_argument("--rounds", type=int, default=15, help="times that each library is timed")
    parser.add_argument("--seconds", type=float, default=0.2, help="least time of one timing; short calls are repeated")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out (a process for each library)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch on the CPU")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="folder for the record")
    options = parser.parse_args(words)
    for name in ("rounds", "threads", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} is {value}; expected 1 or more")
    return options


def main(words: list[str]) -> int:
    """Measure, print, write. Returns 1 where outputs disagree or ours could not be run."""
    options = read_options(words)
    torch.set_num_threads(options.threads)
    console = Console()
    console.width = max(console.width, 100)  # the widest table, also into a file
    machine = describe_machine(options.threads)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    records: list[dict[str, Any]] = []
    options.output.mkdir(parents=True, exist_ok=True)
    graphs = [word == "yes" for word in options.compile]
    table = models.cases(options.mode, options.model, options.precision, graphs, options.device, options.batch)
    started = time.perf_counter()
    for case in table:
        if case.device == "cuda" and not torch.cuda.is_available():
            record = {"case": asdict(case), "pictures": case.batch, "rows": {name: {} for name in case.libraries},
                      "not_measured": "no CUDA device here", "agrees": True}  # fmt: skip
        else:
            record = models.measure(case, rounds=options.rounds, min_seconds=options.seconds,
                                    memory=not options.no_memory)  # fmt: skip
            console.print(report.render(record, machine["cuda"]))
        records.append(record)
        _write(options.output, {"machine": machine, "settings": settings, "records": records})
    missing = [report.title(record) for record in records if record.get("not_measured")]
    if missing:
        console.print("Not measured, because there is no CUDA device here:", *missing, sep="\n  ")
    console.print(f"{time.perf_counter() - started:.0f} s; record, table and plot: {options.output}")
    wrong = [record for record in records if not record["agrees"] or record["rows"][report.OURS].get("failure")]
    for record in wrong:
        console.print(f"[bold red]outputs disagree, or ours failed: {report.title(record)}[/]")
    return 1 if wrong else 0


def _write(folder: Path, whole: dict[str, Any]) -> None:
    """Write the record, and what is made of it, anew after each case."""
    made = folder / "benchmark.json.tmp"
    made.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    made.replace(folder / "benchmark.json")
    (folder / "benchmark.md").write_text(report.markdown(whole["records"]), encoding="utf-8")
    if any(not record.get("not_measured") for record in whole["records"]):
        save_figure(report.draw(whole["records"]), folder / "benchmark.png")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
