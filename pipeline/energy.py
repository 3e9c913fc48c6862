"""The energy used while a stage worked, as the machine itself counts it: its processors (RAPL) and its NVIDIA GPUs (NVML).

What no counter tells is not guessed. Memory, disks and cooling are in none of them; other work on the machine is.
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
EVERY = 30.0  # seconds; the smallest counters begin again after 65 kJ, which takes longer below 2 kW


@dataclass
class Energy:
    """Joules of the CPU, the GPU or both; `whole` if nothing else computed."""

    joules: dict[str, float] = field(default_factory=dict)
    whole: bool = False


@contextmanager
def metered() -> Iterator[Energy]:
    """What is used in here; told at the end."""
    told, processors, before = Energy(), Processors(), _gpus()
    try:
        yield told
    finally:
        joules = processors.stop()
    if joules is not None:
        told.joules["CPU"] = round(joules, 1)
    after, used = _gpus(), _gpus_at_work()
    if used and all(before.get(gpu, sys.maxsize) <= after.get(gpu, -1) for gpu in used):  # a driver loaded anew begins at zero
        told.joules["GPU"] = round(sum(after[gpu] - before[gpu] for gpu in used) / 1000, 1)
    told.whole = "CPU" in told.joules and (not used or "GPU" in told.joules)


class Processors:
    """All packages of this machine. Their counters begin again at zero every few minutes or hours: a thread looks in between."""

    def __init__(self) -> None:
        self.used, self.ranges, self.over = 0, {}, Event()
        try:
            for domain in POWERCAP.glob("intel-rapl:*"):  # AMD's too
                if (domain / "name").read_text().startswith("package"):  # what is inside them, or psys around, would count twice
                    self.ranges[domain / "energy_uj"] = int((domain / "max_energy_range_uj").read_text())
            self.last = self._read()
        except (OSError, ValueError):  # often only root may read them
            self.ranges = {}
        self.thread = Thread(target=self._watch, daemon=True) if self.ranges else None
        if self.thread:
            self.thread.start()

    def stop(self) -> float | None:
        """Joules since the beginning; None where they couldn't be read all along."""
        if self.thread:
            self.over.set()
            self.thread.join()
            self._look()
        return self.used / 1e6 if self.ranges else None

    def _watch(self) -> None:
        while not self.over.wait(EVERY):
            self._look()

    def _look(self) -> None:
        try:
            now = self._read()
        except (OSError, ValueError):
            self.ranges = {}
            return
        self.used += sum((now[counter] - self.last[counter]) % (end + 1) for counter, end in self.ranges.items())
        self.last = now

    def _read(self) -> dict[Path, int]:
        return {counter: int(counter.read_text()) for counter in self.ranges}


def _gpus() -> dict[str, int]:
    """Millijoules since the driver was loaded, by UUID, of the GPUs that count them. Asked of the driver's own library: the package
    around it (nvidia-ml-py) costs every process that loads torch a tenth of a second."""
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return {}
    told, count = {}, ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return {}
    for n in range(count.value):
        gpu, uuid, used = ctypes.c_void_p(), ctypes.create_string_buffer(96), ctypes.c_ulonglong()
        failed = nvml.nvmlDeviceGetHandleByIndex_v2(n, ctypes.byref(gpu)) or nvml.nvmlDeviceGetUUID(gpu, uuid, len(uuid))
        if not (failed or nvml.nvmlDeviceGetTotalEnergyConsumption(gpu, ctypes.byref(used))):  # which the oldest don't count
            told[uuid.value.decode()] = used.value
    return told


def _gpus_at_work() -> list[str]:
    """Those that this process and the others under its launcher train on; idle ones beside them are nobody's cost."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    if not torch.cuda.is_initialized():
        kind = torch.accelerator.current_accelerator()
        return [kind.type] if kind and kind.type != "cuda" and torch.accelerator.is_available() else []
    seen = [f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(torch.cuda.device_count())]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return seen[:processes] + ["not seen from here"] * (processes - len(seen))
