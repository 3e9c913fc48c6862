"""Energy from the counters of a made-up machine."""

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

from pipeline.records import energy
from pipeline.records.energy import ProcessorCounters, metered
from pipeline.records.record import recording

ROOT = Path(energy.__file__).parents[2]
LARGEST = 262_143_328_850  # value of a counter, in microjoules


class Domain:
    """A counter of RAPL."""

    def __init__(self, folder: Path, name: str, start: int = 0) -> None:
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{LARGEST}\n")
        self.counter, self.now = folder / "energy_uj", start
        self.use(0)

    def use(self, joules: float) -> None:
        self.now = (self.now + round(joules * 1e6)) % (LARGEST + 1)
        part = self.counter.with_suffix(".new")
        part.write_text(f"{self.now}\n")
        part.replace(self.counter)  # so that no reader sees half of it


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def load_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let torch train on the first GPU that it sees, on another kind of accelerator, or on none ("idle")."""

    def load(visible: str = "a", kind: str = "cuda") -> None:
        cuda = SimpleNamespace(
            is_initialized=lambda: kind == "cuda",
            device_count=lambda: len(visible),
            get_device_properties=lambda n: SimpleNamespace(uuid=visible[n]),
            get_device_name=lambda: "H200",
        )
        current = SimpleNamespace(type="cuda" if kind == "idle" else kind)
        accelerator = SimpleNamespace(is_available=lambda: True, current_accelerator=lambda: current)
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, accelerator=accelerator))

    return load


@pytest.fixture
def count_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the GPUs a, b, ... have these counters at the beginning and at the end; None: it does not count."""

    def count(before: list[int | None], after: list[int | None]) -> None:
        readings = (
            {f"GPU-{name}": n for name, n in zip("abcd", each, strict=False) if n is not None}
            for each in (before, after)
        )
        monkeypatch.setattr(energy, "_gpu_counters", lambda: next(readings))

    return count


@pytest.fixture(autouse=True)
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without counters, and no torch."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setattr(energy, "NVML", str(tmp_path / "no driver.so"))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path / "powercap"


@pytest.fixture
def package(powercap: Path) -> Domain:
    return Domain(powercap / "intel-rapl:0", "package-0", 5_000_000)


def test_packages_are_added_up_without_their_parts_and_what_includes_them(
    package: Domain, powercap: Path
) -> None:
    other = Domain(powercap / "intel-rapl:1", "package-1")
    part, whole = Domain(powercap / "intel-rapl:0:0", "core"), Domain(powercap / "intel-rapl:2", "psys")
    twin = Domain(powercap / "intel-rapl-mmio:0", "package-0")
    with metered() as used:
        for domain, joules in ((package, 10.5), (other, 2), (part, 400), (whole, 3000), (twin, 50_000)):
            domain.use(joules)
    assert (used.joules, used.complete) == ({"CPU": 12.5}, True)


def test_a_counter_may_start_again_several_times(package: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "READ_EVERY", 0.01)
    counters = ProcessorCounters()
    for _ in range(6):
        package.use(0.6 * LARGEST / 1e6)
        wait_until(lambda: counters.last[package.counter] == package.now)
    package.use(0.6 * LARGEST / 1e6)
    assert counters.stop() == pytest.approx(7 * 0.6 * LARGEST / 1e6)


@pytest.mark.parametrize("counters", [0, 1])
def test_a_thread_reads_counters_where_there_are_some_and_ends_also_with_a_failed_stage(
    powercap: Path, counters: int
) -> None:
    if counters:
        Domain(powercap / "intel-rapl:0", "package-0")
    before = threading.active_count()
    with metered() as used:
        assert threading.active_count() == before + counters
    assert (used.joules, used.complete) == ({"CPU": 0.0} if counters else {}, bool(counters))
    with pytest.raises(KeyError), metered():
        raise KeyError
    assert threading.active_count() == before


