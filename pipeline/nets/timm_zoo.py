"""`timm:NAME`: every network of timm, an optional dependency. NAME may end in the tag of its weights."""

import difflib
from types import ModuleType

from torch import Tensor, nn

from pipeline.nets.importable import without_inplace
from pipeline.nets.input import Known
from pipeline.settings import InputError, unknown

PREFIX = "timm:"
NAMES = ("timm:<name>",)
SHOWN = 8  # timm has more than a thousand names


def member_of(name: str) -> str:
    """timm's own name of the network `timm:NAME`."""
    timm, member = _timm(name), name.removeprefix(PREFIX)
    members = [*timm.list_models(), *timm.list_pretrained()]  # the first without tags, the second with them
    if member not in members:
        near = difflib.get_close_matches(member, members, n=SHOWN, cutoff=0)
        raise InputError(
            f"{unknown('net', name, (PREFIX + known for known in near))} These are the nearest; "
            "`python -c 'import timm; print(timm.list_models())'` prints all."
        )
    return member


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if not name.startswith(PREFIX):
        return None
    net: nn.Module = _timm(name).create_model(member_of(name), num_classes=classes, in_chans=channels)
    return without_inplace(net)


def normalisation(name: str) -> Known:
    """Mean and deviation that timm's weights for a network were trained with."""
    weights = _timm(name).get_pretrained_cfg(member_of(name))
    return tuple(weights.mean), tuple(weights.std)


def weights_of(name: str, field: str) -> dict[str, Tensor]:
    """timm's weights for a network, from the hub or from what was once downloaded."""
    timm, member = _timm(name), member_of(name)
    about = timm.get_pretrained_cfg(member)
    if not about.has_weights:
        raise InputError(
            f"{field}.source: timm has no weights for {member}. Write source: random, or choose a name of "
            "`python -c 'import timm; print(timm.list_pretrained())'`."
        )
    try:
        net: nn.Module = timm.create_model(member, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{field}.source: timm's weights for {member} cannot be loaded ({type(error).__name__}: "
            f"{error}). Without internet access, get "
            f"https://huggingface.co/{about.hf_hub_id}/resolve/main/model.safetensors on a machine that "
            "has it, write source: file, and name that file."
        ) from error
    return net.state_dict()


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise InputError(
            f"net: {name!r} is a network of timm, which is not installed. Install it: `make setup`, or "
            "`uv pip install 'timm>=1.0.25,<2'` in your own environment."
        ) from error
    module: ModuleType = timm
    return module
