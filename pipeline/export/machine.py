"""What a bundle was made with, as far as its numbers depend on it: no name of a machine, a person or a folder."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow")
# what decides how fast, and for int8 how exactly, a CPU computes
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu(info: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The model and those of its instruction sets that matter; outside Linux the architecture alone."""
    try:
        lines = [line.partition(":") for line in info.read_text().splitlines()]
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # of many cores the first
    flags = told.get("flags", told.get("Features", "")).split()
    return {"model": told.get("model name", platform.machine()), "flags": [flag for flag in FLAGS if flag in flags]}


def has_vnni(flags: list[str]) -> bool:
    return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}.isdisjoint(flags)
