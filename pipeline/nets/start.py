"""What a network starts from: random weights, torchvision's, or a state dict in a file."""

import hashlib
import re
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.inputs import InputError, Settings
from pipeline.nets.torchvision_zoo import PREFIX

WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the state dict
SUFFIXES = (".safetensors", ".pt", ".pth")


class StartConfig(Settings):
    source: Literal["random", "torchvision", "file"] = "random"
    file: str = Field(default="", description="a state dict: .safetensors, .pt or .pth")
    sha256: str = Field(default="", description="the file's hash: DVC can't see the file, so this is what makes a changed file run again")

    @model_validator(mode="after")
    def _file_belongs_to_its_source(self) -> Self:
        if self.source == "file" and not self.file:
            raise InputError("source is 'file', but `file` is empty: name a state dict (.safetensors, .pt or .pth).")
        if self.source != "file" and (self.file or self.sha256):
            raise InputError(f"source is {self.source!r}, but a file is given: write source: file, or remove `file` and `sha256`.")
        return self


def load_start(net: nn.Module, start: StartConfig, *, name: str, field: str) -> tuple[str, ...]:
    """Gives `net` (built as `name`) the weights that the settings under `field` ask for; says which tensors stay random.

    Only a classifier for another number of classes may stay random. On any error the network is as it was.
    """
    if start.source == "random":
        return tuple(net.state_dict())
    if start.source == "torchvision":
        given, origin = _torchvision_weights(name, field), "torchvision's weights"
    else:
        given, origin = _read(start, field), start.file
    own = net.state_dict()
    given = {key if key in own else re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in given.items()}
    classifier = _classifier_keys(net)
    misshaped = [key for key, value in given.items() if key in own and value.shape != own[key].shape]
    random = tuple(key for key in misshaped if key in classifier and given[key].shape[1:] == own[key].shape[1:])
    # files from before batch norm counted its batches lack these
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in own]
    misfits = [f"{key} (there {_shape(given[key])}, here {_shape(own[key])})" for key in misshaped if key not in random]
    if missing or unexpected or misfits:
        raise InputError(
            f"{field}: {origin} isn't a {name} of this form: it holds {len(given)} tensors, the network {len(own)}."
            f"{_first('not in it', missing)}{_first('only in it', unexpected)}{_first('of another shape', misfits)} "
            "Name the network the weights were trained with, or weights that belong to this one."
        )
    net.load_state_dict(own | {key: value for key, value in given.items() if key not in random})
    return random


def _classifier_keys(net: nn.Module) -> set[str]:
    path = getattr(net, "classifier", None)
    if not isinstance(path, str):
        modules = list(net.named_modules())
        linear = [path for path, module in modules if isinstance(module, nn.Linear)]
        convolutions = [path for path, module in modules if isinstance(module, nn.Conv2d)]  # squeezenet classifies with one
        path = (linear or convolutions or [""])[-1]
    return {f"{path}.weight", f"{path}.bias"}


def _first(what: str, keys: list[str]) -> str:
    return f" {len(keys)} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}." if keys else ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _read(start: StartConfig, field: str) -> dict[str, Tensor]:
    file = Path(start.file).expanduser()
    if file.suffix not in SUFFIXES:
        raise InputError(f"{field}.file: {start.file} must end in one of {', '.join(SUFFIXES)}.")
    try:
        sha256 = _sha256(file)
    except OSError as error:
        raise InputError(f"{field}.file: {start.file} can't be opened ({error.strerror}). It is looked for from {Path.cwd()}.") from error
    if start.sha256.strip().lower() != sha256:
        problem = "belongs to another file" if start.sha256 else "is missing"
        raise InputError(
            f"{field}.sha256 {problem}. It makes a changed file run again. If {start.file} is the one you mean, write in params.yaml\n"
            f"    sha256: {sha256}"
        )
    try:
        content = _safetensors(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"{field}.file: {start.file} isn't a plain state dict. It is damaged, or it holds more than tensors, which could run code "
            "and so is refused. Save it again where it was made: torch.save(net.state_dict(), ...), or safetensors.torch.save_file."
        ) from error
    except Exception as error:  # a damaged file fails in any way
        problem = f"is truncated or damaged ({type(error).__name__})"
        raise InputError(f"{field}.file: {start.file} {problem}. Copy it again from where it came.") from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise InputError(
            f"{field}.file: {start.file} holds no state dict (names and tensors), neither directly nor under {' or '.join(WRAPPERS)}. "
            "Save one with torch.save(net.state_dict(), ...)."
        )
    return dict(content)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def _torchvision_weights(name: str, field: str) -> dict[str, Tensor]:
    if not name.startswith(PREFIX):
        raise InputError(
            f"{field}.source: torchvision has weights for torchvision:NAME networks only, and this one is {name!r}. "
            "Write source: random, or source: file and name a state dict."
        )
    from torchvision import models

    member = name.removeprefix(PREFIX)
    weights: Any = models.get_model_weights(member).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    way_out = f"get {weights.url} where there is a network and put it at {file}, or write source: file and name a state dict of {name}."
    # torchvision checks what it downloads, not what lies there; the file's name ends in the first digits of its hash
    if file.exists() and not _sha256(file).startswith(file.stem.rpartition("-")[2]):
        raise InputError(f"{field}.source: {file} is damaged or isn't what torchvision keeps there. Remove it; then {way_out}")
    try:
        return models.get_model(member, weights=weights, progress=sys.stderr.isatty()).state_dict()
    except (OSError, HTTPException, RuntimeError) as error:
        problem = f"torchvision's weights for {member} can't be had ({type(error).__name__}: {error})"
        raise InputError(f"{field}.source: {problem}. Without a network here: {way_out}") from error
