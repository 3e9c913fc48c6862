"""The software and the CPU that a bundle was made with. It names no machine, person or folder."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.deploy.doctor import VNNI

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow")
# instruction sets that decide how fast a CPU computes, and for int8 how exactly
FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu(info: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The model and those of its instruction sets that matter; outside Linux only the architecture."""
    try:
        lines = [line.partition(":") for line in info.read_text().splitlines()]
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # those of the first core
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {
        "model": facts.get("model name", platform.machine()),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def has_vnni(flags: list[str]) -> bool:
    """Whether a CPU with these flags has 8-bit dot products."""
    return not VNNI.isdisjoint(flags)
