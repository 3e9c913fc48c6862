from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.deploy import info
from pipeline.deploy.read_bundle import open_bundle


def test_it_shows_classes_measurements_and_fingerprint(bundle: Path) -> None:
    text = info.text(open_bundle(bundle))
    for words in (
        "tiny: 5 classes (ant, bee",
        "16 x 16 x 3",
        "accuracy = 0.875",
        "spread = 0.01",
        "agreement 0.995",
        "loading it runs code",
    ):
        assert words in text
    assert open_bundle(bundle).fingerprint in text


def test_a_refused_int8_file_is_marked(bent: Callable[..., Path], template: Any) -> None:
    formats = {**template.facts["formats"], "int8": {**template.facts["formats"]["int8"], "accepted": False}}
    assert "FAILED its gate" in info.text(open_bundle(bent({"formats": formats})))


def test_a_class_name_cannot_steer_the_terminal(bent: Callable[..., Path]) -> None:
    assert "\x1b" not in info.text(open_bundle(bent({"name": "\x1b[2J"})))
