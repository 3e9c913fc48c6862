import pytest
from pydantic import ValidationError

from pipeline.data.augment import PRESETS, AugmentConfig


def test_a_setting_replaces_that_of_the_preset() -> None:
    standard = AugmentConfig(preset="standard")
    assert (standard.crop, standard.pad, standard.brightness) == ((0.35, 1.0), 0, 0.2)
    changed = AugmentConfig(preset="standard", brightness=0.1)
    assert changed == standard.model_copy(update={"brightness": 0.1})


def test_the_presets_get_stronger() -> None:
    light, standard, strong = (AugmentConfig(preset=name) for name in PRESETS)
    assert light.crop[0] > standard.crop[0] > strong.crop[0]
    assert light.brightness < standard.brightness < strong.brightness
    assert light.blur == standard.blur == 0 < strong.blur
    assert not light.is_mixed | standard.is_mixed | strong.is_mixed  # whether labels are mixed is a choice


def test_without_settings_views_are_shifted_and_mirrored() -> None:
    light = AugmentConfig()
    assert (light.preset, light.pad, light.flip) == ("light", 4, 0.5)
    assert not light.is_cropped


def test_a_crop_takes_the_place_of_the_shift() -> None:
    assert AugmentConfig(crop=(0.5, 1.0)).pad == 0


def test_settings_that_were_written_out_are_read_as_they_are() -> None:
    for name in PRESETS:
        cfg = AugmentConfig(preset=name, flip=0.25)
        assert AugmentConfig(**cfg.model_dump()) == cfg


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pad": -1}, "pad"),
        ({"flip": 1.1}, "flip"),
        ({"flip": -0.1}, "flip"),
        ({"preset": "wild"}, "preset"),
        ({"policy": "auto"}, "policy"),
        ({"crop": [0.5, 0.4]}, "smallest and the largest share"),
        ({"crop": [0.0, 1.0]}, "smallest and the largest share"),
        ({"crop": 3}, "crop"),
        ({"ratio": [2.0, 1.0]}, "smallest and the largest width over height"),
        ({"crop": [0.5, 1.0], "pad": 2}, "Set pad to 0"),
        ({"hue": 0.6}, "hue"),
        ({"brightness": 1.5}, "brightness"),
        ({"blur": 2}, "blur"),
        ({"erase": -1}, "erase"),
        ({"mixup": -1}, "mixup"),
        ({"cutmix": 1000}, "cutmix"),
        ({"zoom": 2}, "zoom"),
    ],
)
def test_wrong_settings_name_the_field(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AugmentConfig(**given)
