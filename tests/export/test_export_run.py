import csv
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline import nets
from pipeline.checkpoint import load_network, save_network
from pipeline.data.decode import SQUARES, Square, fit, load, see
from pipeline.data.prepare import prepare
from pipeline.data.protocol import rows_of_classes
from pipeline.data.seen import Seen
from pipeline.data.sources import DataConfig
from pipeline.data.store import Store
from pipeline.deploy.predictor import Predictor
from pipeline.evaluation.scores import logits_of, score
from pipeline.export.build_bundle import ExportConfig
from pipeline.export.deployable import Deployable
from pipeline.export.export_run import Exported, export_run
from pipeline.export.int8 import Int8Config
from pipeline.files import sha256
from pipeline.functional import Input
from pipeline.records.record import Record

ROOT = Path(__file__).parents[2]
CFG = ExportConfig(
    formats=("onnx", "int8"), parity_images=20, int8=Int8Config(images=32, check=40, min_snr=99)
)

SCORES = {  # of the exported student
    "accuracy": 0.8,
    "balanced_accuracy": 0.6,
    "macro_f1": 0.5,
    "ece": 0.125,
    "per_class": [0.9, 0.8, 0.7],
}
CONFUSION = [[9, 1, 0], [1, 8, 1], [1, 2, 7]]
SUBSET = {"images": 30, "unlabelled": 12}
INPUT = Input(12, mean=(0.4,), std=(0.3,))  # another size, mean and deviation than those of the data


@dataclass(frozen=True)
class Run:
    """An exported run of two students that tell three digits apart."""

    store: Store
    students: Path
    out: Path
    past: dict[str, Record]
    exported: Exported


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("run")
    data, students, out = place / "data", place / "students", place / "out"
    data.mkdir()
    prepare(DataConfig(**yaml.safe_load((ROOT / "params.yaml").read_text())["data"]), data)
    store = Store.open(data)
    classes = [store.classes[i] for i in (7, 0, 3)]
    for seed, accuracy in ((0, 0.6), (1, 0.9)):
        torch.manual_seed(seed)
        facts = {"net": "resnet8", "classes": classes, "channels": store.channels, "seed": seed}
        facts |= {"input": INPUT.as_facts()}
        scores = {"val_accuracy": accuracy, "val_loss": 1.0}
        net = nets.build("resnet8", len(classes), store.channels)
        save_network(students / f"seed-{seed}", net.state_dict(), facts | scores)
    past = {
        "distill": Record(
            "distill",
            "kd",
            {"run": {"method": {"name": "kd"}}},
            details={"subset": SUBSET},
            inputs={"code": "c" * 64},
        ),
        "evaluate": Record(
            "evaluate",
            "kd",
            {},
            metrics={"accuracy": 0.75, "spread": 0.05, "n": 2},
            details={
                "seeds": {
                    "0": SCORES | {"accuracy": 0.7, "confusion": CONFUSION},
                    "1": SCORES | {"confusion": CONFUSION},
                }
            },
            inputs={"teacher": "e" * 64},
        ),
    }
    exported = export_run("kd", CFG, data=data, students=students, past=past, out=out, record="r" * 32)
    return Run(store, students, out, past, exported)


def test_the_best_student_on_validation_is_exported(run: Run) -> None:
    facts = run.exported.result.details
    assert run.exported.seed == 1
    exported = facts["metrics"]["exported"]
    low, high = exported.pop("interval")
    assert exported == {"seed": 1, "images": 30, "images_per_class": [10, 10, 10]} | SCORES
    assert (low, high) == pytest.approx((0.6269, 0.9050), abs=1e-4)  # Wilson's, for 24 of 30
    assert facts["metrics"]["accuracy"] == 0.75
    assert facts["provenance"] == {
        "data": run.store.content,
        "teacher": "e" * 64,
        "student": sha256(run.students / "seed-1"),
        "code": "c" * 64,
        "net": "resnet8",
        "seed": 1,
        "val_accuracy": 0.9,
        "params": {"run": {"method": {"name": "kd"}}},
        "method": "kd",
        "cite": 'Knowledge distillation (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural '
        'Network", 2015).',
        "source": "digits",
        "splits": run.store.manifest["splits"],
        "learned_from": SUBSET,
        "record": "r" * 32,
        "records": {stage: record.id for stage, record in run.past.items()},
    }


def test_the_result_holds_hashes_and_the_metrics_of_int8(run: Run) -> None:
    result = run.exported.result
    assert result.inputs == {"data": run.store.content, "students": sha256(run.students)}
    assert result.outputs == {"bundle": sha256(run.out)}
    test = result.details["formats"]["int8"]["test"]
    assert result.metrics == {
        f"int8_{name}": test[name] for name in ("accuracy", "drop", "agreement", "snr_db")
    }


def test_a_remark_says_that_int8_is_refused(run: Run) -> None:
    (remark,) = run.exported.remarks
    assert "on 40 validation images" in remark
    assert "at least 99 dB are needed" in remark


