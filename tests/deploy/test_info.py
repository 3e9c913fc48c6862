import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.deploy import info
from pipeline.deploy.__main__ import main
from pipeline.deploy.read_bundle import open_bundle, sealed


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


def test_a_temperature_is_shown(warm: Any, bundle: Path, tmp_path: Path) -> None:
    calibration = {
        "temperature": 2.5,
        "float": {"ece_after": 0.0125, "thresholds": {"0.5": {"answered": 1.0}}},
    }
    folder = replace(warm, facts={**warm.facts, "calibration": calibration}).write(tmp_path / "warm")
    text = info.text(open_bundle(folder))
    assert "calibrated: softmax(logits / 2.5)" in text
    assert "calibration float.thresholds.0.5.answered = 1" in text
    assert "calibrat" not in info.text(open_bundle(bundle))


def deep(levels: int, *, of_lists: bool = False) -> Any:
    facts: Any = "the bottom"
    for _ in range(levels):
        facts = [facts] if of_lists else {"a": facts}
    return facts


ABSURD: tuple[Any, ...] = (
    deep(60, of_lists=True),
    None,
    True,
    3,
    -1,
    1e300,
    10**400,
    "\ud800",
    "",
    [],
    {},
    [[]],
    {"": {}},
    [{"a": None}] * 50,
)


def test_an_absurd_description_is_shown_or_refused(
    own: Path, template: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sealed as a forger would do it: whatever the facts are, nobody sees a traceback."""
    whole = json.loads((own / "bundle.json").read_text())
    del whole["seal"]
    places = [*template.facts, "calibration", "temperature", "latency"]
    trials = [{place: value} for place in places for value in (*ABSURD, deep(20))]
    for entry in ("onnx", "int8", "torchscript"):
        for key in ("file", "quality", "accepted", "portable", "parity"):
            of_format = [{**template.facts["formats"][entry], key: value} for value in ABSURD]
            trials += [{"formats": {**template.facts["formats"], entry: each}} for each in of_format]
    trials += [{place: deep(450)} for place in ("metrics", "transform")]
    shown = 0
    for facts in trials:
        try:
            text = sealed({**whole, **facts})
        except (ValueError, RecursionError):  # it cannot even be written
            continue
        (own / "bundle.json").write_text(text)
        shown += main(["info", str(own)]) == 0
        out = capsys.readouterr()
        assert out.out or out.err
    assert shown > 100


def test_a_file_of_absurd_size_is_shown(own: Path) -> None:
    facts = json.loads((own / "bundle.json").read_text())
    facts.pop("seal")
    facts["files"]["student.onnx"]["bytes"] = 10**400
    (own / "bundle.json").write_text(sealed(facts))
    assert main(["info", str(own)]) == 0
