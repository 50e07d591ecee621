"""The energy of a run: counters that wrap, counters that fail, sessions that are added; never a made-up number."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from vit_hf.training import energy
from vit_hf.training.energy import EnergyMeter
from vit_hf.training.loop import train

RANGE = 10_000_000  # microjoules: 10 J
CPU = torch.device("cpu")


def put(powercap, zone: str, value: int | str, name: str = "package-0") -> None:
    folder = powercap / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")


@pytest.fixture
def powercap(tmp_path):
    """Two packages, a part of one, and the platform that holds both."""
    put(tmp_path / "powercap", "intel-rapl:0", 1_000_000)
    put(tmp_path / "powercap", "intel-rapl:1", 9_000_000, "package-1")
    put(tmp_path / "powercap", "intel-rapl:0:0", 1_000_000, "core")
    put(tmp_path / "powercap", "intel-rapl:2", 1_000_000, "psys")
    return tmp_path / "powercap"


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def joules(kwh: float | None) -> float:
    assert kwh is not None
    return kwh * 3.6e6


# ---------------------------------------------------------------------------------------------- processors
def test_packages_are_added_and_counters_that_start_again_are_followed(powercap, accelerator, monkeypatch):
    monkeypatch.setattr(energy, "_SECONDS_BETWEEN", -1.0)
    meter = EnergyMeter(CPU, packages=True, powercap=powercap)
    assert meter.source == "processors (RAPL)"
    assert meter.kwh(accelerator) == 0.0
    put(powercap, "intel-rapl:0", 4_000_000)  # 3 J
    put(powercap, "intel-rapl:1", 2_000_000, "package-1")  # 9 to 10, then to 2: 3 J
    for other, name in (("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys")):
        put(powercap, other, 9_000_000, name)
    meter.sample()
    put(powercap, "intel-rapl:0", 3_500_000)  # 9.5 J
    assert joules(meter.kwh(accelerator)) == pytest.approx(15.5, rel=1e-6)


def test_the_counters_are_not_read_after_every_step(powercap, accelerator):
    meter = EnergyMeter(CPU, packages=True, powercap=powercap)
    put(powercap, "intel-rapl:0", 900_000)  # once around
    meter.sample()
    put(powercap, "intel-rapl:0", 1_100_000)
    assert joules(meter.kwh(accelerator)) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("content", ["", "12 J", None])
def test_a_counter_that_cannot_be_read_makes_the_energy_unknown(powercap, accelerator, content):
    meter = EnergyMeter(CPU, packages=True, powercap=powercap)
    file = powercap / "intel-rapl:1" / "energy_uj"
    file.unlink() if content is None else file.write_text(content)
    assert meter.kwh(accelerator) is None
    file.write_text("9500000")
    assert meter.kwh(accelerator) is None  # nobody knows what came between
    file.unlink()
    assert EnergyMeter(CPU, packages=True, powercap=powercap).source is None


def test_without_counters_the_energy_is_unknown(tmp_path, accelerator):
    meter = EnergyMeter(CPU, packages=True, powercap=tmp_path / "nothing")
    meter.sample()
    assert (meter.kwh(accelerator), meter.source) == (None, None)


def test_a_process_that_does_not_count_the_packages_adds_nothing(powercap, accelerator):
    meter = EnergyMeter(CPU, packages=False, powercap=powercap)
    put(powercap, "intel-rapl:0", 4_000_000)
    assert meter.kwh(accelerator) == 0.0


@pytest.mark.parametrize(("other", "total"), [(2.0, 2.5), (float("nan"), None)])
def test_the_processes_are_added_and_one_that_does_not_know_makes_it_unknown(powercap, other, total):
    meter = EnergyMeter(CPU, packages=True, powercap=powercap)
    put(powercap, "intel-rapl:0", 1_500_000)
    gather = SimpleNamespace(device=CPU, gather=lambda mine: torch.cat([mine, torch.tensor([other / 3.6e6])]))
    found = meter.kwh(gather)
    assert found is None if total is None else joules(found) == pytest.approx(total, rel=1e-6)


# ---------------------------------------------------------------------------------------------- GPUs
@pytest.fixture
def nvml(monkeypatch):
    """Stands for `pynvml` and a GPU; its counter is set by the test, in millijoules."""
    fake = SimpleNamespace(counter=5_000, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid)
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda handle: {"GPU-ab-12": fake.counter}[handle]
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-12"))
    return fake


def test_a_gpu_and_the_packages_are_added(nvml, powercap, accelerator):
    meter = EnergyMeter(torch.device("cuda"), packages=True, powercap=powercap)
    assert meter.source == "processors (RAPL), GPUs (NVML)"
    nvml.counter = 25_000
    put(powercap, "intel-rapl:0", 1_500_000)
    assert joules(meter.kwh(accelerator)) == pytest.approx(20.5, rel=1e-6)


def test_a_gpu_alone_is_named_as_the_source(nvml, tmp_path, accelerator):
    meter = EnergyMeter(torch.device("cuda"), packages=True, powercap=tmp_path)
    nvml.counter += 1_000
    assert meter.source == "GPUs (NVML)"
    assert joules(meter.kwh(accelerator)) == pytest.approx(1, rel=1e-6)


def test_on_cuda_without_nvml_the_packages_alone_are_not_given_as_the_energy(powercap, accelerator, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # import fails
    meter = EnergyMeter(torch.device("cuda"), packages=True, powercap=powercap)
    assert (meter.kwh(accelerator), meter.source) == (None, None)


# ---------------------------------------------------------------------------------------------- a run
def _run(folder, **options):
    fields = {"data__max_train_images": 64, "data__max_test_images": 20, "trackers": [], "checkpoint_steps": 1}
    fields |= {"checkpoint_limit": 9, "model__num_hidden_layers": 1, "keep": "last", "max_steps": 2, **options}
    return train("digits", output=folder, quiet=True, **fields)


@pytest.fixture
def counting(powercap, monkeypatch):
    """Let each read of the first package find 1 J more."""
    used = iter(range(2, 10_000))

    def read(file):
        before = ordinary(file)
        return lambda: float(next(used)) if str(file).endswith("intel-rapl:0/energy_uj") else before()

    ordinary = energy._reader
    monkeypatch.setattr(energy, "_reader", read)
    monkeypatch.setattr(energy, "_processors", lambda _, find=energy._processors: find(powercap))


def test_results_hold_the_energy_and_its_source_and_a_resumed_run_adds_the_sessions(counting, tmp_path):
    first = _run(tmp_path / "run")
    whole = first.results["energy_kwh"]
    assert first.results["energy_source"] == "processors (RAPL)"
    assert joules(whole) == pytest.approx(3, rel=1e-5)  # asked at two checkpoints and at the end
    for name in ("results.json", "checkpoints/step-00000002"):
        (tmp_path / "run" / name).rename(tmp_path / name.replace("/", "-"))
    state = json.loads((tmp_path / "run/checkpoints/step-00000001/training/state.json").read_text())
    assert joules(state["energy_kwh"]) == pytest.approx(1, rel=1e-5)
    again = _run(tmp_path / "run", resume="auto")
    assert joules(again.results["energy_kwh"]) == pytest.approx(1 + 2, rel=1e-5)  # one checkpoint and the end


def test_a_resumed_run_with_a_session_of_unknown_energy_has_none(powercap, tmp_path, monkeypatch):
    find = energy._processors
    monkeypatch.setattr(energy, "_processors", lambda _: [])
    assert _run(tmp_path / "run").results["energy_kwh"] is None
    (tmp_path / "run" / "results.json").unlink()
    monkeypatch.setattr(energy, "_processors", lambda _: find(powercap))
    again = _run(tmp_path / "run", resume="auto")
    assert again.results["energy_kwh"] is None
    assert again.results["energy_source"] is None
