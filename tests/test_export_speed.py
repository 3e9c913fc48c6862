"""The scripts that say how much faster the exports are than torch, and why not more."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import convolutions, export_speed
from benchmarks.products import Shape


@pytest.mark.slow
def test_the_table_has_a_row_for_each_net_and_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "speed.md"
    options = ["resnet8:16", "--batches", "1", "2", "--seconds", "0.05", "--rounds", "2", "--write", str(file)]
    monkeypatch.setattr(sys, "argv", ["export_speed", *options])
    export_speed.main()
    heading, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in file.read_text().splitlines() if "|" in line]
    assert [row[0] for row in rows] == ["resnet8:16, 1", "resnet8:16, 2"]
    for row in rows:
        told = dict(zip(heading, row, strict=True))
        eager, onnx = float(told["bare eager ms"]), float(told["ONNX ms"])
        assert eager > onnx > 0
        middle, low, high = (float(number) for number in told["ONNX / bare"].replace("[", "").replace("]", "").replace(",", "").split())
        assert low <= middle <= high
        assert middle == pytest.approx(eager / onnx, rel=0.5)
        assert float(told["size ratio"]) > 1
        for column in ("bare eager of float product", "ONNX of float product", "int8 of int8 product"):
            middle, low, high = (int(share) for share in re.findall(r"(\d+)%", told[column]))
            assert 0 <= low <= middle <= high < 150


def test_a_share_is_of_the_multiplications_a_second() -> None:
    milliseconds = {"onnx": 2.0, "float product": 4.0}
    half = export_speed.Measured("net", 2, milliseconds, [milliseconds], {}, 0, macs=export_speed.SIDE**3 // 8)
    assert half.of_product("onnx") == (0.5, 0.5, 0.5)  # a quarter of the product's multiplications in half of its time


@pytest.mark.slow
def test_every_convolution_stands_beside_a_product_of_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "convolutions.md"
    monkeypatch.setattr(sys, "argv", ["convolutions", "mobilenetv2:32", "--rounds", "2", "--runs", "4", "--write", str(file)])
    convolutions.main()
    heading, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in file.read_text().splitlines() if "|" in line]
    told = [dict(zip(heading, row, strict=True)) for row in rows]
    assert {row["network"] for row in told} == {"mobilenetv2:32, float", "mobilenetv2:32, int8"}
    for form in ("float", "int8"):
        own = {row["layers"]: row for row in told if row["network"].endswith(form)}
        assert list(own) == ["first layer", "pointwise", "depthwise"]
        assert own["first layer"]["number"] == "1"
        assert own["depthwise"]["ratio"] == ""
        for group in ("first layer", "pointwise"):
            middle, low, high = (float(number) for number in re.findall(r"[\d.]+", own[group]["ratio"]))
            assert 0 < low <= middle <= high


def test_the_shape_of_a_convolution_counts_its_multiplications() -> None:
    said = {"op_name": "QLinearConv", "output_type_shape": [{"uint8": [1, 8, 7, 16]}]}  # 16 channels at 8 x 7 places
    assert convolutions.shape_of([16, 4, 3, 3], said) == Shape(56, 16, 36)
    said = {"op_name": "Conv", "output_type_shape": [{"float": [1, 16, 8, 7]}]}
    assert convolutions.shape_of([16, 4, 3, 3], said).macs == 56 * 16 * 36
