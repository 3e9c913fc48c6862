"""Counters of a machine that isn't there: a sysfs tree in a folder, and a driver's library of our own."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import energy
from pipeline.energy import metered
from pipeline.record import record

ROOT = Path(energy.__file__).parents[1]
END = 262_143_328_850  # of a counter, in microjoules


class Domain:
    def __init__(self, folder: Path, name: str, start: int = 0) -> None:
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{END}\n")
        self.counter = folder / "energy_uj"
        self.now = start
        self.use(0)

    def use(self, joules: float) -> None:
        self.now = (self.now + round(joules * 1e6)) % (END + 1)
        part = self.counter.with_suffix(".new")
        part.write_text(f"{self.now}\n")
        part.replace(self.counter)  # whoever reads meanwhile never sees half of it


@pytest.fixture(autouse=True)
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "powercap"
    monkeypatch.setattr(energy, "POWERCAP", place)
    monkeypatch.setattr(energy, "NVML", str(tmp_path / "no driver.so"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return place


@pytest.fixture
def package(powercap: Path) -> Domain:
    powercap.mkdir()
    return Domain(powercap / "intel-rapl:0", "package-0", 5_000_000)


class Nvml:
    """NVIDIA's library with the GPUs "a", "b", ... and what each has used, in millijoules; None: it doesn't count."""

    def __init__(self, *used: int | None) -> None:
        self.used, self.driver = list(used), True

    def nvmlInit_v2(self) -> int:
        return 0 if self.driver else 9

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.used)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, n: int, gpu: Any) -> int:
        gpu._obj.value = n + 1
        return 0

    def nvmlDeviceGetUUID(self, gpu: Any, uuid: Any, length: int) -> int:
        uuid.value = b"GPU-" + b"abcd"[gpu.value - 1 : gpu.value]
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: Any, used: Any) -> int:
        if (told := self.used[gpu.value - 1]) is None:
            return 3
        used._obj.value = told
        return 0


LIBRARY = """
#include <string.h>
static unsigned long long used = (1ULL << 32) - 3000;  /* 32 bits don't hold the second look */
static int gpus[2];
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int n, void **gpu) { *gpu = &gpus[n]; return 0; }
int nvmlDeviceGetUUID(void *gpu, char *uuid, unsigned int length) {
    if (length < 80) return 7;
    strcpy(uuid, gpu == &gpus[0] ? "GPU-a" : "GPU-b");
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *told) {
    *told = used += gpu == &gpus[0] ? 1500 : 2500;
    return 0;
}
"""


Training = Callable[..., None]


@pytest.fixture
def training_on(monkeypatch: pytest.MonkeyPatch) -> Training:
    """A torch that sees these GPUs, in this order, and trains on the first."""

    def on(*visible: str, kind: str | None = "cuda", initialised: bool = True) -> None:
        cuda = SimpleNamespace(
            is_initialized=lambda: initialised,
            device_count=lambda: len(visible),
            get_device_properties=lambda n: SimpleNamespace(uuid=visible[n]),
            get_device_name=lambda: "H200",
        )
        accelerator = SimpleNamespace(is_available=lambda: True, current_accelerator=lambda: kind and SimpleNamespace(type=kind))
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, accelerator=accelerator))

    return on


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Nvml]:
    def make(*used: int | None) -> Nvml:
        made = Nvml(*used)
        monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: made)
        return made

    return make


# --- processors ----------------------------------------------------------------------------------------------------------


def test_packages_are_added_up_and_what_is_inside_or_around_them_is_not(package: Domain, powercap: Path) -> None:
    other = Domain(powercap / "intel-rapl:1", "package-1")
    inside, around = Domain(powercap / "intel-rapl:0:0", "core"), Domain(powercap / "intel-rapl:2", "psys")
    again = Domain(powercap / "intel-rapl-mmio:0", "package-0")
    with metered() as told:
        for domain, joules in ((package, 10.5), (other, 2), (inside, 400), (around, 3000), (again, 50_000)):
            domain.use(joules)
    assert (told.joules, told.whole) == ({"CPU": 12.5}, True)


def test_a_counter_that_begins_again(package: Domain) -> None:
    package.use((END - package.now) / 1e6 - 3)
    with metered() as told:
        package.use(10)
    assert told.joules == {"CPU": 10.0}


def test_one_that_begins_again_several_times_while_a_stage_works(package: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "EVERY", 0.01)
    looks: list[int] = []
    read = energy.Processors._read

    def counting(self: energy.Processors) -> dict[Path, int]:
        looks.append(1)
        return read(self)

    monkeypatch.setattr(energy.Processors, "_read", counting)
    with metered() as told:
        for _ in range(6):
            package.use(0.6 * END / 1e6)
            seen, deadline = len(looks), time.monotonic() + 10
            while len(looks) < seen + 2:  # the first may have begun before
                assert time.monotonic() < deadline
                time.sleep(0.002)
    assert told.joules["CPU"] == pytest.approx(6 * 0.6 * END / 1e6)


def test_no_counters_no_number_and_no_thread() -> None:
    before = threading.active_count()
    with metered() as told:
        assert threading.active_count() == before
    assert (told.joules, told.whole) == ({}, False)


@pytest.mark.parametrize("lost", ["before", "after"])
def test_one_unreadable_package_makes_all_untold(package: Domain, powercap: Path, lost: str) -> None:
    other = Domain(powercap / "intel-rapl:1", "package-1")
    if lost == "before":
        other.counter.unlink()
        other.counter.mkdir()  # fails to be read even by root
    with metered() as told:
        package.use(7)
        if lost == "after":
            other.counter.write_text("")
    assert (told.joules, told.whole) == ({}, False)


def test_a_look_that_failed_is_not_made_up_for(package: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter may have begun again meanwhile."""
    monkeypatch.setattr(energy, "EVERY", 0.01)
    with metered() as told:
        package.counter.unlink()
        time.sleep(0.2)
        package.use(7)
    assert told.joules == {}


