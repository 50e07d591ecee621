"""The benchmark: who is compared computes the same, rounds and ratios are what they are called; nothing is timed."""

import itertools
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit_hf.data.preparation import Preparation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import benchmark
from benchmarks import epoch_runs, epochs, inputs, memory, models, networks, report, timing

SMALL = "Ti/16@32"


def test_counted_work_is_what_torch_counts_in_timms_network():
    config = networks.network_config(SMALL)
    timm = networks.build(config)["timm"].module
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        timm(torch.zeros(3, 3, 32, 32))
    counted = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    if not any("attention" in name for name in counted):  # products that torch does not count on the CPU
        tokens, depth = 5, config.num_hidden_layers
        counted["attention"] = 3 * depth * 4 * tokens * tokens * config.hidden_size
    assert networks.forward_flops(config) * 3 == sum(counted.values())


def test_all_libraries_have_the_same_outputs_loss_and_gradients():
    for mode in ("infer", "train"):
        case = models.Case(mode, SMALL, "fp32", "", "cpu", 2)
        record = models.measure(case, rounds=2, min_seconds=0.0, memory=False)
        assert record["agrees"]
        assert set(record["rows"]) == set(case.libraries)
        assert all(len(row["seconds"]) == 2 for row in record["rows"].values())


def test_the_products_alone_are_those_of_the_blocks():
    config = networks.network_config(SMALL)
    ways, flops = networks.block_products(config, 3, dtype=torch.float32, device=torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        ways["torch.mm"]()
    assert counter.get_total_flops() == flops
    attention, head = 4 * 5 * 5 * config.hidden_size * config.num_hidden_layers, 2 * config.hidden_size * 100
    patches = 2 * 4 * config.hidden_size * 3 * 16 * 16
    assert flops == 3 * (networks.forward_flops(config) - attention - head - patches)
    for run in ways.values():
        run()


def test_a_training_step_moves_all_weights_and_lets_the_gradients_go():
    network = networks.build(networks.network_config(SMALL), ("timm",))["timm"]
    case = models.Case("train", SMALL, "bf16", "", "cpu", 2)
    pixels, labels = models.make_batch(case, torch.device("cpu"))
    step = models.TrainTask(models.place(network, case, torch.device("cpu")), pixels, labels, case.precision)
    before = {name: parameter.detach().clone() for name, parameter in network.module.named_parameters()}
    first, second = float(step()), float(step())
    assert second < first
    for name, parameter in network.module.named_parameters():
        assert parameter.grad is None
        assert not torch.equal(parameter, before[name]), name


def test_another_weight_is_noticed(monkeypatch):
    build = networks.build

    def changed(*arguments):
        made = build(*arguments)
        with torch.no_grad():
            made["timm"].module.blocks[3].mlp.fc1.bias[5] += 1e-2
        return made

    monkeypatch.setattr(models, "build", changed)
    for mode in ("infer", "train"):
        record = models.measure(models.Case(mode, SMALL, "fp32", "", "cpu", 2), rounds=1, min_seconds=0.0, memory=False)
        assert not record["agrees"]


def test_rounds_change_the_order_and_a_failing_task_is_left_out():
    called: list[str] = []

    def fails() -> None:
        raise RuntimeError("out of memory\nand more")

    tasks = {name: lambda name=name: called.append(name) for name in "abc"}
    timings = timing.interleave({**tasks, "bad": fails}, rounds=6, warmup=1, min_seconds=0.0)
    assert timings.failures == {"bad": "RuntimeError: out of memory"}
    rounds = ["".join(called[-18:][3 * index : 3 * index + 3]) for index in range(6)]
    assert rounds == ["abc", "cba", "bca", "acb", "cab", "bac"]
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 6, "b": 6, "c": 6}


