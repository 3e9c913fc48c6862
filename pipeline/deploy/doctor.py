"""Which runtime is really here. Packages and lists say what was built; only a session says what runs."""

import contextlib
import importlib
import importlib.util
import io
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

NEEDED = {"numpy": "numpy", "PIL": "'pillow<13'"}
OTHER_PILLOW = 13  # the first that rounds otherwise when it shrinks a picture, by one grey level in some pixels; seen in 13.0.0
SHOWN = ("numpy", "pillow", "onnx", "starlette", "uvicorn", "python-multipart")
# an ONNX file of one Relu on one number: the smallest thing that a provider can be asked to run
SMALLEST = bytes.fromhex(
    "080a12003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001014"
)


@dataclass(frozen=True)
class Finding:
    """Something seen; `bad` where the person has to act, `absent` where only something else can't be had."""

    says: str
    bad: bool = False
    absent: bool = False


def examine(provider: str = "cpu") -> list[Finding]:
    """All that can be seen of this machine; bad if `provider` can't be had here."""
    installed = [(name, each) for each in distributions() if (name := (each.name or "").lower())]
    versions = {name: each.version for name, each in installed}
    found = [
        Finding(f"Python {platform.python_version()} on {platform.platform()}"),
        Finding(", ".join(f"{name} {versions.get(name, '-')}" for name in SHOWN)),
    ]
    found += _packages([each for name, each in installed if name.startswith("onnxruntime")])
    if missing := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        return [*found, Finding(f"Something that is needed can't be imported. Install it: pip install {' '.join(missing)}", bad=True)]
    if int(versions.get("pillow", "0").partition(".")[0]) >= OTHER_PILLOW:
        cure = "Answers may differ a little from those that were evaluated: pip install 'pillow<13'"
        found.append(
            Finding(f"Pillow {versions['pillow']} shrinks pictures with another rounding than the evaluation did. {cure}", bad=True)
        )
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        return [*found, Finding(f"onnxruntime can't be imported ({error}). Install it: pip install onnxruntime", bad=True)]
    if not hasattr(onnxruntime, "InferenceSession"):
        return [*found, Finding("onnxruntime is an empty shell, as is left where one of two wheels was removed. " + _CURE, bad=True)]
    return [*found, *_providers(onnxruntime, provider), *_cpu(Path("/proc/cpuinfo"))]


def command(provider: str) -> int:
    """What `doctor` does; 0, or 1 where something is bad."""
    found = examine(provider)
    for finding in found:
        print(f"{'BAD' if finding.bad else '-' if finding.absent else 'ok':<4}{finding.says}")
    return int(any(finding.bad for finding in found))


_CURE = "Remove every onnxruntime package, then install the one you want: `onnxruntime`, or `onnxruntime-gpu[cuda,cudnn]`."


def _packages(candidates: list[Distribution]) -> list[Finding]:
    owners = [each for each in candidates if any(str(file) == "onnxruntime/__init__.py" for file in each.files or [])]
    said = ", ".join(f"{each.name} {each.version}" for each in owners) or "no package"
    if len(owners) > 1:
        return [Finding(f"{said} all write into one folder, and the last one wrote over the others. {_CURE}", bad=True)]
    return [Finding(f"onnxruntime comes from {said}")]


def _providers(onnxruntime: Any, wanted: str) -> Iterator[Finding]:
    from pipeline.deploy.bundle import BundleError
    from pipeline.deploy.runtime import CPU, provider_named, session

    try:
        asked = provider_named(wanted)
    except BundleError as error:
        asked = ""
        yield Finding(str(error), bad=True)
    yield Finding(f"onnxruntime {onnxruntime.__version__} was built with: {', '.join(onnxruntime.get_available_providers())}")
    for provider in onnxruntime.get_available_providers():
        with _native_errors() as log:
            try:
                session(SMALLEST, providers=[provider], name="a test")
                works = True
            except BundleError:
                works = False
        if works:
            yield Finding(f"{provider} works here")
        else:
            reason = re.findall(r"with error: (.+)", log[0]) or ["see onnxruntime's page on that provider for what it needs"]
            retreat = f"is listed, but doesn't work here ({reason[0]}); onnxruntime would silently take {CPU} instead"
            yield Finding(f"{provider} {retreat}", bad=provider == asked, absent=True)


@contextlib.contextmanager
def _native_errors() -> Iterator[list[str]]:
    """What native code writes to standard error meanwhile: the only place where a provider's failure is explained."""
    log = [""]
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                yield log
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            log[0] = re.sub(r"\x1b\[[0-9;]*m", "", file.read().decode(errors="replace"))


def _cpu(cpuinfo: Path) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    yield Finding(f"{model[1] if model else platform.machine()}, {cores} cores for this process")
    if flags and not set(flags[1].split()) & {"avx512_vnni", "avx_vnni", "asimddp"}:
        yield Finding(
            "this CPU has no 8-bit dot products (VNNI): int8 gains little, and unless it is portable it may saturate; verify shows"
        )
