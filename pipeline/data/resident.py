"""How many bytes of pixels may stay in memory, so that they are read once."""

from pathlib import Path

import torch

RESIDENT_BYTES = 2 << 30
MEMORY = Path("/proc/meminfo")


def resident_bytes(device: torch.device) -> int:
    """On a GPU a quarter of what is free there, or 2 GiB if that is at most a half.

    On the host a quarter, and no more than 2 GiB: the system keeps what was read of a file, once for all
    processes, so a copy of our own would gain little.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return min(max(free // 4, RESIDENT_BYTES), free // 2)
    return min(RESIDENT_BYTES, _available() // 4)


def _available() -> int:
    """What the host can give without taking it from others, where the system says so."""
    try:
        lines = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    except OSError:
        return 4 * RESIDENT_BYTES
    return 1024 * int(lines["MemAvailable"].split()[0])
