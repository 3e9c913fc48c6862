"""Files that are either whole or not there: networks as safetensors, training state for going on after a stop."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.inputs import InputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends well, and vanishes when it doesn't."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill; it becomes `path` (replacing what was there) when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_weights(file: Path, state: dict[str, Any]) -> None:
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})
    with atomic_file(file) as partial:
        partial.write_bytes(content)  # save_file would make it readable by its owner alone


def load_weights(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file}: no usable weights there ({error}). Run `dvc repro`, or `dvc checkout` if they were made before."
        ) from error


def save_net(folder: Path, state: dict[str, Any], facts: dict[str, Any]) -> None:
    """`weights.safetensors` and `net.json` (what to build, and what is known of it) in `folder`."""
    save_weights(folder / "weights.safetensors", state)
    with atomic_file(folder / "net.json") as file:
        file.write_text(json.dumps(facts, indent=1) + "\n")


def load_net(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state dict and the facts that `save_net` wrote."""
    try:
        facts = json.loads((folder / "net.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"{folder}: no usable network there ({error}). Run `dvc repro`, or `dvc checkout` if it was made before."
        ) from error
    return load_weights(folder / "weights.safetensors"), facts


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers, strings and containers of them; nothing that needs unpickling."""
    import torch

    with atomic_file(path) as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None where nothing is; a damaged file is as good as none."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # any way in which a torn file can be unreadable
        print(f"{path} can't be read ({type(error).__name__}); starting this phase again.")
        return None