def test_images_and_labels_are_those_of_the_students_classes(run: Run) -> None:
    """The labels of the bundle are positions in the student's classes, not in those of the store."""
    predictor = Predictor(run.out)
    assert predictor.bundle.classes == [run.store.classes[i] for i in (7, 0, 3)]
    rows = run.store.indices("test")
    rows = rows[np.isin(run.store.labels[rows], (7, 0, 3))][:40]
    seen = Seen(run.store.images, INPUT.size)[rows]
    answers = predictor.answers(seen)
    right = [
        answer.label == run.store.classes[run.store.labels[row]]
        for answer, row in zip(answers, rows, strict=True)
    ]
    int8: dict[str, Any] = run.exported.result.details["formats"]["int8"]
    assert int8["test"]["images"] == 40
    assert int8["test"]["accuracy_fp32"] == pytest.approx(np.mean(right))
    golden = predictor.bundle.golden().images
    assert all(any(np.array_equal(image, other) for other in seen) for image in golden)


def test_pictures_are_kept_as_in_the_store_and_seen_as_by_the_student(run: Run) -> None:
    bundle = Predictor(run.out).bundle
    assert (bundle.kept, bundle.size) == (run.store.size, INPUT.size)
    assert (bundle.facts["mean"], bundle.facts["std"]) == ([0.4], [0.3])


def test_a_temperature_is_fitted_and_measured_on_whole_splits(run: Run, tmp_path: Path) -> None:
    """Not only on the few images of the int8 gate. The error before is the one that evaluation finds."""
    cfg = ExportConfig(formats=("onnx",), parity_images=20, int8=CFG.int8, calibrate_probabilities=True)
    done = export_run(
        "kd",
        cfg,
        data=run.store.path,
        students=run.students,
        past=run.past,
        out=tmp_path / "out",
        record="r" * 32,
    )
    net, facts = load_network(run.students / "seed-1")
    classes = [run.store.classes.index(name) for name in facts["classes"]]
    seen, predict = Seen(run.store.images, 12), Deployable(net, INPUT.mean, INPUT.std).predict
    found = done.result.details["calibration"]
    for split, images in (("val", found["images"]), ("test", found["float"]["images"])):
        subset = rows_of_classes(run.store.labels, run.store.indices(split), classes)
        assert images == len(subset.rows)
        assert images > 40 or split == "val"
    error = score(logits_of(predict, seen, subset.rows), subset.labels, 3).ece
    assert found["float"]["ece_before"] == pytest.approx(error, abs=1e-6)
    keys = ("temperature", "ece_before", "ece_after")
    assert done.result.metrics == {
        key: found["temperature"] if key == "temperature" else found["float"][key] for key in keys
    }
    assert bool(done.remarks) != found["found"]


@pytest.mark.parametrize("square", SQUARES)
def test_prepare_and_predictor_give_the_same_pixels_to_odd_shapes(
    run: Run, tmp_path: Path, square: Square
) -> None:
    """From a file to the store, and from the same file to the deployed student: the contract."""
    rng = np.random.default_rng(0)
    shapes = [(1, 7), (7, 1), (300, 200), (3, 1000), (31, 30)]
    for split, name in itertools.product(("train", "val", "test"), ("ant", "bee")):
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True)
        for width, height in shapes:
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{width}x{height}.png")
    (tmp_path / "data").mkdir()
    cfg = DataConfig(source="folder", root=str(tmp_path / "images"), size=16, square=square)
    prepare(cfg, tmp_path / "data")
    store = Store.open(tmp_path / "data")
    torch.manual_seed(0)
    net = nets.build("resnet8", 2, 3)
    facts = {"net": "resnet8", "classes": ["ant", "bee"], "channels": 3, "seed": 1, "val_accuracy": 1.0}
    input = Input(12, mean=(0.4,) * 3, std=(0.3,) * 3)
    save_network(
        tmp_path / "students" / "seed-1",
        net.state_dict(),
        facts | {"input": input.as_facts(), "val_loss": 1.0},
    )
    scores = SCORES | {"per_class": [0.9, 0.8], "confusion": [[9, 1], [2, 8]]}
    tested = replace(run.past["evaluate"], details={"seeds": {"1": scores}})
    export_run(
        "kd",
        ExportConfig(formats=("onnx",)),
        data=tmp_path / "data",
        students=tmp_path / "students",
        past=run.past | {"evaluate": tested},
        out=tmp_path / "out",
        record="r" * 32,
    )
    predictor = Predictor(tmp_path / "out")
    assert (predictor.bundle.square, predictor.bundle.kept) == (square, 16)
    table = list(csv.DictReader((tmp_path / "data" / "files.csv").read_text().splitlines()))
    assert len(table) == 30
    for row in table:
        file = tmp_path / "images" / row["path"]
        stored = store.images[:][int(row["row"])]
        assert np.array_equal(fit(load(file), 16, 3, square), stored)
        assert np.array_equal(predictor.decode(file), see(stored, 12)), file
