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

from pipeline.benchmark import speed
from pipeline.benchmark.speed import BenchmarkConfig, Network, macs, measure, parameters
from pipeline.export import latency, onnx_format
from pipeline.export.deployable import Deployable
from pipeline.records.record import Result
from pipeline.settings import InputError

CFG = BenchmarkConfig(batches=(1, 4), seconds=0.02)
LATENCY = {"threads": 1, "batch": 1, "median_ms": {"onnx": 0.25, "int8": 0.125}}  # as the export measured it


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).mean((2, 3)))
        return logits


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
        warnings.simplefilter("ignore")  # torch's exporters warn about themselves
        trace = torch.jit.trace(student(), example)  # type: ignore[no-untyped-call]
        torch.jit.save(trace, out / "student.ts")
    onnx_format.write(student(), out / "student.onnx", size=8, channels=3, classes=5, metadata={})
    (out / "student.int8.onnx").write_bytes((out / "student.onnx").read_bytes())
    formats = {
        "onnx": {"file": "student.onnx"},
        "int8": {"file": "student.int8.onnx", "accepted": True},
        "torchscript": {"file": "student.ts"},
    }
    (out / "bundle.json").write_text(json.dumps({"formats": formats, "latency": LATENCY}))
    return out


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def test_a_teacher_of_another_size_gets_its_own_images(bundle: Path, images: np.ndarray) -> None:
    shapes: list[tuple[int, ...]] = []

    def wide() -> Deployable:
        net = teacher()
        net.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
        return net

    larger = np.repeat(np.repeat(images, 2, 1), 2, 2)
    load = speed._count({"student": Network(student, images), "teacher": Network(wide, larger)})[0]
    assert shapes == [(1, *larger.shape[1:])]
    assert load(images)[0] is images


