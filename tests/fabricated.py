"""Records of one teacher and three runs, as the stages write them."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import predictions
from pipeline.predictions import Predictions, Said

CLASSES = ["cat", "dog", "eel", "fox"]
# right answers of 100 test images by run and seed, and mean accuracy on validation: fitnet is best there, kd on test
RIGHT = {"alone": (70, 72, 74), "kd": (80, 81, 85), "fitnet": (79, 80, 81)}
VALIDATION = {"alone": 0.71, "kd": 0.79, "fitnet": 0.83}
NAMES: dict[str, Any] = {"runs": ["alone", "kd", "fitnet"], "teachers": ["big"]}


def fabricate(
    records: Path, *, right: Mapping[str, Sequence[int]] = RIGHT, validation: Mapping[str, float] = VALIDATION, again: Sequence[str] = ()
) -> Path:
    """The records of one teacher and its runs, as the stages write them; `again` names those whose stages ran once more (`evaluate/kd`)."""

    def put(stage: str, name: str, hour: int, **content: Any) -> None:
        key = f"{stage}/{name}"
        fixed = {
            "schema": 1,
            "stage": stage,
            "name": name,
            "id": hashlib.sha256(f"{key}, {2 if key in again else 1}".encode()).hexdigest()[:32],
            "started": f"2026-01-02T{hour:02}:00:00.000+00:00",
            "finished": f"2026-01-02T{hour:02}:01:30.000+00:00",
            "seconds": 90.0,
            "environment": {"python": "3.11.7", "torch": "2.15.0", "device": "cpu"},
        }
        empty: dict[str, dict] = {"params": {}, "metrics": {}, "curves": {}, "details": {}, "inputs": {}, "outputs": {}}
        path = records / ("prepare.json" if stage == "prepare" else f"{key}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fixed | empty | content))

    counts = {"train": 40, "val": 20, "test": 100}
    manifest = {
        "schema": 1,
        "source": "digits",
        "size": 8,
        "channels": 1,
        "classes": CLASSES,
        "mean": [0.3],
        "std": [0.3],
        "splits": counts,
        "per_class": {split: dict.fromkeys(CLASSES, n // 4) for split, n in counts.items()},
        "duplicates_removed": 3,
        "settings": {},
        "content": "d" * 64,
    }
    put(
        "prepare",
        "prepare",
        1,
        params={"data": {"source": "digits", "k": 5}},
        metrics={"images": 160},
        details={"manifest": manifest},
        outputs={"data": "d" * 64},
    )
    put(
        "teacher",
        "big",
        2,
        params={"teacher": {"net": "resnet32x4"}, "train": {"epochs": 2}},
        metrics={"val_accuracy": 0.95},
        curves={"teacher": {"epoch": [1.0, 2.0], "loss": [1.0, 0.5], "val_accuracy": [0.9, 0.95], "seconds": [4.0, 8.0]}},
        outputs={"teacher": "b" * 64},
    )
    for name, scores in right.items():
        method = {"alone": {"name": "ce"}, "kd": {"name": "kd", "kd_weight": 0.9}, "fitnet": {"name": "fitnet", "term_weight": 100.0}}[name]
        seeds = list(range(len(scores)))
        params = {
            "run": {"teacher": "big", "student": "small", "method": method, "seeds": seeds},
            "student": {"net": "resnet8x4"},
            "protocol": {"shots": 5},
        }
        curve = {
            "epoch": [1.0, 2.0, 3.0],
            "loss": [3.0, 2.0, 1.5],
            "val_accuracy": [0.5, 0.6, validation[name]],
            "seconds": [1.0, 2.0, 3.0],
        }
        hint = {"epoch": [1.0, 2.0], "loss": [9.0, 8.0], "seconds": [1.0, 2.0]} if name == "fitnet" else {}
        accuracies = [n / 100 for n in scores]
        mean = sum(accuracies) / len(seeds)
        spread = math.sqrt(sum((a - mean) ** 2 for a in accuracies) / max(1, len(seeds) - 1))
        put("pretrain", name, 3, params=params, curves={f"hint/seed-{seed}": hint for seed in seeds} if hint else {})
        put(
            "distill",
            name,
            4,
            params=params,
            metrics={"val_accuracy": validation[name]},
            curves={f"distill/seed-{seed}": curve for seed in seeds},
            details={"sample": {"images": 20, "sha256": "a" * 64}},
            outputs={"student": "5" * 64},
        )
        details = {
            "seeds": {str(seed): _scores(n) for seed, n in zip(seeds, scores, strict=True)},
            "teacher": _scores(96),
            "classes": CLASSES,
            "exported_seed": len(seeds) - 1,
        }
        put(
            "evaluate",
            name,
            5,
            params={"run": {"seeds": seeds}},
            metrics={"accuracy": mean, "spread": spread, "n": len(seeds), "ece": 0.04, "agreement": 0.875},
            details=details,
        )
        parity = {"max_abs": 2.5e-7, "scale": 10.0, "rel": 2.5e-8, "agreement": 1.0, "images": 64, "cases": {"noise": 2.5e-8}}
        formats = {"onnx": {"file": "student.onnx", "parity": parity}, "safetensors": {"file": "student.safetensors"}}
        put("export", name, 6, details={"formats": formats}, outputs={"bundle": "e" * 64})
        row = {
            "variant": "student",
            "format": "onnx",
            "batch": 1,
            "median_ms": 0.5,
            "p95_ms": 0.625,
            "images_per_s": 2000.0,
            "size_mb": 4.75,
        }
        put(
            "benchmark",
            name,
            7,
            metrics={"latency_ms": 0.5, "throughput": 2000.0, "size_mb": 4.75, "parameters_m": 1.234, "macs_m": 177.0},
            details={"rows": [row], "teacher": {"latency_ms": 4.25, "size_mb": 29.5, "parameters_m": 7.433}},
        )
    return records


def look_into(records: Path, name: str, **metrics: float) -> None:
    """A record of stage analyse, as that writes it, with two pictures."""
    probes = {"probe_before": 0.421, "probe_after": 0.506, "whole_network": 0.509}
    told: dict[str, Any] = {"id": hashlib.sha256(f"analyse/{name}".encode()).hexdigest()[:32], "stage": "analyse", "name": name}
    told["metrics"] = probes | {f"{key}_spread": 0.01 for key in probes} | metrics
    captions = {"stages.png": "How alike they are.", "grad_cam.png": "Where they look."}
    told["details"] = {"warnings": ["The dictionary of stage1 is dead in 3 of 3 seeds."], "pictures": captions}
    if "transfer_after" in metrics:
        told["details"]["transfer"] = {"source": "folder", "root": "others", "splits": {}}
    (records / "analyse" / name).mkdir(parents=True)
    for file in captions:
        Image.new("RGB", (4, 4), "red").save(records / "analyse" / name / file)
    record = json.loads((records / "distill" / f"{name}.json").read_text())
    (records / "analyse" / f"{name}.json").write_text(json.dumps(record | {"curves": {}, "outputs": {}} | told))


def learn(records: Path, name: str, *runs: str) -> None:
    """A record of stage knowledge, as that writes it, and runs whose teacher has learned it."""
    curve = {"epoch": [1.0, 2.0], "loss": [0.7, 0.6], "seconds": [30.0, 60.0]}
    told: dict[str, Any] = {"id": hashlib.sha256(f"knowledge/{name}".encode()).hexdigest()[:32], "stage": "knowledge", "name": name}
    told |= {"params": {"knowledge": {"teacher": "big"}}, "metrics": {}, "curves": {"dictionary/seed-0": curve}, "outputs": {}}
    record = json.loads((records / "teacher" / "big.json").read_text())
    (records / "knowledge").mkdir(exist_ok=True)
    (records / "knowledge" / f"{name}.json").write_text(json.dumps(record | told | {"details": {"sample": {"images": 20}}}))
    for run in runs:
        for stage in ("pretrain", "distill"):
            path = records / stage / f"{run}.json"
            edit(path, params=json.loads(path.read_text())["params"] | {"knowledge": {name: {"teacher": "big"}}})


def keep_predictions(records: Path) -> None:
    """What each network said of every image, as the confusions in the records count it; errors are surer than what is right."""
    for file in (records / "evaluate").glob("*.json"):
        tested = json.loads(file.read_text())["details"]
        labels = np.repeat(np.arange(len(tested["classes"])), [sum(row) for row in tested["teacher"]["confusion"]])
        students = {int(seed): _said(scores["confusion"]) for seed, scores in tested["seeds"].items()}
        said = Predictions(np.arange(60, 60 + len(labels)), labels, _said(tested["teacher"]["confusion"]), students)
        predictions.save(file.with_suffix(".npz"), said)


def prepared(folder: Path, *, classes: int = 4, images: int = 160, train: int = 40, size: int = 8, channels: int = 1) -> Path:
    """The pixels of the fabricated data set: every image of one value, its row."""
    folder.mkdir(parents=True)
    pixels = np.broadcast_to(np.arange(images, dtype=np.uint8)[:, None, None, None], (images, size, size, channels))
    np.save(folder / "images.npy", pixels)
    np.save(folder / "labels.npy", np.arange(images) % classes)
    return folder


def crowd(records: Path, *, runs: int, classes: int) -> list[str]:
    """More runs of more classes, all with long names, from those that are there; the names of the runs."""
    names = [f"a_run_named_with_every_one_of_its_settings_lr_0.003_weight_decay_0.0005_{i}" for i in range(runs)]
    labels = [f"a class with quite a long name, number {i}" for i in range(classes)]
    counts = {split: dict.fromkeys(labels, n) for split, n in (("train", 5), ("val", 2), ("test", 20))}
    manifest = json.loads((records / "prepare.json").read_text())["details"]["manifest"] | {
        "classes": labels,
        "per_class": counts,
        "splits": {split: sum(counted.values()) for split, counted in counts.items()},
    }
    edit(records / "prepare.json", details={"manifest": manifest})
    confusion = np.eye(classes, dtype=int) * 15 + np.roll(np.eye(classes, dtype=int) * 5, 1, axis=1)
    scores = {"accuracy": 0.75, "ece": 0.04, "agreement": 0.8, "per_class": [0.75] * classes, "confusion": confusion.tolist()}
    for i, name in enumerate(names):
        for stage in ("pretrain", "distill", "evaluate", "export", "benchmark"):
            record = json.loads((records / stage / ("alone.json" if i == 0 else "fitnet.json")).read_text()) | {"name": name}
            if stage == "distill":
                record["metrics"] = {"val_accuracy": 0.5 + 0.01 * i}
                column = [0.5 + 0.001 * epoch for epoch in range(60)]
                curve = {"epoch": [1.0 + epoch for epoch in range(60)], "loss": column, "val_accuracy": column, "seconds": column}
                record["curves"] = {f"distill/seed-{seed}": curve for seed in range(3)}
            if stage == "evaluate":
                record["details"] |= {"classes": labels, "teacher": scores, "seeds": {str(seed): scores for seed in range(3)}}
            (records / stage / f"{name}.json").write_text(json.dumps(record))
    return names


def _said(confusion: Sequence[Sequence[int]]) -> Said:
    label, confidence = [], []
    for actual, counts in enumerate(confusion):
        for predicted, n in enumerate(counts):
            label += [predicted] * n
            confidence += [0.6 + 0.01 * actual if actual == predicted else 0.9 + 0.01 * actual] * n
    return Said(np.array(label, np.int32), np.array(confidence, np.float32))


def _scores(right: int) -> dict[str, Any]:
    """`right` of 100 images, wrong ones all taken for the next class; cats are the hardest."""
    lost = [100 - right - 3 * ((100 - right) // 5), *[(100 - right) // 5] * 3]
    confusion = [[0] * 4 for _ in CLASSES]
    for i, n in enumerate(lost):
        confusion[i][i], confusion[i][(i + 1) % 4] = 25 - n, n
    per_class = [(25 - n) / 25 for n in lost]
    return {"accuracy": right / 100, "ece": 0.04, "agreement": 0.875, "per_class": per_class, "confusion": confusion}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
