import io
import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline import benchmark, timing
from pipeline.benchmark import BenchmarkConfig, macs, measure, parameters
from pipeline.export import onnx_format
from pipeline.export.deployable import Deployable
from pipeline.inputs import InputError

CFG = BenchmarkConfig(batches=(1, 4), seconds=0.02)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def student() -> Deployable:
    torch.manual_seed(0)
    return Deployable(Net(4).eval(), (0.5,) * 3, (0.5,) * 3)


def teacher() -> Deployable:
    return Deployable(Net(16).eval(), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("a bundle")
    example = torch.zeros((2, 8, 8, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters warn of themselves
        torch.jit.save(torch.jit.trace(student(), example), out / "student.ts")
    onnx_format.write(student(), out / "student.onnx", size=8, channels=3, classes=5, metadata={})
    (out / "student.int8.onnx").write_bytes((out / "student.onnx").read_bytes() + b"")
    formats = {
        "onnx": {"file": "student.onnx"},
        "int8": {"file": "student.int8.onnx", "accepted": True},
        "torchscript": {"file": "student.ts"},
    }
    (out / "bundle.json").write_text(json.dumps({"formats": formats}))
    return out


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def measured(bundle: Path, images: np.ndarray) -> dict[str, Any]:
    return measure(bundle, student, teacher, images, CFG)


def without_openvino(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row["format"].startswith("openvino")]


def test_every_variant_at_every_batch(measured: dict[str, Any]) -> None:
    rows = without_openvino(measured["details"]["rows"])
    forms = {("student", form) for form in ("onnx", "int8", "torchscript", "eager", "tuned eager")}
    forms |= {("teacher", "eager"), ("teacher", "tuned eager")}
    assert {(row["variant"], row["format"], row["batch"]) for row in rows} == {(*form, batch) for form in forms for batch in (1, 4)}
    for row in rows:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["cpu_ms"] > 0
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"])
        assert row["n"] >= 3


def test_the_headline_is_onnx_at_batch_one_and_int8_beside_it(measured: dict[str, Any], bundle: Path) -> None:
    rows = {(row["format"], row["batch"]): row for row in measured["details"]["rows"] if row["variant"] == "student"}
    size = (bundle / "student.onnx").stat().st_size / 1e6
    assert measured["metrics"] == {
        "latency_ms": rows["onnx", 1]["median_ms"],
        "throughput": rows["onnx", 4]["images_per_s"],
        "size_mb": size,
        "parameters_m": (3 * 9 * 4 + 4 + 4 * 5 + 5) / 1e6,
        "macs_m": (64 * 3 * 9 * 4 + 4 * 5) / 1e6,
        "speedup": rows["tuned eager", 1]["cpu_ms"] / rows["onnx", 1]["cpu_ms"],
        "int8_latency_ms": rows["int8", 1]["median_ms"],
        "int8_throughput": rows["int8", 4]["images_per_s"],
        "int8_size_mb": size,
        "int8_speedup": rows["tuned eager", 1]["cpu_ms"] / rows["int8", 1]["cpu_ms"],
    }


def test_the_teacher_is_measured_at_its_best(measured: dict[str, Any]) -> None:
    told = measured["details"]["teacher"]
    rows = [row for row in measured["details"]["rows"] if row["variant"] == "teacher" and row["batch"] == 1]
    assert told["latency_ms"] == min(row["median_ms"] for row in rows)
    assert told["parameters_m"] == (3 * 9 * 16 + 16 + 16 * 5 + 5) / 1e6
    assert told["size_mb"] == pytest.approx(4 * told["parameters_m"])


def test_opening_is_measured_in_processes_that_are_what_they_seem(measured: dict[str, Any]) -> None:
    opened = {(row["variant"], row["format"]): row for row in measured["details"]["opened"]}
    onnx = opened["student", "onnx"]
    assert onnx["providers"] == ["CPUExecutionProvider"]
    assert onnx["import_ms"] > 0
    for row in opened.values():
        assert row["load_ms"] > 0
        assert row["first_ms"] > 0
        assert row["memory_mb"] > 10
        assert row["error"] < 1e-5  # every variant is the same network
    # torch was never imported where ONNX files are measured
    assert onnx["memory_mb"] < 0.6 * opened["student", "eager"]["memory_mb"]
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_each_variant_has_a_process_of_its_own_and_all_of_them_end(bundle: Path, images: np.ndarray, tmp_path: Path) -> None:
    def load(what: str) -> Deployable:
        (tmp_path / what / str(os.getpid())).mkdir(parents=True)
        (tmp_path / what / str(os.getpid()) / str(torch.get_num_threads())).touch()
        return student()

    before = torch.get_num_threads()
    measure(bundle, partial(load, "student"), partial(load, "teacher"), images, CFG)
    assert torch.get_num_threads() == before
    pids = {what: {int(path.name) for path in (tmp_path / what).iterdir()} for what in ("student", "teacher")}
    both = pids["student"] & pids["teacher"]
    assert len(both) == 1  # the one that counts multiplications
    assert [len(found - both) for found in pids.values()] == [2, 2]
    assert os.getpid() not in pids["student"] | pids["teacher"]
    assert {path.name for path in tmp_path.glob("*/*/*")} == {"1"}  # threads
    for pid in pids["student"] | pids["teacher"]:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_a_failure_is_said_and_leaves_no_process(bundle: Path, images: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"student\.onnx can't be measured.*[Ii]nvalid"):
        measure(bundle, student, teacher, images[:, :4], CFG)  # not the size of the graph
    with pytest.raises(FileNotFoundError):
        measure(bundle / "nowhere", student, teacher, images, CFG)

    def dies() -> Deployable:
        os._exit(1)

    with pytest.raises(InputError, match="ended without an answer"):
        measure(bundle, dies, teacher, images, CFG)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_refused_int8_file_is_not_measured(bundle: Path, images: np.ndarray, tmp_path: Path) -> None:
    formats = {"onnx": {"file": "student.onnx"}, "int8": {"file": "student.int8.onnx.rejected", "accepted": False}}
    (tmp_path / "bundle.json").write_text(json.dumps({"formats": formats}))
    (tmp_path / "student.onnx").write_bytes((bundle / "student.onnx").read_bytes())
    got = measure(tmp_path, student, teacher, images, BenchmarkConfig(batches=(2,), seconds=0.01))
    assert {row["format"] for row in without_openvino(got["details"]["rows"])} == {"onnx", "eager", "tuned eager"}
    assert {row["batch"] for row in got["details"]["rows"]} == {1, 2}  # batch 1 is always there
    assert "int8_latency_ms" not in got["metrics"]


def test_macs_and_parameters_of_a_convolution() -> None:
    class Grouped(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.permute(0, 3, 1, 2).float())

    net = Grouped(nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.Flatten(), nn.Linear(8 * 36, 3))
    assert parameters(net) == 8 * 2 * 9 + 8 * 36 * 3 + 3
    assert macs(net, np.zeros((1, 8, 8, 4), np.uint8)) == 36 * 8 * 2 * 9 + 8 * 36 * 3


def test_all_eager_variants_and_the_script_answer_alike(bundle: Path, images: np.ndarray) -> None:
    want = student().outputs(images)
    for run, _ in (benchmark._plain(student), benchmark._tuned(student), benchmark._torchscript(bundle / "student.ts")):
        for ours, theirs in zip(run(images), want, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_variants_take_turns() -> None:
    order: list[str] = []

    class Fake:
        memory_mb = 0.0

        def __init__(self, name: str, cost: float) -> None:
            self.name, self.cost = name, cost

        def ask(self, question: dict[str, Any]) -> dict[str, Any]:
            assert question["seconds"] == benchmark.TURN
            order.append(self.name)
            calls = max(1, round(question["seconds"] / self.cost))
            return {"wall": [self.cost] * calls, "cpu": [self.cost / 2] * calls, "memory_mb": 7.0}

    processes: Any = {("s", "quick"): Fake("q", 0.01), ("s", "slow"): Fake("s", 0.5)}
    timed = benchmark._take_turns(processes, 4, 0.05)
    assert "".join(order) == "qsqsqs"  # quick has its time after three turns; slow is over it at once, but three calls are the least
    assert timed["s", "quick"] == pytest.approx(
        {"median_ms": 10, "p95_ms": 10, "cpu_ms": 5, "images_per_s": 400, "n": 6},
    )
    assert timed["s", "slow"]["n"] == 3
    assert processes["s", "slow"].memory_mb == 7.0


def test_serve_warms_up_unseen_and_answers_each_question() -> None:
    seen: list[int] = []

    def opening() -> timing.Opened:
        def run(images: np.ndarray) -> list[np.ndarray]:
            seen.append(len(images))
            return [images[:, 0, 0]]

        return run, {"size_mb": 1.5}

    asks = io.StringIO('{}\n{"batch": 2, "seconds": 0}\n{"batch": 2, "seconds": 0}\n')
    answers = io.StringIO()
    timing.serve(opening, np.zeros((3, 1, 1, 3), np.uint8), asks, answers)
    first, *others = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert (first["size_mb"], first["logits"]) == (1.5, [0, 0, 0])
    assert seen == [1, 2, 2, 2, 2]  # the first image, two calls to warm up, and two turns
    assert [len(other["wall"]) for other in others] == [1, 1]


def test_a_turn_lasts_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 0.0, "cpu": 0.0}

    def run(images: np.ndarray) -> list[np.ndarray]:
        now["wall"] += 0.3
        now["cpu"] += 0.1
        return [images]

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(timing.time, "process_time", lambda: now["cpu"])
    wall, cpu = timing.turn(run, np.zeros(1), 1.0)
    assert wall == pytest.approx([0.3] * 4)
    assert cpu == pytest.approx([0.1] * 4)
    assert len(timing.turn(run, np.zeros(1), 0.0)[0]) == 1  # slow variants have their turn too


def test_timing_imports_neither_torch_nor_pydantic() -> None:
    code = "import sys, pipeline.timing; print({'torch', 'pydantic', 'onnx'} & {name.partition('.')[0] for name in sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], cwd=benchmark.ROOT, capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_tuned_eager_keeps_its_memory() -> None:
    """Large activations cost page faults at every call, unless the allocator keeps what it was given."""
    code = """
import resource, torch
from pipeline import benchmark

def faults():
    before = 0
    for n in range(12):  # the first calls find their place
        if n == 8:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.full((48 << 20,), 1, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
benchmark.keep_memory()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=benchmark.ROOT, capture_output=True, text=True, check=True)
    plain, tuned = map(int, done.stdout.split())
    assert tuned < 50
    assert plain >= 4 * 48 // 2  # one a page, and pages have 2 MB at the most


def test_tuned_eager_is_tuned(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    seen = []
    monkeypatch.setattr(benchmark, "keep_memory", lambda: seen.append("memory"))
    net = student()
    net.net.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last)))
    benchmark._plain(lambda: net)[0](images)
    assert seen == [False]
    benchmark._tuned(lambda: net)[0](images)
    assert seen == [False, "memory", True]


@pytest.mark.parametrize("settings", [{"batches": [0]}, {"seconds": 0}, {"threads": 0}, {"second": 1}])
def test_config_refuses(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BenchmarkConfig(**settings)