def test_what_a_network_hides_is_not_counted(images: np.ndarray) -> None:
    def empty() -> Deployable:
        return Deployable(nn.Flatten(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).eval()

    counts = speed._count({"student": Network(student, images), "teacher": Network(empty, images)})[1]
    assert counts["teacher"] == {}
    assert set(counts["student"]) == {"parameters_m", "macs_m"}


@pytest.fixture(scope="module")
def measured(bundle: Path, images: np.ndarray) -> Result:
    return measure(bundle, Network(student, images), Network(teacher, images), CFG)


def without_openvino(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row["format"].startswith("openvino")]


def test_every_variant_is_measured_at_every_batch(measured: Result) -> None:
    rows = without_openvino(measured.details["rows"])
    forms = {("student", form) for form in ("onnx", "int8", "torchscript", "eager", "tuned eager")}
    forms |= {("teacher", form) for form in ("onnx", "eager", "tuned eager")}
    assert {(row["variant"], row["format"], row["batch"]) for row in rows} == {
        (*form, batch) for form in forms for batch in (1, 4)
    }
    for row in rows:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["cpu_ms"] > 0
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"])
        assert row["n"] >= 3


def test_the_metrics_are_those_of_onnx_and_int8(measured: Result, bundle: Path) -> None:
    rows = {
        (row["format"], row["batch"]): row for row in measured.details["rows"] if row["variant"] == "student"
    }
    size = (bundle / "student.onnx").stat().st_size / 1e6
    assert measured.metrics == {
        "latency_ms": 0.25,  # the bundle's, and no second one
        "throughput": rows["onnx", 4]["images_per_s"],
        "size_mb": size,
        "parameters_m": (3 * 9 * 4 + 4 + 4 * 5 + 5) / 1e6,
        "macs_m": (64 * 3 * 9 * 4 + 4 * 5) / 1e6,
        "speedup": rows["tuned eager", 1]["cpu_ms"] / rows["onnx", 1]["cpu_ms"],
        "int8_latency_ms": 0.125,
        "int8_throughput": rows["int8", 4]["images_per_s"],
        "int8_size_mb": size,
        "int8_speedup": rows["tuned eager", 1]["cpu_ms"] / rows["int8", 1]["cpu_ms"],
    }


def test_the_teacher_is_measured_as_an_exported_file(
    bundle: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[dict[str, Path], tuple[int, ...], int]] = []

    def as_the_export_does(files: dict[str, Path], image: np.ndarray) -> dict[str, float]:
        asked.append((files, image.shape, files["onnx"].stat().st_size))
        return {"onnx": 0.75}

    monkeypatch.setattr(latency, "measure", as_the_export_does)
    larger = np.repeat(np.repeat(images, 2, 1), 2, 2)
    done = measure(bundle, Network(student, images), Network(teacher, larger), CFG).details
    ((_, shape, size),) = asked
    assert shape == (1, 16, 16, 3)
    of_teacher = done["teacher"]
    assert (of_teacher["latency_ms"], of_teacher["file"]) == (0.75, "onnx")
    assert of_teacher["size_mb"] == size / 1e6
    assert of_teacher["parameters_m"] == (3 * 9 * 16 + 16 + 16 * 5 + 5) / 1e6
    assert of_teacher["size_mb"] > 4 * of_teacher["parameters_m"]
    (opened,) = [row for row in done["opened"] if (row["variant"], row["format"]) == ("teacher", "onnx")]
    assert opened["error"] < 1e-5


def test_a_teacher_that_cannot_be_exported_is_measured_in_torch(bundle: Path, images: np.ndarray) -> None:
    class Picky(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.mean()) > -100 else -x  # a branch on the data

    def picky() -> Deployable:
        return Deployable(Picky(16).eval(), (0.5,) * 3, (0.5,) * 3)

    done = measure(bundle, Network(student, images), Network(picky, images), CFG).details
    rows = [row for row in done["rows"] if row["variant"] == "teacher" and row["batch"] == 1]
    assert {row["format"] for row in rows} == {"eager", "tuned eager"}
    assert done["teacher"]["latency_ms"] == min(row["median_ms"] for row in rows)
    assert done["teacher"]["size_mb"] == pytest.approx(4 * done["teacher"]["parameters_m"])
    assert "file" not in done["teacher"]


def test_onnx_files_are_opened_in_processes_without_torch(measured: Result) -> None:
    opened = {(row["variant"], row["format"]): row for row in measured.details["opened"]}
    onnx = opened["student", "onnx"]
    assert onnx["providers"] == ["CPUExecutionProvider"]
    assert onnx["import_ms"] > 0
    for row in opened.values():
        assert row["load_ms"] > 0
        assert row["first_ms"] > 0
        assert row["memory_mb"] > 10
        assert row["error"] < 1e-5  # every variant is the same network
    # torch would take much memory
    assert onnx["memory_mb"] < 0.6 * opened["student", "eager"]["memory_mb"]
    assert json.loads(json.dumps(measured.details, allow_nan=False)) == measured.details
    assert json.loads(json.dumps(measured.metrics, allow_nan=False)) == measured.metrics


def test_each_variant_has_a_process_of_its_own_and_every_process_ends(
    bundle: Path, images: np.ndarray, tmp_path: Path
) -> None:
    def load(variant: str) -> Deployable:
        """Leaves a file: VARIANT/PROCESS/THREADS."""
        (tmp_path / variant / str(os.getpid())).mkdir(parents=True)
        (tmp_path / variant / str(os.getpid()) / str(torch.get_num_threads())).touch()
        return student()

    before = torch.get_num_threads()
    measure(bundle, Network(partial(load, "student"), images), Network(partial(load, "teacher"), images), CFG)
    assert torch.get_num_threads() == before
    pids = {name: {int(path.name) for path in (tmp_path / name).iterdir()} for name in ("student", "teacher")}
    both = pids["student"] & pids["teacher"]
    assert len(both) == 1  # the process that counts multiplications
    assert [len(found - both) for found in pids.values()] == [2, 3]  # and one exports the teacher
    assert os.getpid() not in pids["student"] | pids["teacher"]
    assert {path.name for path in tmp_path.glob("*/*/*")} == {"1"}
    for pid in pids["student"] | pids["teacher"]:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_a_copy_that_was_killed_is_said_in_a_sentence(images: np.ndarray) -> None:
    with (
        pytest.raises(InputError, match="measures torch ended without an answer"),
        speed._forked(lambda: os._exit(3), 1, images) as process,
    ):
        with pytest.raises(InputError):
            process.ask({})  # which ends it
        process.ask({})


def test_a_failure_is_reported_and_leaves_no_process(bundle: Path, images: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"student\.onnx cannot be measured.*[Ii]nvalid"):
        measure(
            bundle, Network(student, images[:, :4]), Network(teacher, images), CFG
        )  # another size than the graph's
    with pytest.raises(FileNotFoundError):
        measure(bundle / "nowhere", Network(student, images), Network(teacher, images), CFG)

    def dies() -> Deployable:
        os._exit(1)

    with pytest.raises(InputError, match="ended without an answer"):
        measure(bundle, Network(dies, images), Network(teacher, images), CFG)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_refused_int8_file_is_not_measured(bundle: Path, images: np.ndarray, tmp_path: Path) -> None:
    formats = {
        "onnx": {"file": "student.onnx"},
        "int8": {"file": "student.int8.onnx.rejected", "accepted": False},
    }
    (tmp_path / "bundle.json").write_text(json.dumps({"formats": formats, "latency": LATENCY}))
    (tmp_path / "student.onnx").write_bytes((bundle / "student.onnx").read_bytes())
    got = measure(
        tmp_path,
        Network(student, images),
        Network(teacher, images),
        BenchmarkConfig(batches=(2,), seconds=0.01),
    )
    formats_measured = {row["format"] for row in without_openvino(got.details["rows"])}
    assert formats_measured == {"onnx", "eager", "tuned eager"}
    assert {row["batch"] for row in got.details["rows"]} == {1, 2}  # batch 1 is always measured
    assert "int8_latency_ms" not in got.metrics


def test_macs_and_parameters_of_a_convolution() -> None:
    class ChannelsFirst(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.permute(0, 3, 1, 2).float()

    grouped = nn.Conv2d(4, 8, 3, groups=2, bias=False)
    net = nn.Sequential(ChannelsFirst(), grouped, nn.Flatten(), nn.Linear(8 * 36, 3))
    assert parameters(net) == 8 * 2 * 9 + 8 * 36 * 3 + 3
    assert macs(net, np.zeros((1, 8, 8, 4), np.uint8)) == 36 * 8 * 2 * 9 + 8 * 36 * 3


def test_eager_variants_and_torchscript_give_the_same_answers(bundle: Path, images: np.ndarray) -> None:
    want = student().outputs(images)
    for run, _ in (speed._plain(student), speed._tuned(student), speed._torchscript(bundle / "student.ts")):
        for ours, theirs in zip(run(images), want, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_variants_take_turns() -> None:
    order: list[str] = []

    class Fake:
        memory_mb = 0.0

        def __init__(self, name: str, cost: float) -> None:
            self.name, self.cost = name, cost

        def ask(self, question: dict[str, Any]) -> dict[str, Any]:
            assert question["seconds"] == latency.TURN
            order.append(self.name)
            calls = max(1, round(question["seconds"] / self.cost))
            return {"wall": [self.cost] * calls, "cpu": [self.cost / 2] * calls, "memory_mb": 7.0}

    processes: Any = {("s", "quick"): Fake("q", 0.01), ("s", "slow"): Fake("s", 0.5)}
    times = latency.take_turns(processes, 4, 0.05)
    timed = {key: speed._summary(4, taken) for key, taken in times.items()}
    # quick has had its time after three turns; slow is over its time at once, but three calls are the least
    assert "".join(order) == "qsqsqs"
    assert timed["s", "quick"] == pytest.approx(
        {"median_ms": 10, "p95_ms": 10, "cpu_ms": 5, "images_per_s": 400, "n": 6},
    )
    assert timed["s", "slow"]["n"] == 3
    assert processes["s", "slow"].memory_mb == 7.0


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator belongs to glibc")
def test_tuned_eager_keeps_its_memory() -> None:
    """Large activations cost page faults at every call, unless the allocator keeps its memory."""
    code = """
import resource, statistics, torch
from pipeline.device import keep_memory

def faults():
    seen = []
    for _ in range(60):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.full((48 << 20,), 1, dtype=torch.uint8)
        seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return int(statistics.median(seen[30:]))  # the heap grows in the first calls

print(faults())
keep_memory()
print(faults())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=latency.ROOT, capture_output=True, text=True, check=True
    )
    plain, tuned = map(int, done.stdout.split())
    assert tuned < 50
    assert plain >= 48 // 2  # one for each page, and pages have at most 2 MB


def test_tuned_eager_is_tuned(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    seen: list[str | bool] = []
    monkeypatch.setattr(speed, "keep_memory", lambda: seen.append("memory"))
    net = student()
    net.net.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    speed._plain(lambda: net)[0](images)
    assert seen == [False]
    speed._tuned(lambda: net)[0](images)
    assert seen == [False, "memory", True]


@pytest.mark.parametrize("settings", [{"batches": [0]}, {"seconds": 0}, {"threads": 0}, {"second": 1}])
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BenchmarkConfig(**settings)
