"""Records of one teacher and three runs, as the stages write them."""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.evaluation import predictions
from pipeline.evaluation.predictions import AllPredictions, Predictions
from pipeline.evaluation.scores import MISTAKES
from pipeline.records.mistakes import images_per_class, mistakes

CLASSES = ["cat", "dog", "eel", "fox"]
# right answers for 100 test images by run and seed, and mean accuracy on validation
RIGHT = {"alone": (70, 72, 74), "kd": (80, 81, 85), "fitnet": (79, 80, 81)}
VALIDATION = {"alone": 0.71, "kd": 0.79, "fitnet": 0.83}
NAMES: dict[str, Any] = {"runs": ["alone", "kd", "fitnet"], "teachers": ["big"]}
METHODS = {
    "alone": {"name": "ce"},
    "kd": {"name": "kd", "kd_weight": 0.9},
    "fitnet": {"name": "fitnet", "term_weight": 100.0},
}
CODE = {stage: digit * 64 for stage, digit in (("teacher", "1"), ("pretrain", "2"), ("distill", "3"))}


def fabricate(
    records: Path,
    *,
    right: Mapping[str, Sequence[int]] = RIGHT,
    validation: Mapping[str, float] = VALIDATION,
    again: Sequence[str] = (),
) -> Path:
    """Write the records; `again` names those whose stages ran once more (`evaluate/kd`)."""

    def put(stage: str, name: str, hour: int, **content: Any) -> None:
        key = f"{stage}/{name}"
        path = records / ("prepare.json" if stage == "prepare" else f"{key}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"stage": stage, "name": name, "id": _id(f"{key}, {2 if key in again else 1}")}
        path.write_text(json.dumps(_record(hour) | head | content))

    put("prepare", "prepare", 1, **_prepare())
    put("teacher", "big", 2, **_teacher())
    for name, scores in right.items():
        seeds = list(range(len(scores)))
        put("pretrain", name, 3, **_pretrain(name, seeds))
        put("distill", name, 4, **_distill(name, seeds, validation[name]))
        put("evaluate", name, 5, **_evaluate(seeds, scores))
        put("export", name, 6, **_export())
        put("benchmark", name, 7, **_benchmark())
    return records


def _record(hour: int) -> dict[str, Any]:
    return {
        "schema": 3,
        "started": f"2026-01-02T{hour:02}:00:00.000+00:00",
        "finished": f"2026-01-02T{hour:02}:01:30.000+00:00",
        "seconds": 90.0,
        "environment": {"python": "3.11.7", "torch": "2.15.0", "device": "cpu"},
    } | {key: {} for key in ("params", "metrics", "curves", "details", "inputs", "outputs")}


def _prepare() -> dict[str, Any]:
    counts = {"train": 40, "val": 20, "test": 100}
    manifest = {
        "schema": 2,
        "source": "digits",
        "size": 8,
        "channels": 1,
        "classes": CLASSES,
        "mean": [0.3],
        "std": [0.3],
        "splits": counts,
        "per_class": {split: dict.fromkeys(CLASSES, n // 4) for split, n in counts.items()},
        "unlabelled": 30,
        "left_out": {"duplicate": 3, "truncated": 1},
        "settings": {},
        "content": "d" * 64,
    }
    return {
        "params": {"data": {"source": "digits", "k": 5}},
        "metrics": {"images": 160},
        "details": {"manifest": manifest},
        "outputs": {"data": "d" * 64},
    }


def _teacher() -> dict[str, Any]:
    accuracies = [0.9, 0.95]
    curve = {
        "epoch": [1.0, 2.0],
        "images": [40, 80],
        "loss": [1.0, 0.5],
        "val_accuracy": accuracies,
        "seconds": [4.0, 8.0],
    }
    return {
        "params": {"teacher": {"net": "resnet32x4"}, "train": {"epochs": 2}},
        "metrics": {"val_accuracy": 0.95},
        "curves": {"teacher": curve},
        "inputs": {"data": "d" * 64, "code": CODE["teacher"]},
        "outputs": {"teacher": "b" * 64},
    }


def _params(name: str, seeds: list[int]) -> dict[str, Any]:
    return {
        "run": {"teacher": "big", "student": "small", "method": METHODS[name], "seeds": seeds},
        "student": {"net": "resnet8x4"},
        "protocol": {"shots": 5},
    }


def _pretrain(name: str, seeds: list[int]) -> dict[str, Any]:
    hint = {"epoch": [1.0, 2.0], "images": [20, 40], "loss": [9.0, 8.0], "seconds": [1.0, 2.0]}
    return {
        "params": _params(name, seeds),
        "curves": {f"hint/seed-{seed}": hint for seed in seeds if name == "fitnet"},
        "inputs": {"data": "d" * 64, "code": CODE["pretrain"]},
    }


def _distill(name: str, seeds: list[int], validation: float) -> dict[str, Any]:
    curve = {
        "epoch": [1.0, 2.0, 3.0],
        "images": [20, 40, 60],
        "loss": [3.0, 2.0, 1.5],
        "val_accuracy": [0.5, 0.6, validation],
        "seconds": [1.0, 2.0, 3.0],
    }
    return {
        "params": _params(name, seeds),
        "metrics": {"val_accuracy": validation},
        "curves": {f"distill/seed-{seed}": curve for seed in seeds},
        "details": {
            "subset": {"images": 20, "sha256": "a" * 64},
            "usage": {"cpu_s": 135.0, "memory_mb": 900},
        },
        "inputs": {"data": "d" * 64, "code": CODE["distill"]},
        "outputs": {"student": "5" * 64},
    }


def _evaluate(seeds: list[int], right: Sequence[int]) -> dict[str, Any]:
    accuracies = [n / 100 for n in right]
    mean = sum(accuracies) / len(seeds)
    spread = {"spread": statistics.stdev(accuracies)} if len(seeds) > 1 else {}
    return {
        "params": {"run": {"seeds": seeds}},
        "metrics": {"accuracy": mean, "n": len(seeds), "ece": 0.04, "agreement": 0.875}
        | spread
        | {"balanced_accuracy": mean - 0.1, "macro_f1": mean - 0.2},
        "details": {
            "seeds": {str(seed): _scores(n) for seed, n in zip(seeds, right, strict=True)},
            "teacher": _scores(96),
            "classes": CLASSES,
            "exported_seed": len(seeds) - 1,
        },
    }


def _scores(right: int) -> dict[str, Any]:
    """`right` of 100 images; each wrong answer is the next class, and cats are the hardest."""
    wrong = [100 - right - 3 * ((100 - right) // 5), *[(100 - right) // 5] * 3]
    confusion = [[0] * 4 for _ in CLASSES]
    for i, n in enumerate(wrong):
        confusion[i][i], confusion[i][(i + 1) % 4] = 25 - n, n
    return {
        "accuracy": right / 100,
        "balanced_accuracy": right / 100 - 0.1,  # as if the classes were unequal
        "macro_f1": right / 100 - 0.2,
        "ece": 0.04,
        "agreement": 0.875,
        "per_class": [(25 - n) / 25 for n in wrong],
        "confusion": confusion,
    }


def _export() -> dict[str, Any]:
    parity = {
        "max_abs": 2.5e-7,
        "scale": 10.0,
        "rel": 2.5e-8,
        "agreement": 1.0,
        "images": 64,
        "cases": {"noise": 2.5e-8},
    }
    formats = {
        "onnx": {"file": "student.onnx", "parity": parity},
        "safetensors": {"file": "student.safetensors"},
    }
    details = {"formats": formats, "provenance": {"code": CODE["distill"]}}
    return {"details": details, "outputs": {"bundle": "e" * 64}}


def _benchmark() -> dict[str, Any]:
    row = {
        "variant": "student",
        "format": "onnx",
        "batch": 1,
        "median_ms": 0.5,
        "p95_ms": 0.625,
        "images_per_s": 2000.0,
        "size_mb": 4.75,
    }
    of_student = {
        "latency_ms": 0.5,
        "throughput": 2000.0,
        "size_mb": 4.75,
        "parameters_m": 1.234,
        "macs_m": 177.0,
    }
    of_teacher = {"latency_ms": 4.25, "size_mb": 29.5, "parameters_m": 7.433}
    return {"metrics": of_student, "details": {"rows": [row], "teacher": of_teacher}}


def analyse(records: Path, name: str, **metrics: float) -> None:
    """Add a record of stage `analyse` for a run, as the stage writes it, with two pictures."""
    probes = {"probe_before": 0.421, "probe_after": 0.506, "whole_network": 0.509}
    probes |= {"layer_before": 0.389, "layer_after": 0.497}
    captions = {"maps.png": "How alike they are.", "grad_cam.png": "Where they look."}
    details: dict[str, Any] = {
        "warnings": ["The dictionary of stage1 is dead in 3 of 3 seeds."],
        "pictures": captions,
    }
    if "transfer_after" in metrics:
        details["transfer"] = {"source": "folder", "root": "others", "splits": {}}
    (records / "analyse" / name).mkdir(parents=True)
    for file in captions:
        Image.new("RGB", (4, 4), "red").save(records / "analyse" / name / file)
    changes = {
        "id": _id(f"analyse/{name}"),
        "stage": "analyse",
        "metrics": probes | {f"{key}_spread": 0.01 for key in probes} | metrics,
        "curves": {},
        "details": details,
        "outputs": {},
    }
    record = json.loads((records / "distill" / f"{name}.json").read_text())
    (records / "analyse" / f"{name}.json").write_text(json.dumps(record | changes))


def learn(records: Path, name: str, *runs: str) -> None:
    """Add a record of stage `knowledge`, as the stage writes it, and make it the teacher of these runs."""
    changes = {
        "id": _id(f"knowledge/{name}"),
        "stage": "knowledge",
        "name": name,
        "params": {"knowledge": {"teacher": "big"}},
        "metrics": {},
        "curves": {
            "dictionary/seed-0": {
                "epoch": [1.0, 2.0],
                "images": [20, 40],
                "loss": [0.7, 0.6],
                "seconds": [30.0, 60.0],
            }
        },
        "details": {"subset": {"images": 20}},
        "outputs": {},
    }
    record = json.loads((records / "teacher" / "big.json").read_text())
    (records / "knowledge").mkdir(exist_ok=True)
    (records / "knowledge" / f"{name}.json").write_text(json.dumps(record | changes))
    for run in runs:
        for stage in ("pretrain", "distill"):
            path = records / stage / f"{run}.json"
            params = json.loads(path.read_text())["params"] | {"knowledge": {name: {"teacher": "big"}}}
            edit(path, params=params)


def save_predictions(records: Path) -> None:
    """What each network answered for each image, as the records count it. It is surer of its errors."""
    for file in (records / "evaluate").glob("*.json"):
        tested = json.loads(file.read_text())["details"]
        counts = [sum(row) for row in tested["teacher"]["confusion"]]
        labels = np.repeat(np.arange(len(counts)), counts)
        saved = AllPredictions(
            np.arange(60, 60 + len(labels)),
            labels,
            _predictions(tested["teacher"]["confusion"]),
            {int(seed): _predictions(scores["confusion"]) for seed, scores in tested["seeds"].items()},
        )
        predictions.save_predictions(file.with_suffix(".npz"), saved)


def as_written_now(records: Path) -> None:
    """Of the confusions, what stage `evaluate` writes: predictions, and the mistakes among the scores."""
    save_predictions(records)
    for file in (records / "evaluate").glob("*.json"):
        tested = json.loads(file.read_text())["details"]
        for scores in (tested["teacher"], *tested["seeds"].values()):
            scores |= {"images_per_class": images_per_class(scores), "mistakes": mistakes(scores)[:MISTAKES]}
            del scores["confusion"]
        edit(file, details=tested)


def _predictions(confusion: Sequence[Sequence[int]]) -> Predictions:
    label: list[int] = []
    confidence: list[float] = []
    for actual, counts in enumerate(confusion):
        for predicted, n in enumerate(counts):
            label += [predicted] * n
            confidence += [0.6 + 0.01 * actual if actual == predicted else 0.9 + 0.01 * actual] * n
    return Predictions(np.array(label, np.int32), np.array(confidence, np.float32))


def prepared(
    folder: Path, *, classes: int = 4, images: int = 160, train: int = 40, size: int = 8, channels: int = 1
) -> Path:
    """The pixels of the fabricated data set: every image has one value, its row."""
    folder.mkdir(parents=True)
    values = np.arange(images, dtype=np.uint8)[:, None, None, None]
    np.save(folder / "images.npy", np.broadcast_to(values, (images, size, size, channels)))
    np.save(folder / "order.npy", np.arange(images))
    np.save(folder / "labels.npy", np.arange(images) % classes)
    return folder


def crowd(records: Path, *, runs: int, classes: int) -> list[str]:
    """Add many runs of many classes, all with long names; returns the names of the runs."""
    names = [
        f"a_run_named_with_every_one_of_its_settings_lr_0.003_weight_decay_0.0005_{i}" for i in range(runs)
    ]
    labels = [f"a class with quite a long name, number {i}" for i in range(classes)]
    counts = {split: dict.fromkeys(labels, n) for split, n in (("train", 5), ("val", 2), ("test", 20))}
    manifest = json.loads((records / "prepare.json").read_text())["details"]["manifest"] | {
        "classes": labels,
        "per_class": counts,
        "splits": {split: sum(counted.values()) for split, counted in counts.items()},
    }
    edit(records / "prepare.json", details={"manifest": manifest})
    confusion = np.eye(classes, dtype=int) * 15 + np.roll(np.eye(classes, dtype=int) * 5, 1, axis=1)
    scores = {
        "accuracy": 0.75,
        "ece": 0.04,
        "agreement": 0.8,
        "per_class": [0.75] * classes,
        "confusion": confusion.tolist(),
    }
    tested = {"classes": labels, "teacher": scores, "seeds": {str(seed): scores for seed in range(3)}}
    column = [0.5 + 0.001 * epoch for epoch in range(60)]
    epochs = [1.0 + epoch for epoch in range(60)]
    curve = {"epoch": epochs, "images": epochs, "loss": column, "val_accuracy": column, "seconds": column}
    for i, name in enumerate(names):
        for stage in ("pretrain", "distill", "evaluate", "export", "benchmark"):
            template = records / stage / ("alone.json" if i == 0 else "fitnet.json")
            record = json.loads(template.read_text()) | {"name": name}
            if stage == "distill":
                record["metrics"] = {"val_accuracy": 0.5 + 0.01 * i}
                record["curves"] = {f"distill/seed-{seed}": curve for seed in range(3)}
            if stage == "evaluate":
                record["details"] |= tested
            (records / stage / f"{name}.json").write_text(json.dumps(record))
    return names


def unbalance(records: Path, *counts: int) -> None:
    """Let the classes have so many test images."""
    record = json.loads((records / "prepare.json").read_text())
    record["details"]["manifest"]["per_class"]["test"] = dict(zip(CLASSES, counts, strict=True))
    (records / "prepare.json").write_text(json.dumps(record))


def calibrate(records: Path, name: str, *, found: bool = True) -> None:
    """Make the record of a run's export one of a bundle with calibrated probabilities."""
    measured = {"images": 100, "bins": 15, "ece_before": 0.08, "ece_after": 0.025}
    thresholds = {"0.8": {"answered": 0.75, "accuracy": 0.96}, "0.99": {"answered": 0.0, "accuracy": None}}
    facts = {
        "temperature": 1.75,
        "found": found,
        "float": measured | {"thresholds": thresholds},
        "int8": measured | {"ece_before": 0.0825, "ece_after": 0.0275, "thresholds": {}},
    }
    path = records / "export" / f"{name}.json"
    edit(path, details=json.loads(path.read_text())["details"] | {"calibration": facts})


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]
