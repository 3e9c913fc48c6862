"""How the machine is used: which device, in which precision and layout, whether bits repeat, and memory."""

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.settings import InputError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# parameters of glibc's mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD
KEEP_MEMORY = ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20))
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # torch reads it once, at the first product on a GPU


def best_device() -> torch.device:
    """The accelerator, if there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def name_of(device: torch.device) -> str:
    """What speed depends on: the name of the card, or what the CPU can do with how many threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is worth a try. On a CPU without it a step can take a hundred times as long."""
    if device.type != "cpu":
        return True
    is_there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def synchronise() -> None:
    """Wait until the device has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def autocast(device: str, precision: str) -> AbstractContextManager[None]:
    """Networks that run in this block compute in `precision`."""
    assert precision != "auto", "what auto stands for must be found first (runs/precision.py)"
    return torch.autocast(device, dtype=HALVES.get(precision, torch.bfloat16), enabled=precision in HALVES)


def is_fused(parameters: Iterable[nn.Parameter], precision: str) -> bool | None:
    """Whether the optimizer steps in one kernel; None: as torch does it by itself."""
    return True if precision != "fp32" and all(each.is_cuda for each in parameters) else None


def laid_out(images: Tensor, *, channels_last: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


@contextmanager
def computing(
    nets: Iterable[nn.Module], precision: str, *, channels_last: bool = False, deterministic: bool = False
) -> Iterator[None]:
    """The block trains these networks. All precisions but fp32 ask for speed; fp32 leaves torch as it is.

    `channels_last` holds within the block: at its end the weights lie in memory as usual.
    """
    nets = list(nets) if channels_last else []
    for net in nets:
        net.to(memory_format=torch.channels_last)
    try:
        with _repeatable(asked=deterministic), _fast(asked=precision != "fp32", chosen=not deterministic):
            yield
    finally:
        for net in nets:
            net.to(memory_format=torch.contiguous_format)


@contextmanager
def products(*, tf32: bool) -> Iterator[None]:
    """Whether a GPU may round to 10 bits of mantissa (TF32) in products and convolutions of float32."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def _fast(*, asked: bool, chosen: bool) -> Iterator[None]:
    """TF32, and with `chosen` cuDNN tries all its algorithms and takes the fastest."""
    if not asked:
        yield
        return
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, chosen
    try:
        with products(tf32=True):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _repeatable(*, asked: bool) -> Iterator[None]:
    """Only operations that give the same bits every time. One that cannot is refused in words."""
    if not asked:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        what, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise InputError(
            f"train.deterministic is true, but this training needs {what}, which does not give the same bits "
            "every time on this device. Set deterministic to false, or choose a method without it."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)


def fix_workspace(*, asked: bool) -> None:
    """Products on a GPU can repeat their bits. Call it before anything is computed."""
    if asked:
        os.environ.setdefault(WORKSPACE, ":4096:8")


def keep_memory() -> None:
    """Let glibc keep freed memory, instead of returning it to the system at every call.

    Does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in KEEP_MEMORY:
        mallopt(parameter, value)