def test_the_thread_ends_with_a_stage_that_failed(package: Domain) -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), metered():
        assert threading.active_count() == before + 1
        raise KeyError
    assert threading.active_count() == before


# --- GPUs ----------------------------------------------------------------------------------------------------------------


def test_the_gpu_that_trained_and_no_other(package: Domain, nvml: Callable[..., Nvml], training_on: Training) -> None:
    machine = nvml(100, 5_000, 77)
    with metered() as told:
        training_on("b", "c")  # NVML counts them in another order than CUDA, and sees those that CUDA was not to see
        machine.used = [900_000, 8_500, 950_000]
        package.use(2)
    assert (told.joules, told.whole) == ({"CPU": 2.0, "GPU": 3.5}, True)


def test_all_processes_of_a_launcher(nvml: Callable[..., Nvml], training_on: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    training_on("a", "b", "c")
    for processes, joules in (("2", {"GPU": 3.0}), ("4", {})):  # the fourth trains on one that can't be seen from here
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        machine = nvml(0, 0, 0)
        with metered() as told:
            machine.used = [1000, 2000, 4000]
        assert told.joules == joules


def test_what_is_a_part_is_not_called_the_whole(package: Domain, nvml: Callable[..., Nvml], training_on: Training) -> None:
    training_on("a")
    with metered() as told:  # no driver
        package.use(2)
    assert (told.joules, told.whole) == ({"CPU": 2.0}, False)
    nvml(None)
    with metered() as told:
        package.use(2)
    assert (told.joules, told.whole) == ({"CPU": 2.0}, False)
    training_on(kind="xpu", initialised=False)
    with metered() as told:
        package.use(2)
    assert (told.joules, told.whole) == ({"CPU": 2.0}, False)
    training_on("a", initialised=False)  # a stage that left the GPU alone
    with metered() as told:
        package.use(2)
    assert (told.joules, told.whole) == ({"CPU": 2.0}, True)


def test_a_gpu_alone(powercap: Path, nvml: Callable[..., Nvml], training_on: Training) -> None:
    machine = nvml(None, 1_000)  # the first is too old to count
    training_on("b")
    with metered() as told:
        machine.used = [None, 6_000]
    assert (told.joules, told.whole) == ({"GPU": 5.0}, False)


def test_a_driver_that_is_not_there_or_came_anew(nvml: Callable[..., Nvml], training_on: Training) -> None:
    machine = nvml(9_000)
    training_on("a")
    with metered() as told:
        machine.used = [10]
    assert told.joules == {}
    machine.driver = False
    with metered() as told:
        pass
    assert told.joules == {}


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_library_as_a_driver_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training_on: Training) -> None:
    (tmp_path / "nvml.c").write_text(LIBRARY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "nvml.so", tmp_path / "nvml.c"], check=True)
    monkeypatch.setattr(energy, "NVML", str(tmp_path / "nvml.so"))
    training_on("a")
    with metered() as told:
        pass
    assert told.joules == {"GPU": 4.0}  # the other is asked in between


# --- in a record ---------------------------------------------------------------------------------------------------------


def test_a_record_tells_it_beside_its_sources(tmp_path: Path, package: Domain, nvml: Callable[..., Nvml], training_on: Training) -> None:
    machine = nvml(0)
    training_on("a")
    with record(tmp_path / "r.json", "distill", "kd", {}) as kept:
        kept.metrics, kept.details = {"val": 0.5}, {"sample": 1}  # as stages set them anew
        package.use(1)
        machine.used = [2_000]
        for_dvc = dict(kept.metrics)  # which stages write in here
    assert for_dvc == {"val": 0.5}
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["metrics"] == {"val": 0.5, "energy_j": 3.0}
    assert told["details"] == {"sample": 1, "energy_j": {"CPU": 1.0, "GPU": 2.0}}
    assert told["environment"]["device"] == "H200"


def test_a_part_is_no_metric(tmp_path: Path, nvml: Callable[..., Nvml], training_on: Training) -> None:
    machine = nvml(0)
    training_on("a")
    with record(tmp_path / "r.json", "distill", "kd", {}):
        machine.used = [2_000]
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["metrics"], told["details"]) == ({}, {"energy_j": {"GPU": 2.0}})


def test_one_process_of_several_counts(tmp_path: Path, package: Domain) -> None:
    with record(tmp_path / "r.json", "distill", "kd", {}, write=False) as kept:
        package.use(1)
    assert (kept.metrics, kept.details) == ({}, {})


def test_a_stage_that_needs_neither_loads_neither() -> None:
    code = "import sys, pipeline.record; print(*sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