@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
def test_there_is_no_number_if_one_package_could_not_be_read(
    package: Domain, powercap: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Also if it can be read again at the end: the counter may have started again in between."""
    monkeypatch.setattr(energy, "READ_EVERY", 0.01 if when == "meanwhile" else 60)
    other = Domain(powercap / "intel-rapl:1", "package-1")
    if when == "before":
        other.counter.write_text("")
    counters = ProcessorCounters()
    if when != "before":
        other.counter.write_text("")
    if when == "meanwhile":
        wait_until(lambda: not counters.ranges)
    if when != "after":
        other.use(7)
    assert counters.stop() is None


@pytest.mark.parametrize(
    "case",
    [
        # the GPU in use: NVML has another order than CUDA, and sees the GPUs that CUDA may not use
        ("bc", "1", [100, 5_000, 77], [900_000, 8_500, 950_000], {"GPU": 3.5}),
        ("abc", "2", [0, 0, 0], [1000, 2000, 4000], {"GPU": 3.0}),
        # one of the processes trains on a GPU that this one cannot see
        ("abc", "4", [0, 0, 0], [1000, 2000, 4000], {}),
        ("b", "1", [None, 1_000], [None, 6_000], {"GPU": 5.0}),  # the other GPU is too old to count
        ("a", "1", [9_000], [10], {}),  # the driver was loaded again
    ],
)
def test_the_gpus_in_use_are_counted(
    count_gpus: Callable[..., None],
    load_torch: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    case: Any,
) -> None:
    visible, processes, before, after, joules = case
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    count_gpus(before, after)
    with metered() as used:
        load_torch(visible)
    assert (used.joules, used.complete) == (joules, False)  # nothing counts the processors


@pytest.mark.parametrize(
    ("kind", "counts", "complete"),
    [
        ("cuda", True, True),
        ("cuda", False, False),
        ("xpu", False, False),
        ("idle", False, True),
        ("none", False, True),
    ],
)
def test_energy_is_complete_if_each_device_that_computed_is_counted(
    package: Domain,
    count_gpus: Callable[..., None],
    load_torch: Callable[..., None],
    kind: str,
    counts: bool,
    complete: bool,
) -> None:
    if counts:
        count_gpus([1_000], [4_000])
    if kind != "none":
        load_torch(kind=kind)
    with metered() as used:
        package.use(2)
    assert (used.joules, used.complete) == ({"CPU": 2.0} | ({"GPU": 3.0} if counts else {}), complete)


LIBRARY = """
#include <string.h>
static int gpus[3];
static unsigned long long used[3] = {(1ULL << 32) - 1, 1ULL << 32, 0};  /* the second needs 33 bits */
int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int n, void **gpu) { *gpu = &gpus[n]; return 0; }
int nvmlDeviceGetUUID(void *gpu, char *uuid, unsigned int length) {
    if (length < 80) return 7;
    strcpy(uuid, "GPU-?");
    uuid[4] = 'a' + ((int *)gpu - gpus);
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *found) {
    *found = used[(int *)gpu - gpus];
    return *found ? 0 : 3;  /* the third GPU is too old to count */
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize(("init", "counters"), [(0, {"GPU-a": 2**32 - 1, "GPU-b": 2**32}), (9, {})])
def test_the_drivers_library_is_called_as_c_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: int, counters: dict[str, int]
) -> None:
    (tmp_path / "nvml.c").write_text(LIBRARY)
    command = ["cc", f"-DINIT={init}", "-shared", "-fPIC", "-o", "nvml.so", "nvml.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    monkeypatch.setattr(energy, "NVML", str(tmp_path / "nvml.so"))
    assert energy._gpu_counters() == counters


@pytest.mark.parametrize("complete", [True, False])
def test_a_record_holds_each_part_and_the_sum_if_it_is_complete(
    tmp_path: Path,
    powercap: Path,
    count_gpus: Callable[..., None],
    load_torch: Callable[..., None],
    complete: bool,
) -> None:
    package = Domain(powercap / "intel-rapl:0", "package-0" if complete else "psys")
    count_gpus([0], [2_000])
    load_torch()
    with recording(tmp_path / "r.json", "distill", "kd", {}) as record:
        record.metrics, record.details = {"val": 0.5}, {"subset": 1}
        package.use(1)
        metrics_for_dvc = dict(record.metrics)  # stages write them in here
    assert metrics_for_dvc == {"val": 0.5}
    written = json.loads((tmp_path / "r.json").read_text())
    parts = {"CPU": 1.0, "GPU": 2.0} if complete else {"GPU": 2.0}
    assert written["details"].pop("usage")
    assert written["details"] == {"subset": 1, "energy_j": parts}
    assert written["metrics"] == {"val": 0.5} | ({"energy_j": 3.0} if complete else {})
    assert written["environment"]["device"] == "H200"


def test_only_the_process_that_writes_counts(tmp_path: Path, package: Domain) -> None:
    with recording(tmp_path / "r.json", "distill", "kd", {}, write=False) as record:
        package.use(1)
    assert (record.metrics, record.details) == ({}, {})


def test_recording_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, pipeline.records.progress; print(*sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
