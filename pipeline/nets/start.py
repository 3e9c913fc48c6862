"""What a network starts from: random weights, those of torchvision or timm, or a file."""

import re
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, Self, TypeGuard

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.files import sha256
from pipeline.nets import onnx_file, timm_zoo, torchvision_zoo
from pipeline.nets.input import HUBS, check_hub
from pipeline.settings import InputError, Settings

WRAPPERS = ("state_dict", "model")  # keys under which training scripts save the state dict
SUFFIXES = (".safetensors", ".pt", ".pth")


class StartConfig(Settings):
    """Where a network's first weights come from."""

    source: Literal["random", "torchvision", "timm", "file"] = "random"
    file: str = Field(
        default="", description="a state dict: .safetensors, .pt or .pth. Left out for an onnx: network"
    )
    sha256: str = Field(
        default="",
        description="the file's hash. DVC does not watch the file: the stage runs again if this hash changes",
    )

    @model_validator(mode="after")
    def _file_belongs_to_its_source(self) -> Self:
        if self.source != "file" and (self.file or self.sha256):
            raise InputError(
                f"source is {self.source!r}, but a file is given: write source: file, "
                "or remove `file` and `sha256`."
            )
        return self


def check_start(start: StartConfig, *, net: str, field: str) -> None:
    """Refuse what the settings at `field` alone show to be wrong for the network called `net`."""
    check_hub(net, start.source, field)
    if start.source == "torchvision" and not torchvision_zoo.has_weights(net):
        raise InputError(
            f"{field}.source: torchvision has no weights for {net}. Write source: random, or source: "
            "file and name a state dict."
        )
    if net.startswith(onnx_file.PREFIX):
        if start.source != "file" or start.file:
            raise InputError(
                f"{field}: {net} is what its own file holds. Write start: {{source: file, sha256: ...}}, "
                "without `file`."
            )
    elif start.source == "file" and not start.file:
        raise InputError(
            f"{field}.source is 'file', but `file` is empty: name a state dict (.safetensors, .pt or .pth)."
        )


def check_file(start: StartConfig, *, net: str, field: str) -> None:
    """Refuse a file of weights, or an ONNX file, that is not there or has another hash than it should."""
    if start.source == "file":
        file = start.file or net.removeprefix(onnx_file.PREFIX)
        where = f"{field}.file: {file}" if start.file else f"{field.removesuffix('.start')}.net: {file}"
        _check_hash(Path(file).expanduser(), start, where=where, field=field)


def load_start(net: nn.Module, start: StartConfig, *, name: str, field: str) -> tuple[str, ...]:
    """Load into `net`, which was built as `name`, the weights that the settings at `field` name.

    Returns the names of the tensors that stay random. With weights to load, these are at most a classifier
    for other classes and, with the weights of a hub, a first convolution for other channels. On any error
    the network is as it was.
    """
    check_start(start, net=name, field=field)
    if start.source == "random":
        return tuple(net.state_dict())
    if isinstance(net, onnx_file.OnnxNet):
        _take_onnx(net, start, field)
        return ()
    if start.source == "torchvision":
        found, origin = _torchvision_weights(name, field), "torchvision's file"
    elif start.source == "timm":
        found, origin = timm_zoo.weights_of(name, field), "timm's file"
    else:
        found, origin = _read(start, field), start.file
    own = net.state_dict()
    weights = {_without_prefix(key, own): tensor for key, tensor in found.items()}
    random = _replaced(net, weights, own, is_of_hub=start.source in HUBS)
    if differences := _differences(weights, own, random):
        raise InputError(
            f"{field}: {origin} does not fit {name}. "
            f"It holds {len(weights)} tensors; the network has {len(own)}.{differences} "
            "Name the network that the weights were trained with, or weights of this network."
        )
    net.load_state_dict(own | {key: tensor for key, tensor in weights.items() if key not in random})
    return random


def keep_outputs(net: nn.Module, positions: Sequence[int]) -> None:
    """Cut the layer that classifies to the outputs at these positions, in this order."""
    kept = torch.tensor(positions)
    if isinstance(net, onnx_file.OnnxNet):
        net.outputs = net.outputs[kept.to(net.outputs.device)]
        return
    layer = net.get_submodule(_classifier_path(net))
    for name, old in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(old.detach()[kept.to(old.device)], old.requires_grad))
    for module in net.modules():
        for count in ("num_classes", *(("out_features", "out_channels") if module is layer else ())):
            if isinstance(getattr(module, count, None), int):
                setattr(module, count, len(positions))


def known_classes(net: str, source: str) -> list[str] | None:
    """The classes that the weights of a hub tell apart, in the order of the outputs; None if nobody says."""
    if source != "torchvision":
        return None
    classes: list[str] | None = torchvision_zoo.weights_of(net).meta.get("categories")
    return classes


def _replaced(
    net: nn.Module, weights: dict[str, Tensor], own: Mapping[str, Tensor], *, is_of_hub: bool
) -> tuple[str, ...]:
    """The tensors that stay random although there are weights, since classes or channels are others."""
    classifier = _keys(_classifier_path(net), own)
    if not any(key in weights for key in classifier):  # these weights have no classifier
        weights = weights | {key: own[key][:0] for key in classifier}
    others = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    first = [f"{path}.weight" for path in _paths(net, nn.Conv2d)[:1] if is_of_hub]
    return tuple(
        key
        for key in others
        if (key in classifier and weights[key].shape[1:] == own[key].shape[1:])
        or (key in first and weights[key].shape[2:] == own[key].shape[2:])
    )