def test_ratios_are_formed_within_rounds():
    found = timing.ratio([1, 2, 30, 4, 5], [2, 4, 60, 8, 5])
    assert (found.low, found.median, found.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="same number"):
        timing.ratio([1.0], [1.0, 2.0])


def test_the_best_peer_is_that_of_the_rounds_and_ours_is_never_it():
    rows = {
        "vit_hf": {"seconds": [1.0, 10.0, 100.0]},
        "timm": {"seconds": [2.0, 20.0, 200.0]},
        "torchvision": {"seconds": [3.0, 30.0, 20.0]},
    }
    record = {"case": {"mode": "infer"}, "pictures": 4, "rows": rows}
    ours, timm, torchvision = report.lines(record)
    assert (ours.best, timm.best, torchvision.best) == (False, True, False)
    assert ours.ratio is not None
    assert ours.ratio.median == 0.5
    assert ours.rate == 0.4


# ---------------------------------------------------------------------------------------------- records
def record_of(mode: str, seconds: dict[str, list[float]], **case) -> dict:
    rows = {name: {"seconds": each} for name, each in seconds.items()}
    return {"case": {"mode": mode, **case}, "pictures": 8, "rows": rows, "agrees": True}


def test_shares_are_of_the_fastest_way_to_run_the_products():
    record = record_of("infer", {"vit_hf": [2.0], "timm": [4.0]}, precision="bf16")
    record |= {"flops": 100, "products": {"flops": 80, "seconds": {"slow": [2.0], "fast": [1.0]}}}
    ours, timm = report.lines(record, "NVIDIA H100 80GB HBM3")
    assert (ours.share, timm.share) == (50 / 80, 25 / 80)
    assert ours.mfu == pytest.approx(50 / 989.4e12)


def test_the_markdown_table_has_a_row_for_each_case_measured_or_not():
    measured = record_of("infer", {"vit_hf": [1.0, 3.0], "timm": [2.0, 4.0]}, model="B/16")
    missing = {**record_of("infer", {}, model="L/16"), "rows": {"vit_hf": {}, "timm": {}}, "not_measured": "no CUDA"}
    times = {"vit_hf": [1.0], "timm, 2 workers": [10.0], "timm, 0 workers": [8.0]}
    other = record_of("input", times, what="pictures")
    tables = report.markdown([measured, other, missing]).split("\n\n")
    assert [len(table.strip().splitlines()) for table in tables] == [4, 3]
    assert tables[0].splitlines()[2] == "| infer, B/16 | 4 | 2.67 | **0.625** (0.562-0.688) |"
    assert tables[1].splitlines()[2] == "| input, pictures | 8 | 1 | **0.125** (0.125-0.125) |"
    assert tables[0].splitlines()[3].startswith("| infer, L/16 | not measured |")
    assert all(line.count("|") == table.splitlines()[0].count("|") for table in tables for line in table.splitlines())


def test_the_plot_has_a_panel_for_each_mode_that_was_measured():
    assert report.draw([{**record_of("train", {"vit_hf": []}), "not_measured": "no data"}]) is None
    records = [
        record_of("infer", {"vit_hf": [1.0], "vit_hf, prepared": [0.8], "timm": [1.1]}, model="B/16"),
        record_of("input", {"vit_hf": [1.0], "timm": [40.0]}, what="pictures"),
        record_of("epoch", {"vit_hf": [], "timm": []}, what="memory"),
    ]
    plot = report.draw(records)
    assert plot is not None
    assert [ax.get_xscale() for ax in plot.axes] == ["linear", "log"]
    assert [ax.get_yticklabels()[0].get_text() for ax in plot.axes] == ["infer, B/16", "input, pictures"]


