"""The energy that a machine counts while a stage works: of its processors (RAPL) and NVIDIA GPUs (NVML).

Energy that no counter reports is not estimated. No counter includes memory, disks or cooling, and all of them
include other work on the same processors and GPUs.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"
READ_EVERY = 30.0  # seconds; the smallest counters start again after 65 kJ: 32 seconds at 2 kW


@dataclass
class Energy:
    """Joules of the CPU, the GPU or both; `complete` if no other device computed."""

    joules: dict[str, float] = field(default_factory=dict)
    complete: bool = False


@contextmanager
def metered() -> Iterator[Energy]:
    """Yield an Energy that is filled in when the block ends."""
    energy, processors, before = Energy(), ProcessorCounters(), _gpu_counters()
    try:
        yield energy
    finally:
        cpu = processors.stop()
    if cpu is not None:
        energy.joules["CPU"] = round(cpu, 1)
    after, in_use = _gpu_counters(), _gpus_in_use()
    # the counters of a driver that was loaded again in between start at zero
    if in_use and all(before.get(gpu, sys.maxsize) <= after.get(gpu, -1) for gpu in in_use):
        energy.joules["GPU"] = round(sum(after[gpu] - before[gpu] for gpu in in_use) / 1000, 1)
    energy.complete = "CPU" in energy.joules and (not in_use or "GPU" in energy.joules)


class ProcessorCounters:
    """All processors of this machine. Their counters start again at zero every few minutes or hours, so a
    thread reads them in between."""

    def __init__(self) -> None:
        self.used = 0  # microjoules
        self.ranges: dict[Path, int] = {}  # counter -> its largest value; empty if any of them cannot be read
        self.stopped = Event()
        try:
            for domain in POWERCAP.glob("intel-rapl:*"):  # the processors of AMD have this name too
                # other domains are parts of a processor, or include it: they would count it twice
                if (domain / "name").read_text().startswith("package"):
                    self.ranges[domain / "energy_uj"] = int((domain / "max_energy_range_uj").read_text())
            self.last = self._read()
        except (OSError, ValueError):  # often only root may read them
            self.ranges = {}
        self.thread = Thread(target=self._watch, daemon=True) if self.ranges else None
        if self.thread:
            self.thread.start()

    def stop(self) -> float | None:
        """Joules since the start; None if a counter could not be read at some time."""
        if self.thread:
            self.stopped.set()
            self.thread.join()
            self._add()
        return self.used / 1e6 if self.ranges else None

    def _watch(self) -> None:
        while not self.stopped.wait(READ_EVERY):
            self._add()

    def _add(self) -> None:
        try:
            now = self._read()
        except (OSError, ValueError):
            self.ranges = {}
            return
        self.used += sum(
            (now[counter] - self.last[counter]) % (largest + 1) for counter, largest in self.ranges.items()
        )
        self.last = now

    def _read(self) -> dict[Path, int]:
        return {counter: int(counter.read_text()) for counter in self.ranges}


def _gpu_counters() -> dict[str, int]:
    """Millijoules by UUID since the driver was loaded, of the GPUs that count them.

    This calls the driver's library itself: to import the package for it (nvidia-ml-py) would take longer.
    """
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return {}
    counters: dict[str, int] = {}
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return {}
    for n in range(count.value):
        gpu, uuid, used = ctypes.c_void_p(), ctypes.create_string_buffer(96), ctypes.c_ulonglong()
        failed = nvml.nvmlDeviceGetHandleByIndex_v2(n, ctypes.byref(gpu)) or nvml.nvmlDeviceGetUUID(
            gpu, uuid, len(uuid)
        )
        # the oldest GPUs do not count energy
        if not (failed or nvml.nvmlDeviceGetTotalEnergyConsumption(gpu, ctypes.byref(used))):
            counters[uuid.value.decode()] = used.value
    return counters


def _gpus_in_use() -> list[str]:
    """The GPUs that this process and the others under its launcher train on. Idle ones are left out."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    if not torch.cuda.is_initialized():
        other = other_accelerator()
        return [other] if other else []
    visible = [f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(torch.cuda.device_count())]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return visible[:processes] + ["not visible to this process"] * (processes - len(visible))


def other_accelerator() -> str | None:
    """The kind of an accelerator that is not NVIDIA's, such as "mps", if torch is loaded and there is one."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    kind = torch.accelerator.current_accelerator()
    return str(kind.type) if kind and kind.type != "cuda" and torch.accelerator.is_available() else None
