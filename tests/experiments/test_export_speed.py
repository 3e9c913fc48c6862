"""The scripts that measure how much faster the exports are than torch, and why not more."""

import re
import sys
from pathlib import Path

import pytest

from experiments import convolutions, export_speed
from experiments.products import Shape


def table(file: Path) -> list[dict[str, str]]:
    """The lines of the table in a file, each by column."""
    heading, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in file.read_text().splitlines()
        if "|" in line
    ]
    return [dict(zip(heading, row, strict=True)) for row in rows]


@pytest.mark.slow
def test_the_table_has_a_line_for_each_network_and_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "speed.md"
    options = ["--batches", "1", "2", "--seconds", "0.05", "--rounds", "2", "--write"]
    monkeypatch.setattr(sys, "argv", ["export_speed", "resnet8:16", *options, str(file)])
    export_speed.main()
    rows = table(file)
    assert [row["net, batch"] for row in rows] == ["resnet8:16, 1", "resnet8:16, 2"]
    for row in rows:
        eager, onnx = float(row["bare eager ms"]), float(row["ONNX ms"])
        assert eager > onnx > 0
        middle, low, high = (float(number) for number in re.findall(r"[\d.]+", row["ONNX / bare"]))
        assert low <= middle <= high
        assert middle == pytest.approx(eager / onnx, rel=0.5)
        assert float(row["size ratio"]) > 1
        for column in ("bare eager of float product", "ONNX of float product", "int8 of int8 product"):
            middle, low, high = (int(share) for share in re.findall(r"(\d+)%", row[column]))
            assert 0 <= low <= middle <= high < 150


def test_a_share_compares_multiplications_a_second() -> None:
    milliseconds = {"onnx": 2.0, "float product": 4.0}
    macs = export_speed.SIDE**3 // 8  # so a batch of two has a quarter of the product's
    measured = export_speed.Measured("net", 2, milliseconds, [milliseconds], {}, 0, macs=macs)
    assert measured.of_product("onnx") == (0.5, 0.5, 0.5)  # a quarter, in half of the time


@pytest.mark.slow
def test_each_convolution_is_compared_with_a_product_of_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "convolutions.md"
    options = ["mobilenetv2:32", "--rounds", "2", "--runs", "4", "--write", str(file)]
    monkeypatch.setattr(sys, "argv", ["convolutions", *options])
    convolutions.main()
    rows = table(file)
    assert {row["network"] for row in rows} == {"mobilenetv2:32, float", "mobilenetv2:32, int8"}
    for form in ("float", "int8"):
        own = {row["layers"]: row for row in rows if row["network"].endswith(form)}
        assert list(own) == ["first layer", "pointwise", "depthwise"]
        assert own["first layer"]["number"] == "1"
        assert own["depthwise"]["ratio"] == ""
        for group in ("first layer", "pointwise"):
            middle, low, high = (float(number) for number in re.findall(r"[\d.]+", own[group]["ratio"]))
            assert 0 < low <= middle <= high


@pytest.mark.parametrize(
    ("operator", "output"),
    [("QLinearConv", {"uint8": [1, 8, 7, 16]}), ("Conv", {"float": [1, 16, 8, 7]})],
    ids=["integers, channels last", "float, channels first"],
)
def test_the_product_of_a_convolution_has_as_many_multiplications(
    operator: str, output: dict[str, list[int]]
) -> None:
    facts = {"op_name": operator, "output_type_shape": [output]}  # 16 channels at 8 x 7 positions
    shape = convolutions.shape_of([16, 4, 3, 3], facts)
    assert shape == Shape(56, 16, 36)
    assert shape.macs == 56 * 16 * 36
