"""onnxruntime as it should behave: what was asked for runs, or an error says why not."""

import contextlib
import functools
import io
import os
from collections.abc import Sequence
from typing import Any

import onnxruntime

from pipeline.deploy.bundle import BundleError

CPU = "CPUExecutionProvider"
OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # 10 bits of mantissa would change answers
LARGEST_CONSTANT = 1 << 20  # bytes of what is worth computing before the first picture
QUIET = 4  # onnxruntime logs to standard error what its exceptions say too


def session(content: bytes, *, threads: int = 1, spin: bool = False, providers: Sequence[str] = (CPU,), name: str) -> Any:
    """An inference session on exactly these providers. `spin` keeps idle threads busy waiting: faster by a little, and never idle."""
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BundleError("onnxruntime is installed but empty. Run `python -m pipeline.deploy doctor`.")
    if threads < 1:
        raise BundleError(f"threads: {threads} is no number of threads. Give 1 or more.")
    wanted = [provider_named(each) for each in providers]
    if not wanted:
        raise BundleError("providers: none is named. Give at least 'cpu'.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    _limit_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(LARGEST_CONSTANT))
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", str(int(spin)))
    try:
        with _accelerated() if wanted != [CPU] else contextlib.nullcontext():
            made = onnxruntime.InferenceSession(content, options, providers=[(each, OPTIONS.get(each, {})) for each in wanted])
    except Exception as error:  # onnxruntime's own types, and UnicodeDecodeError on some damaged files
        raise BundleError(f"{name}: onnxruntime can't load it ({type(error).__name__}: {' '.join(str(error).split())[:300]}).") from error
    if lost := [each for each in wanted if each not in made.get_providers()]:
        raise BundleError(
            f"providers: {', '.join(lost)} can't be used here; onnxruntime would run on {', '.join(made.get_providers())} unasked. "
            "Run `python -m pipeline.deploy doctor` for the reason, or ask for 'cpu'."
        )
    return made


def provider_named(name: str) -> str:
    """onnxruntime's name of a provider, given as that or in short ('cuda')."""
    offered = onnxruntime.get_available_providers()
    for each in offered:
        if name.lower() in (each.lower(), each.removesuffix("ExecutionProvider").lower()):
            return str(each)
    short = ", ".join(each.removesuffix("ExecutionProvider").lower() for each in offered)
    raise BundleError(f"providers: this onnxruntime has no {name!r}. Choose one of: {short}.")


def memory() -> int:
    """Bytes that the tensors of all sessions in a process may take together: half of this machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return 4 << 30


@functools.cache
def _limit_memory() -> None:
    """A file of a few bytes can ask for terabytes, in more ways than a list of operators can name; so onnxruntime itself gets an end."""
    where = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(where, onnxruntime.OrtArenaCfg({"max_mem": memory()}))


@contextlib.contextmanager
def _accelerated() -> Any:
    """CUDA's libraries may lie in Python packages; and where a provider fails, onnxruntime prints its retreat to standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        yield