def test_what_cannot_be_measured_is_written_as_such(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["--mode", "infer", "input", "epoch", "--device", "cuda", "--model", SMALL, "--output", str(tmp_path)]
    assert benchmark.main(words) == 0
    whole = json.loads((tmp_path / "benchmark.json").read_text())
    reasons = [record["not_measured"] for record in whole["records"]]
    assert reasons[:6] == ["no CUDA device here"] * 6
    assert all("CUDA devices here" in reason for reason in reasons[6:])
    assert torch.__version__.startswith(whole["machine"]["versions"]["torch"])
    assert "Not measured" in capsys.readouterr().out
    assert benchmark.main(["--mode", "input", "--device", "cpu", "--output", str(tmp_path)]) == 0
    assert "give --cifar100 SOURCE" in (tmp_path / "benchmark.json").read_text()


@pytest.mark.parametrize(("words", "left_out"), [([], [False, True]), (["--precision", "bf16"], [False])])
def test_bfloat16_that_a_cpu_is_slow_at_is_measured_when_asked_for(words, left_out, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    options = benchmark.read_options(["--mode", "infer", "--device", "cpu", "--model", SMALL, *words])
    cases = benchmark.plan(options)
    assert [lacking is not None for _, lacking, _ in cases] == left_out
    assert all("--precision bf16" in lacking for _, lacking, _ in cases if lacking)


def test_peak_memory_forgets_what_was_before():
    memory.forget_peak()
    before = memory.held("VmRSS")
    del_me = torch.ones(64, 2**18)  # 64 MiB
    assert float(del_me.sum()) > 0
    del del_me
    assert memory.held("VmHWM") - before > 60 * 2**20
    memory.forget_peak()
    assert memory.held("VmHWM") - before < 40 * 2**20


# ---------------------------------------------------------------------------------------------- input and epochs
@pytest.mark.parametrize("kind", ["train", "evaluation"])
def test_all_input_paths_bring_the_same_pictures(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_HF_CACHE", str(tmp_path))
    case = inputs.Case("input", f"cifar100 {kind}", "cpu", 16, 0)
    record = inputs.measure(case, "digits", pictures=500, rounds=1, min_seconds=0.0)
    assert not [row["failure"] for row in record["rows"].values() if "failure" in row]
    assert set(record["rows"]) == set(case.libraries)
    if kind == "evaluation":
        assert record["pictures"] == 500  # 359 test pictures, and 141 of them again
        gaps = [row["difference"] for name, row in record["rows"].items() if name != "vit_hf"]
        assert len(gaps) == 3
        assert 0 < max(gaps) < 2.01 / 255  # a level
        assert record["agrees"]
    else:
        assert record["pictures"] == 496
        ours = record["rows"]["vit_hf"]
        for row in record["rows"].values():
            assert row["pixel_mean"] == pytest.approx(ours["pixel_mean"], abs=0.1)
            assert row["pixel_std"] == pytest.approx(ours["pixel_std"], abs=0.1)


@pytest.mark.parametrize("library", ["vit_hf", "timm", "Trainer"])
def test_a_run_is_clocked_step_by_step(library, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VIT_HF_CACHE", str(tmp_path))
    wanted = {"model": "Ti/8", "source": "digits", "images": 16, "steps": 4, "batch": 8, "workers": 0, "threads": 1}
    epoch_runs.main([library, json.dumps(wanted)])
    clock = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert len(clock["step_seconds"]) == len(clock["wait_seconds"]) == 4
    assert len(clock["rss"]) == 2
    assert all(0 < wait < step for wait, step in zip(clock["wait_seconds"], clock["step_seconds"], strict=True))


def test_preparing_a_batch_counts_as_waiting(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VIT_HF_CACHE", str(tmp_path))
    prepare = Preparation.__call__

    def slow(self, *arguments):
        time.sleep(0.3)
        return prepare(self, *arguments)

    monkeypatch.setattr(Preparation, "__call__", slow)
    wanted = {"model": "Ti/8", "source": "digits", "images": 16, "steps": 2, "batch": 8, "workers": 0, "threads": 1}
    epoch_runs.main(["vit_hf", json.dumps(wanted)])
    waits = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["wait_seconds"]
    assert all(wait > 0.3 for wait in waits)


@pytest.mark.slow
def test_training_loops_take_turns_step_by_step(monkeypatch):
    monkeypatch.chdir("/")
    case = epochs.Case("epoch", "Ti/8", "16 pictures", 16, 1, "fp32", "cpu", 8, steps=2)
    rows = epochs.measure(case, "digits", rounds=1, threads=1, workers=1)["rows"]
    assert {name: len(row.get("seconds", ())) for name, row in rows.items()} == {"vit_hf": 2, "timm": 2, "Trainer": 2}
    runs = [row["runs"][0] for row in rows.values()]
    steps = [
        (start, start + length)
        for run in runs
        for start, length in zip(run["step_began"], run["step_seconds"], strict=True)
    ]
    assert len(steps) == 12
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(sorted(steps)))


DIES_IN_ITS_TURN = f"""#!{sys.executable}
import os, signal, subprocess
subprocess.Popen(["sleep", "600"])  # a loader process, which holds the pipe
for last in (signal.SIGSTOP, signal.SIGKILL):
    print({epochs.TURN!r}, os.getpid(), flush=True)
    os.kill(os.getpid(), last)
"""


def test_a_loop_that_dies_in_its_turn_is_said_to(monkeypatch, tmp_path):
    script = tmp_path / "dies"
    script.write_text(DIES_IN_ITS_TURN)
    script.chmod(0o755)
    monkeypatch.setattr(epochs.sys, "executable", str(script))
    run = epochs._Run("timm", {"threads": 1, "device": "cpu", "turns": True}, 1, str(tmp_path))
    _, loader = sorted(run._family(), key=lambda process: process.create_time())
    run.take_a_turn()
    assert run.finish() == {"failure": "exit status -9: it printed nothing"}
    loader.wait(timeout=10)


def test_an_epoch_is_as_many_steps_as_it_has_pictures():
    case = epochs.cases(["Ti/4"], [1000], [1], ["fp32"], ["cpu"], 100, 0)[0]
    run = {"setup_seconds": 1.0, "step_seconds": [9.0, 9.0, 2.0, 4.0], "wait_seconds": [5.0, 5.0, 0.5, 1.0]}
    row = epochs._timed([run, {**run, "setup_seconds": 0.5}], case)
    assert row["seconds"] == [20.0, 40.0, 20.0, 40.0]
    assert row["waits"] == 0.25
    assert row["shown"] == {"epoch (s)": "30.0", "waits for input": "25.0%", "set-up (s)": "1.0, then 0.5"}


def test_on_a_gpu_an_epoch_has_enough_steps_for_loaders_that_begin_anew():
    found = epochs.cases(["Ti/4", "S/4"], [1000, 10_000, 50_000], [1, 2], ["bf16"], ["cuda"], None, 0)
    assert all(case.images >= 20 * case.batch for case in found)
    assert len(found) == len(set(found)) == 4  # two sizes of the set, two processes, another network


def test_pictures_that_make_no_batch_are_said_and_not_waited_for():
    (case,) = epochs.cases(["Ti/4"], [16], [1], ["fp32"], ["cpu"], 24, 0)
    assert epochs.missing(case) == "16 pictures make no batch of 24: give fewer by --batch, or more by --images"


def test_a_case_that_fails_is_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def measure(case, **_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(models, "measure", measure)
    words = ["--device", "cpu", "--model", "Ti/4@32", "S/4@32", "--precision", "fp32", "--mode", "infer"]
    assert benchmark.main([*words, "--output", str(tmp_path)]) == 1
    records = json.loads((tmp_path / "benchmark.json").read_text())["records"]
    assert [record["not_measured"] for record in records] == ["RuntimeError: out of luck"] * 2
    assert "out of luck" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main(["--model", "Foo", "--output", str(tmp_path / "no")])
    assert "--model: unknown variant 'Foo'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
