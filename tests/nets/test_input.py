"""How a network takes its images."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.functional import Input
from pipeline.nets import NetConfig
from pipeline.nets.input import InputConfig, resolve_input
from pipeline.settings import InputError

DATA = Input(64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
GREY = Input(28, (0.3,), (0.2,))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def resolved(
    settings: dict[str, Any], *, net: str = "resnet8", source: str = "random", data: Input = DATA
) -> Input:
    cfg = InputConfig.model_validate(settings)
    return resolve_input(cfg, net=net, source=source, data=data, field="teachers.big")


def normalisation(*args: Any, **options: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    found = resolved(*args, **options)
    return found.mean, found.std


def test_a_network_has_its_own_input() -> None:
    net = NetConfig.model_validate({"net": "resnet8", "input": {"size": 32, "mean": "data", "std": "data"}})
    assert net.input == InputConfig(size=32, mean="data", std="data")
    assert NetConfig(net="resnet8").input == InputConfig()


def test_the_size_is_that_of_the_network_or_of_the_data() -> None:
    assert resolved({}).size == 64
    assert resolved({"size": 32}).size == 32


def test_mean_and_deviation_are_words_or_numbers() -> None:
    own = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 1, 0.125]}
    assert normalisation(own) == ((0.5, 0.4, 0.3), (0.25, 1, 0.125))
    assert normalisation({"mean": "imagenet", "std": "imagenet"}) == IMAGENET
    assert normalisation({"mean": "data", "std": "data"}) == (DATA.mean, DATA.std)
    assert normalisation({"mean": "data", "std": "imagenet"}) == (DATA.mean, IMAGENET[1])


@pytest.mark.parametrize("source", ["random", "torchvision", "timm", "file"])
def test_what_is_written_goes_before_what_the_weights_say(source: str) -> None:
    own = {"mean": [0.5] * 3, "std": "data"}
    net = "resnet8" if source in ("random", "file") else f"{source}:resnet18"
    assert normalisation(own, net=net, source=source) == ((0.5,) * 3, DATA.std)


def test_a_random_network_takes_the_datas_own() -> None:
    assert normalisation({}, net="torchvision:resnet18") == (DATA.mean, DATA.std)


def test_the_weights_of_torchvision_bring_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights
    from torchvision.transforms._presets import ImageClassification

    name = "torchvision:resnet18"
    assert normalisation({}, net=name, source="torchvision") == IMAGENET
    own = ImageClassification(crop_size=224, mean=(0.1, 0.1, 0.1), std=(0.9, 0.9, 0.9))
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "transforms", lambda: own)
    assert normalisation({}, net=name, source="torchvision") == ((0.1,) * 3, (0.9,) * 3)


@pytest.mark.parametrize(
    ("member", "mean"),
    [("resnet18", IMAGENET[0]), ("vit_tiny_patch16_224.augreg_in21k", (0.5, 0.5, 0.5))],
)
def test_the_weights_of_timm_bring_their_own(member: str, mean: tuple[float, ...]) -> None:
    assert resolved({}, net=f"timm:{member}", source="timm").mean == mean


@pytest.mark.parametrize("hub", ["torchvision", "timm"])
def test_grey_images_have_the_datas_own_since_the_first_layer_is_new(hub: str) -> None:
    assert normalisation({}, net=f"{hub}:resnet18", source=hub, data=GREY) == (GREY.mean, GREY.std)


@pytest.mark.parametrize("net", ["resnet8", "torchvision:resnet18", "onnx:teacher.onnx"])
def test_a_file_must_say_it_and_the_line_to_write_is_shown(net: str) -> None:
    with pytest.raises(InputError, match=r"^teachers\.big\.input: nobody knows") as error:
        resolved({"size": 32}, net=net, source="file")
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert "input: {mean: imagenet, std: imagenet}" in lines
    for line in lines[1:]:
        cfg = InputConfig.model_validate(_parsed(line))
        resolve_input(cfg, net=net, source="file", data=DATA, field="teachers.big")


def _parsed(line: str) -> dict[str, Any]:
    import yaml

    settings: dict[str, Any] = yaml.safe_load(line)["input"]
    return settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": "imagenet"}, "mean and std belong together, and std is missing"),
        ({"std": [0.5] * 3}, "mean and std belong together, and mean is missing"),
        ({"mean": "imagnet", "std": "data"}, "mean"),
        ({"mean": [0.5] * 3, "std": [0.5, 0, 0.5]}, "must hold numbers above 0"),
        ({"mean": [0.5] * 3, "std": []}, "must hold numbers above 0"),
        ({"mean": [123.7, 116.3, 103.5], "std": [0.5] * 3}, "from 0 to 1. Divide those"),
        ({"mean": [0.5] * 3, "std": [58.4, 57.1, 57.4]}, "from 0 to 1. Divide those"),
        ({"mean": [-0.5] * 3, "std": [0.5] * 3}, "from 0 to 1"),
        ({"size": 7}, "must be 0 \\(that of the data\\) or 8 or more"),
        ({"size": 1025}, "1024"),
        ({"sizes": 32}, "sizes"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        InputConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        (
            {"mean": [0.5], "std": "data"},
            DATA,
            "input.mean needs a number for each channel of the images: 3, not 1",
        ),
        ({"mean": "data", "std": [0.5] * 3}, GREY, "input.std needs a number .*: 1, not 3"),
        ({"mean": "imagenet", "std": "imagenet"}, GREY, "input.mean is imagenet.*images are 1.*mean: data"),
        ({"mean": "data", "std": "imagenet"}, GREY, "input.std is imagenet.*std: data"),
    ],
)
def test_other_channels_are_refused(settings: dict[str, Any], data: Input, message: str) -> None:
    with pytest.raises(InputError, match=rf"^teachers\.big\.{message}"):
        resolved(settings, data=data)


@pytest.mark.parametrize("hub", ["torchvision", "timm"])
def test_a_hub_knows_its_own_networks_only(hub: str) -> None:
    message = rf"^teachers\.big\.start\.source: {hub} has weights for {hub}:NAME .* this one is 'resnet8'"
    with pytest.raises(InputError, match=message):
        resolved({}, source=hub)


def test_no_torch_is_loaded_for_the_settings() -> None:
    code = "import sys, pipeline.nets.input; assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
