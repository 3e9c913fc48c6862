"""What a view may change of an image: presets, and single settings beside them."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.settings import Settings

# What a preset sets. What it leaves out is as in AugmentConfig.
PRESETS: dict[str, dict[str, Any]] = {
    "light": {},
    "standard": {"pad": 0, "crop": (0.35, 1.0), "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    "strong": {
        "pad": 0,
        "crop": (0.2, 1.0),
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.05,
        "grey": 0.1,
        "blur": 0.1,
        "erase": 0.1,
    },
}
KEPT = {"views", "seed", "views_gb"}  # by a run that names a preset of its own


class AugmentConfig(Settings):
    """What a view may change of an image. Single settings replace those of the preset.

    In order: shift or crop, mirror, one operation of `policy`, colours, grey, blur, erasing, mixing.
    """

    preset: Literal["light", "standard", "strong"] = Field(
        "light", description="light: shift and mirror; standard: crops and some colour; strong: much of all"
    )
    pad: int = Field(
        4,
        ge=0,
        description="pixels of the stored image to shift by, at most, each way; the mean fills the gap",
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal mirror")
    crop: tuple[float, float] = Field(
        (1.0, 1.0),
        description="share of the area that a random crop shows: smallest, largest; (1, 1): all of it",
    )
    ratio: tuple[float, float] = Field(
        (0.75, 1.3333), description="width of a crop over its height: smallest, largest"
    )
    policy: Literal["none", "trivial"] = Field(
        "none", description="trivial: one random operation for each image (TrivialAugment)"
    )
    brightness: float = Field(0.0, ge=0, le=1, description="factor of the brightness: 1 plus or minus this")
    contrast: float = Field(0.0, ge=0, le=1, description="factor of the contrast: 1 plus or minus this")
    saturation: float = Field(0.0, ge=0, le=1, description="factor of the saturation: 1 plus or minus this")
    hue: float = Field(
        0.0, ge=0, le=0.5, description="turn of the hue, at most, each way; 0.5: half a circle"
    )
    grey: float = Field(0.0, ge=0, le=1, description="probability of a grey image")
    blur: float = Field(
        0.0, ge=0, le=1, description="probability of a Gaussian blur, of 2 in 224 pixels at most"
    )
    erase: float = Field(0.0, ge=0, le=1, description="probability that a rectangle is erased")
    mixup: float = Field(
        0.0, ge=0, le=100, description="alpha of the share of another image that is mixed in; 0: none"
    )
    cutmix: float = Field(
        0.0, ge=0, le=100, description="alpha of the share of another image that is pasted in; 0: none"
    )

    views: int = Field(
        0,
        ge=0,
        le=10_000,
        description="fixed views of each image, the same for all runs; 0: new ones in every epoch",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="which fixed views")
    views_gb: float = Field(
        10.0, ge=0, description="disk for the teacher's answers to fixed views that a phase reads"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(str(given.get("preset", "light")), {})
        shift = {"pad": 0} if "crop" in given else {}  # a crop moves the image more than a shift
        return preset | shift | given

    @model_validator(mode="after")
    def _makes_sense(self) -> "AugmentConfig":
        low, high = self.crop
        if not 0.01 <= low <= high <= 1:
            raise ValueError(
                f"crop is {list(self.crop)}: give the smallest and the largest share of the area, from "
                "0.01 to 1, such as [0.35, 1.0]"
            )
        if not 0.1 <= self.ratio[0] <= self.ratio[1] <= 10:
            raise ValueError(
                f"ratio is {list(self.ratio)}: give the smallest and the largest width over height, from "
                "0.1 to 10, such as [0.75, 1.3333]"
            )
        if self.is_cropped and self.pad:
            raise ValueError(f"pad is {self.pad}, but a random crop moves the image already. Set pad to 0")
        return self

    @property
    def of_views(self) -> dict[str, Any]:
        """The settings that change a fixed view."""
        return self.model_dump(mode="json", exclude={"preset", "views", "views_gb"})

    @property
    def is_cropped(self) -> bool:
        return self.crop != (1.0, 1.0)

    @property
    def is_mixed(self) -> bool:
        return bool(self.mixup or self.cutmix)
