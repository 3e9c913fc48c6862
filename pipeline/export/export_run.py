"""Exports a run's best student."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import methods
from pipeline.checkpoint import best_seed, load_network, student_folders
from pipeline.data.protocol import rows_of_classes
from pipeline.data.seen import Seen
from pipeline.data.store import Store
from pipeline.export import calibration
from pipeline.export.build_bundle import ExportConfig, Labelled, build_bundle
from pipeline.files import atomic_folder, sha256
from pipeline.functional import Input
from pipeline.records.intervals import of_scores
from pipeline.records.mistakes import images_per_class
from pipeline.records.record import Record, Result

FILE_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "per_class")
INT8_METRICS = ("accuracy", "drop", "agreement", "snr_db")


@dataclass(frozen=True)
class Exported:
    seed: int
    result: Result
    remarks: list[str]  # what a person should know


def export_run(
    name: str,
    cfg: ExportConfig,
    *,
    data: Path,
    students: Path,
    past: Mapping[str, Record],
    out: Path,
    record: str,
) -> Exported:
    """Write the bundle of the run's best student on validation images into `out`.

    `past` holds the run's records of stages `distill` and `evaluate`. `record` is the id of the record that
    stage `export` is writing.
    """
    store, seed = Store.open(data), best_seed(students)
    chosen = student_folders(students)[seed]
    net, facts = load_network(chosen)
    input = Input.from_facts(facts["input"])
    classes = [store.classes.index(each) for each in facts["classes"]]
    tested = past["evaluate"]
    scores = tested.details["seeds"][str(seed)]
    counted = of_scores(scores)
    exported = {
        "seed": seed,
        "images": counted.images,
        "interval": [counted.low, counted.high],
        "images_per_class": images_per_class(scores),
        **{key: scores[key] for key in FILE_SCORES},
    }
    with atomic_folder(out) as folder:
        bundle = build_bundle(
            net,
            out=folder,
            name=name,
            classes=facts["classes"],
            mean=input.mean,
            std=input.std,
            training=_split(store, "train", classes, input.size).images,
            validation=_split(store, "val", classes, input.size),
            test=_split(store, "test", classes, input.size),
            metrics=tested.metrics | {"exported": exported},
            provenance=_provenance(store, chosen, facts, past, record),
            cfg=cfg,
            kept=store.size,
            square=store.square,
        )
    result = Result(
        metrics=_int8_metrics(bundle) | _calibration_metrics(bundle),
        inputs={"data": store.content, "students": sha256(students)},
        outputs={"bundle": sha256(out)},
        details=bundle,
    )
    return Exported(seed, result, _remarks(bundle))


@dataclass(frozen=True)
class _Rows:
    """Some images of a store as a network sees them, each read when it is asked for."""

    images: Seen
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        return self.images[self.rows[which]]


def _split(store: Store, split: str, classes: list[int], size: int) -> Labelled:
    """The images of these classes in a split, as a network of this size sees them."""
    subset = rows_of_classes(store.labels, store.indices(split), classes)
    return Labelled(_Rows(Seen(store.images, size), subset.rows), subset.labels)


def _provenance(
    store: Store, student: Path, facts: Mapping[str, Any], past: Mapping[str, Record], record: str
) -> dict[str, Any]:
    return {
        "data": store.content,
        "teacher": past["evaluate"].inputs["teacher"],
        "student": sha256(student),
        "code": past["distill"].inputs["code"],
        **{key: facts[key] for key in ("net", "seed", "val_accuracy")},
        **_origins(store, past["distill"]),
        "params": past["distill"].params,
        "record": record,
        "records": {stage: each.id for stage, each in past.items()},
    }


def _origins(store: Store, distilled: Record) -> dict[str, Any]:
    """What the card says of the data and of the method, and whom to cite for it."""
    method = distilled.params["run"]["method"]["name"]
    documented = inspect.getdoc(sys.modules[methods.load(method).__module__]) or ""
    subset = distilled.details["subset"]
    return {
        "method": method,
        "cite": " ".join(documented.partition("\n\n")[0].split()) if method != "ce" else "",
        "source": store.manifest["source"],
        "splits": store.manifest["splits"],
        "learned_from": {"images": subset["images"], "unlabelled": subset.get("unlabelled", 0)},
    }


def _int8_metrics(bundle: Mapping[str, Any]) -> dict[str, float]:
    if "int8" not in bundle["formats"]:
        return {}
    return {f"int8_{name}": bundle["formats"]["int8"]["test"][name] for name in INT8_METRICS}


def _calibration_metrics(bundle: Mapping[str, Any]) -> dict[str, float]:
    """Of each file whose probabilities are calibrated, on test images."""
    calibrated = bundle.get("calibration", {})
    found = {"temperature": calibrated["temperature"]} if calibrated else {}
    for name, prefix in (("float", ""), ("int8", "int8_")):
        if name in calibrated:
            found |= {f"{prefix}{key}": calibrated[name][key] for key in ("ece_before", "ece_after")}
    return found


def _remarks(bundle: Mapping[str, Any]) -> list[str]:
    int8, calibrated = bundle["formats"].get("int8"), bundle.get("calibration")
    remarks = calibration.remarks(calibrated) if calibrated else []
    if not int8 or not int8["refused"]:
        return remarks
    return [
        *remarks,
        "only the float files ship, because the int8 file is not close enough to them: on "
        f"{int8['quality']['images']} validation images {'; '.join(int8['refused'])} (limits: export.int8)",
    ]
