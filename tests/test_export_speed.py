"""The script that says how much faster the exports are than torch."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import export_speed


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
