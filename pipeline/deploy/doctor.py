"""Which runtime this machine really has. Packages say what was built; only a session shows what runs."""

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
# The first Pillow that rounds differently when it shrinks a picture: some pixels differ by one grey level.
# Seen in 13.0.0.
OTHER_PILLOW = 13
SHOWN = ("numpy", "pillow", "onnx", "starlette", "uvicorn", "python-multipart")
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}  # flags of CPUs with 8-bit dot products
# an ONNX file with one Relu on one number: the smallest thing that a provider can be asked to run
SMALLEST_MODEL = bytes.fromhex(
    "080a12003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112"
    "040a02080142040a001014"
)
CURE = (
    "Remove every onnxruntime package, then install the one you want: `onnxruntime`, "
    "or `onnxruntime-gpu[cuda,cudnn]`."
)


@dataclass(frozen=True)
class Finding:
    """`bad`: the person has to do something. `absent`: something that was not asked for is missing."""

    says: str
    bad: bool = False
    absent: bool = False


def examine(provider: str = "cpu") -> list[Finding]:
    """All findings about this machine. One is bad if `provider` does not work here."""
    return list(_examine(provider))


def command(provider: str) -> int:
    """What `doctor` does. Returns 0, or 1 if something is bad."""
    findings = examine(provider)
    for finding in findings:
        print(f"{'BAD' if finding.bad else '-' if finding.absent else 'ok':<4}{finding.says}")
    return int(any(finding.bad for finding in findings))


def _examine(provider: str) -> Iterator[Finding]:
    installed = [(name, each) for each in distributions() if (name := (each.name or "").lower())]
    versions = {name: each.version for name, each in installed}
    yield Finding(f"Python {platform.python_version()} on {platform.platform()}")
    yield Finding(", ".join(f"{name} {versions.get(name, '-')}" for name in SHOWN))
    yield _source([each for name, each in installed if name.startswith("onnxruntime")])
    if missing := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        says = f"A package that is needed cannot be imported. Install it: pip install {' '.join(missing)}"
        yield Finding(says, bad=True)
        return
    yield from _pillow(versions.get("pillow", "0"))
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        says = f"onnxruntime cannot be imported ({error}). Install it: pip install onnxruntime"
        yield Finding(says, bad=True)
        return
    if not hasattr(onnxruntime, "InferenceSession"):
        yield Finding(
            f"onnxruntime is an empty package, as is left if one of two wheels is removed. {CURE}", bad=True
        )
        return
    yield from _providers(onnxruntime, provider)
    yield from _cpu(Path("/proc/cpuinfo"))


def _source(candidates: list[Distribution]) -> Finding:
    """Which package the module onnxruntime comes from."""
    owners = [
        each
        for each in candidates
        if any(str(file) == "onnxruntime/__init__.py" for file in each.files or [])
    ]
    names = ", ".join(f"{each.name} {each.version}" for each in owners) or "no package"
    if len(owners) > 1:
        says = f"{names} all write into one folder, and the last one replaced files of the others. {CURE}"
        return Finding(says, bad=True)
    return Finding(f"onnxruntime comes from {names}")


def _pillow(version: str) -> Iterator[Finding]:
    if int(version.partition(".")[0]) >= OTHER_PILLOW:
        yield Finding(
            f"Pillow {version} rounds differently when it shrinks pictures. Answers may differ a little from "
            "those that were evaluated. Install an older one: pip install 'pillow<13'",
            bad=True,
        )


def _providers(onnxruntime: Any, wanted: str) -> Iterator[Finding]:
    from pipeline.deploy.read_bundle import BundleError
    from pipeline.deploy.runtime import provider_named

    try:
        asked = provider_named(wanted)
    except BundleError as error:
        asked = ""
        yield Finding(str(error), bad=True)
    available = onnxruntime.get_available_providers()
    yield Finding(f"onnxruntime {onnxruntime.__version__} was built with: {', '.join(available)}")
    for provider in available:
        yield _provider(provider, is_asked=provider == asked)


def _provider(provider: str, *, is_asked: bool) -> Finding:
    """Whether a provider can run the smallest model."""
    from pipeline.deploy.read_bundle import BundleError
    from pipeline.deploy.runtime import CPU, session

    with _native_errors() as log:
        try:
            session(SMALLEST_MODEL, providers=[provider], name="a test")
            return Finding(f"{provider} works here")
        except BundleError:
            pass
    explained = re.findall(r"with error: (.+)", log[0])
    reason = explained[0] if explained else "onnxruntime's page on this provider says what it needs"
    says = f"{provider} is listed, but does not work here ({reason}); onnxruntime would silently use {CPU}"
    return Finding(says, bad=is_asked, absent=True)


@contextlib.contextmanager
def _native_errors() -> Iterator[list[str]]:
    """What native code writes to standard error: the only place where a provider's failure is explained."""
    log = [""]
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                yield log
        finally:
            os.dup2(original, 2)
            os.close(original)
            file.seek(0)
            log[0] = re.sub(r"\x1b\[[0-9;]*m", "", file.read().decode(errors="replace"))


def _cpu(cpuinfo: Path) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    yield Finding(f"{model[1] if model else platform.machine()}, {cores} cores for this process")
    if flags and not set(flags[1].split()) & VNNI:
        yield Finding(
            "This CPU has no 8-bit dot products (VNNI). So int8 is hardly faster than float, and some of its "
            "sums may saturate unless the file is portable (see `info`). `verify` checks its answers."
        )
