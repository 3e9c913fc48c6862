"""How a network takes its images: their side, and the mean and deviation that they are normalised with."""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.settings import InputError, Settings

if TYPE_CHECKING:  # so that `import pipeline.nets` does not load torch
    from pipeline.functional import Input

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HUBS = ("torchvision", "timm")  # sources of weights that know how these were trained
Known = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation that weights were trained with
Given = Literal["imagenet", "data"] | tuple[float, ...] | None


class InputConfig(Settings):
    """What is left out is the data's own, or that of the pretrained weights where it is known."""

    size: int = Field(0, ge=0, le=1024, description="images are squares of this side; 0: that of the data")
    mean: Given = Field(None, description="of each channel, pixels from 0 to 1: imagenet, data or numbers")
    std: Given = Field(None, description="of each channel, pixels from 0 to 1: imagenet, data or numbers")

    @field_validator("size")
    @classmethod
    def _large_enough(cls, size: int) -> int:
        if 0 < size < 8:
            raise ValueError("must be 0 (that of the data) or 8 or more")
        return size

    @field_validator("mean", "std")
    @classmethod
    def _of_pixels_from_0_to_1(cls, given: Given) -> Given:
        if isinstance(given, tuple) and (min(given, default=0.0) < 0 or max(given, default=0.0) > 1):
            raise ValueError("must hold numbers from 0 to 1. Divide those for pixels from 0 to 255 by 255")
        return given

    @field_validator("std")
    @classmethod
    def _positive(cls, std: Given) -> Given:
        if isinstance(std, tuple) and min(std, default=0.0) <= 0:
            raise ValueError("must hold numbers above 0")
        return std

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.mean is None) != (self.std is None):
            missing = "mean" if self.mean is None else "std"
            raise ValueError(
                f"mean and std belong together, and {missing} is missing. Give it, or remove both"
            )
        return self


def resolve_input(cfg: InputConfig, *, net: str, source: str, data: "Input", field: str) -> "Input":
    """How the network at `field` takes its images; it is called `net` and starts from `source`.

    `data` is how the images are in the store, with their own mean and deviation.
    """
    if cfg.mean is None or cfg.std is None:
        mean, std = _own(net, source, data, field)
    else:
        mean, std = (_given(what, cfg, data, f"{field}.input") for what in ("mean", "std"))
    return replace(data, size=cfg.size or data.size, mean=mean, std=std)


def check_hub(net: str, source: str, field: str) -> None:
    """`field` is that of the start. A hub has weights for its own networks only."""
    if source in HUBS and not net.startswith(f"{source}:"):
        raise InputError(
            f"{field}.source: {source} has weights for {source}:NAME networks only, and this one is {net!r}. "
            "Write source: random, or source: file and name a state dict."
        )


def _own(net: str, source: str, data: "Input", field: str) -> Known:
    """What the first weights were trained with."""
    check_hub(net, source, f"{field}.start")
    if source == "file":
        raise InputError(
            f"{field}.input: nobody knows with which mean and deviation the weights in {field}.start were "
            f"trained. Write it in params.yaml at {field}, as one of\n"
            "    input: {mean: imagenet, std: imagenet}\n"
            "    input: {mean: data, std: data}\n"
            "    input: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
        )
    if source == "random" or len(data.mean) != 3:  # for other channels, the first layer is random too
        return data.mean, data.std
    return _normalisation(net, source)


def _normalisation(net: str, source: str) -> Known:
    from pipeline.nets import timm_zoo, torchvision_zoo

    if source == "torchvision":
        return torchvision_zoo.normalisation(net)
    return timm_zoo.normalisation(net)


def _given(what: Literal["mean", "std"], cfg: InputConfig, data: "Input", field: str) -> tuple[float, ...]:
    own: tuple[float, ...] = getattr(data, what)
    given: Given = getattr(cfg, what)
    if given == "imagenet" and len(own) != 3:
        raise InputError(
            f"{field}.{what} is imagenet, which has three channels, but those of the images are "
            f"{len(own)}. Write input: {{mean: data, std: data}}, or numbers."
        )
    if given == "data" or given is None:
        return own
    numbers = dict(zip(("mean", "std"), IMAGENET, strict=True))[what] if given == "imagenet" else given
    if len(numbers) != len(own):
        raise InputError(
            f"{field}.{what} needs a number for each channel of the images: {len(own)}, not {len(numbers)}."
        )
    return numbers
