"""onnxruntime used strictly: the provider that was asked for runs, or an error says why not."""

import contextlib
import functools
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import onnxruntime

from pipeline.deploy.program import PROGRAM
from pipeline.deploy.read_bundle import BundleError

CPU = "CPUExecutionProvider"
OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # TF32 has 10 bits of mantissa, which changes answers
LARGEST_CONSTANT = 1 << 20  # bytes: larger constants are not computed in advance
QUIET = 4  # only fatal messages: onnxruntime's exceptions say the same as its log


def session(
    content: bytes, *, threads: int = 1, spin: bool = False, providers: Sequence[str] = (CPU,), name: str
) -> Any:
    """An inference session on exactly these providers.

    `spin` makes idle threads wait actively: a little faster, but their cores are always busy.
    """
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BundleError(f"onnxruntime is installed but empty. Run `{PROGRAM} doctor`.")
    if threads < 1:
        raise BundleError(f"threads: {threads} is not a number of threads. Give 1 or more.")
    wanted = [provider_named(provider) for provider in providers]
    if not wanted:
        raise BundleError("providers: the list is empty. Give at least 'cpu'.")
    options = _options(threads, spin=spin)
    with_options = [(provider, OPTIONS.get(provider, {})) for provider in wanted]
    try:
        with _accelerated() if wanted != [CPU] else contextlib.nullcontext():
            made = onnxruntime.InferenceSession(content, options, providers=with_options)
    except Exception as error:  # onnxruntime's own types, and UnicodeDecodeError on some damaged files
        reason = " ".join(str(error).split())[:300]
        raise BundleError(
            f"{name}: onnxruntime cannot load it ({type(error).__name__}: {reason})."
        ) from error
    if lost := [provider for provider in wanted if provider not in made.get_providers()]:
        raise BundleError(
            f"providers: {', '.join(lost)} cannot be used here; onnxruntime would run on "
            f"{', '.join(made.get_providers())} instead. "
            f"Run `{PROGRAM} doctor` for the reason, or ask for 'cpu'."
        )
    return made


def provider_named(name: str) -> str:
    """onnxruntime's name of a provider. `name` is that name, or its short form ('cuda')."""
    available = onnxruntime.get_available_providers()
    for provider in available:
        if name.lower() in (provider.lower(), _short(provider)):
            return str(provider)
    choices = ", ".join(map(_short, available))
    raise BundleError(f"providers: this onnxruntime has no {name!r}. Choose one of: {choices}.")


def memory() -> int:
    """Bytes that the tensors of all sessions of a process may take together: half of the machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return 4 << 30


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


def _options(threads: int, *, spin: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    _limit_memory()
    entries = {
        "session.use_env_allocators": "1",
        "optimization.constant_folding_max_output_size_in_bytes": str(LARGEST_CONSTANT),
        "session.intra_op.allow_spinning": str(int(spin)),
        "session.inter_op.allow_spinning": str(int(spin)),
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


@functools.cache
def _limit_memory() -> None:
    """Give onnxruntime's allocator a limit.

    A file of a few bytes can ask for terabytes, in more ways than a list of allowed operators can prevent.
    """
    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(where, onnxruntime.OrtArenaCfg({"max_mem": memory()}))


@contextlib.contextmanager
def _accelerated() -> Iterator[None]:
    """Load CUDA's libraries from their Python packages, and print nothing.

    If a provider fails, onnxruntime prints to standard output that it falls back to another one.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        yield
