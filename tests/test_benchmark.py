import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.benchmark import BenchmarkConfig, _take_turns, macs, measure, parameters

CFG = BenchmarkConfig(batches=(1, 4), seconds=0.02)


class Pixels(nn.Module):
    """uint8 N x 8 x 8 x 3 to (logits, probabilities)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.conv(images.permute(0, 3, 1, 2).float()).mean((2, 3)))
        return logits, logits.softmax(1)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return Pixels(4).eval(), Pixels(16).eval()


@pytest.fixture(scope="module")
def bundle(pair: tuple[nn.Module, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    example = torch.zeros((2, 8, 8, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters warn of themselves
        torch.jit.save(torch.jit.trace(pair[0], example), out / "student.ts")
        torch.onnx.export(
            pair[0],
            (example,),
            out / "student.onnx",
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["image"],
            dynamic_shapes=({0: "batch"},),
        )
    formats = {"onnx": {"file": "student.onnx"}, "torchscript": {"file": "student.ts"}}
    (out / "bundle.json").write_text(json.dumps({"formats": formats}))
    return out


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def measured(bundle: Path, pair: tuple[nn.Module, nn.Module], images: np.ndarray) -> dict[str, Any]:
    return measure(bundle, *pair, images, CFG)


def test_every_variant_at_every_batch(measured: dict[str, Any]) -> None:
    rows = measured["details"]["rows"]
    forms = {("student", "onnx"), ("student", "eager"), ("student", "torchscript"), ("teacher", "eager")}
    assert {(row["variant"], row["format"], row["batch"]) for row in rows} == {(*form, batch) for form in forms for batch in (1, 4)}
    for row in rows:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"])
        assert row["n"] >= 3


def test_the_headline_is_onnx_at_batch_one(measured: dict[str, Any], bundle: Path) -> None:
    rows = {(row["format"], row["batch"]): row for row in measured["details"]["rows"] if row["variant"] == "student"}
    assert measured["metrics"] == {
        "latency_ms": rows["onnx", 1]["median_ms"],
        "throughput": rows["onnx", 4]["images_per_s"],
        "size_mb": (bundle / "student.onnx").stat().st_size / 1e6,
        "parameters_m": (3 * 9 * 4 + 4 + 4 * 5 + 5) / 1e6,
        "macs_m": (64 * 3 * 9 * 4 + 4 * 5) / 1e6,
    }
    assert measured["details"]["teacher"]["parameters_m"] == (3 * 9 * 16 + 16 + 16 * 5 + 5) / 1e6
    assert measured["details"]["teacher"]["size_mb"] == pytest.approx(4 * measured["details"]["teacher"]["parameters_m"])


def test_says_what_really_ran(measured: dict[str, Any]) -> None:
    onnx = measured["details"]["onnx"]
    assert onnx["providers"] == ["CPUExecutionProvider"]
    assert onnx["load_ms"] > 0
    assert onnx["first_ms"] > 0
    assert measured["details"]["threads"] == 1
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_threads_are_asked_for_and_given_back(bundle: Path, pair: tuple[nn.Module, nn.Module], images: np.ndarray) -> None:
    before = torch.get_num_threads()
    seen = []
    pair[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(2)
        measure(bundle, *pair, images, CFG)
        assert set(seen[:-1]) == {1}  # the last call counts multiplications
        assert torch.get_num_threads() == 2
        with pytest.raises(FileNotFoundError):
            measure(bundle / "nowhere", *pair, images, CFG)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        pair[0]._forward_hooks.clear()


def test_a_failure_gives_the_threads_back(bundle: Path, pair: tuple[nn.Module, nn.Module], images: np.ndarray) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(Exception, match=r"[Ii]nvalid"):
            measure(bundle, *pair, images[:, :4], CFG)  # not the size of the graph
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_torchscript_and_with_batch_one_unasked(
    bundle: Path, pair: tuple[nn.Module, nn.Module], images: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"formats": {"onnx": {"file": "student.onnx"}}}))
    (tmp_path / "student.onnx").write_bytes((bundle / "student.onnx").read_bytes())
    got = measure(tmp_path, *pair, images, BenchmarkConfig(batches=(2,), seconds=0.01))
    rows = got["details"]["rows"]
    assert {row["format"] for row in rows} == {"onnx", "eager"}
    assert {row["batch"] for row in rows} == {1, 2}


def test_macs_and_parameters_of_a_convolution() -> None:
    class Grouped(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.permute(0, 3, 1, 2).float())

    net = Grouped(nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.Flatten(), nn.Linear(8 * 36, 3))
    assert parameters(net) == 8 * 2 * 9 + 8 * 36 * 3 + 3
    assert macs(net, np.zeros((1, 8, 8, 4), np.uint8)) == 36 * 8 * 2 * 9 + 8 * 36 * 3


def test_variants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import benchmark

    now = 0.0
    order: list[str] = []

    def run(name: str, cost: float) -> Any:
        def call(pixels: np.ndarray) -> None:
            nonlocal now
            now += cost
            order.append(name)

        return call

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now)
    quick, slow = _take_turns([run("quick", 0.01), run("slow", 0.5)], np.zeros(1), 0.05)
    assert quick == pytest.approx([0.01] * len(quick))
    assert 0.05 <= sum(quick) < 0.05 + 0.03
    assert slow == pytest.approx([0.5] * 3)  # over its time at once, but three calls are the least
    assert order[:3] == ["quick", "quick", "slow"]  # warming up isn't timed
    timed = "".join(name[0] for name in order[3:])
    assert "qsq" in timed  # one after the other, not one whole row after another
    assert "qsqqsqqs" in timed.replace("qqq", "qq")


@pytest.mark.parametrize("settings", [{"batches": [0]}, {"seconds": 0}, {"threads": 0}, {"second": 1}])
def test_config_refuses(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BenchmarkConfig(**settings)