def _take_onnx(net: onnx_file.OnnxNet, start: StartConfig, field: str) -> None:
    where = f"{field.removesuffix('.start')}.net: {net.file}"
    file = Path(net.file).expanduser()
    _check_hash(file, start, where=where, field=field)
    try:
        net.take(file.read_bytes())
    except InputError as error:
        raise InputError(f"{field}: {error}") from error


def _without_prefix(key: str, own: Mapping[str, Tensor]) -> str:
    """The tensor's name without what DataParallel and torch.compile put before it."""
    return key if key in own else re.sub(r"^(module\.|_orig_mod\.)+", "", key)


def _classifier_path(net: nn.Module) -> str:
    path = getattr(net, "classifier", None)
    if isinstance(path, str):
        return path
    # squeezenet classifies with a convolution
    return (_paths(net, nn.Linear) or _paths(net, nn.Conv2d) or [""])[-1]


def _paths(net: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [path for path, module in net.named_modules() if isinstance(module, kind)]


def _keys(path: str, own: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The parameters of the layer at `path`."""
    return tuple(key for key in (f"{path}.weight", f"{path}.bias") if key in own)


def _differences(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], random: tuple[str, ...]) -> str:
    """Why the weights cannot be loaded, or "" if they can. Those in `random` are not needed."""
    needed = [key for key in own if key not in random]
    # files from before batch norm counted its batches lack these
    missing = [key for key in needed if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    misshaped = [key for key in needed if key in weights and weights[key].shape != own[key].shape]
    shapes = [f"{key} (there {_shape(weights[key])}, here {_shape(own[key])})" for key in misshaped]
    return (
        f"{_first('missing in the file', missing)}{_first('only in the file', unexpected)}"
        f"{_first('of another shape', shapes)}"
    )


def _first(what: str, keys: list[str]) -> str:
    return f" {len(keys)} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}." if keys else ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _read(start: StartConfig, field: str) -> dict[str, Tensor]:
    """The state dict in `start.file`, which must have the hash in `start.sha256`."""
    file, where = Path(start.file).expanduser(), f"{field}.file: {start.file}"
    if file.suffix not in SUFFIXES:
        raise InputError(f"{where} must end in one of {', '.join(SUFFIXES)}.")
    _check_hash(file, start, where=where, field=field)
    return read_weights(file, where)


def read_weights(file: Path, where: str) -> dict[str, Tensor]:
    """The state dict in a file, which `where` names in messages."""
    content = _load(file, where)
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not _is_state_dict(content):
        raise InputError(
            f"{where} holds no state dict (names and tensors), neither directly nor under "
            f"{' or '.join(WRAPPERS)}. Save one with torch.save(net.state_dict(), ...)."
        )
    return dict(content)


def _check_hash(file: Path, start: StartConfig, *, where: str, field: str) -> None:
    try:
        with file.open("rb"):  # a folder has a hash, but cannot be opened
            found = sha256(file)
    except OSError as error:
        raise InputError(
            f"{where} cannot be opened ({error.strerror}). A relative path starts at {Path.cwd()}."
        ) from error
    if start.sha256.strip().lower() != found:
        problem = "belongs to another file" if start.sha256 else "is missing"
        raise InputError(
            f"{field}.sha256 {problem}. It makes the stage run again if the file changes. If {file} is "
            f"the right file, write in params.yaml\n    sha256: {found}"
        )


def _load(file: Path, where: str) -> Any:
    try:
        if file.suffix == ".safetensors":
            return _load_safetensors(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"{where} is not a plain state dict. It is damaged, or it holds more than tensors, which could "
            "run code and so is refused. Save it again where it was made: torch.save(net.state_dict(), ...), "
            "or safetensors.torch.save_file."
        ) from error
    except Exception as error:  # a damaged file fails in any way
        raise InputError(
            f"{where} is truncated or damaged ({type(error).__name__}). Copy it again from where it came."
        ) from error


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def _is_state_dict(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _torchvision_weights(name: str, field: str) -> dict[str, Tensor]:
    from torchvision import models

    member, weights = torchvision_zoo.member_of(name), torchvision_zoo.weights_of(name)
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    remedy = (
        f"get {weights.url} on a machine with internet access and put it at {file}, or write source: file "
        f"and name a state dict of {name}."
    )
    # torchvision checks downloads only; the name of its file ends in the start of the hash
    if file.exists() and not sha256(file).startswith(file.stem.rpartition("-")[2]):
        raise InputError(
            f"{field}.source: {file} is damaged, or is not the file that torchvision keeps there. Remove it. "
            f"Then {remedy}"
        )
    try:
        net: nn.Module = models.get_model(member, weights=weights, progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:
        raise InputError(
            f"{field}.source: torchvision's weights for {member} cannot be loaded ({type(error).__name__}: "
            f"{error}). Without internet access, {remedy}"
        ) from error
    return net.state_dict()
