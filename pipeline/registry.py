"""The best student as a version of a registered model, which others load as `models:/NAME@champion`.

What is registered is the bundle, file by file, with an MLmodel beside it: MLflow's own ONNX flavour loads the very file that was verified,
so nothing is pickled, no code of ours runs, and nothing is rewritten (MLflow's `log_model` would move the weights out of the graph).
"""

import json
import platform
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline import report
from pipeline.deploy.bundle import Bundle, BundleError, open_bundle
from pipeline.inputs import InputError
from pipeline.record import sha256
from pipeline.track import rows, store, write
from pipeline.track.rows import Row

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Budgets:
    """What an image may cost by the bundle's fastest file; 0: whatever it takes."""

    latency_ms: float = 0.0
    size_mb: float = 0.0


@dataclass(frozen=True)
class Promoted:
    """The version that the best run's bundle is, and as what; `passed_over` are better runs that failed a gate, and why."""

    model: str
    version: str
    alias: str
    run: str
    new: bool
    why: str
    passed_over: dict[str, str]


def promote(
    records: Path,
    *,
    runs: Sequence[str],
    teachers: Sequence[str],
    bundles: Path,
    model: str,
    budgets: Budgets = Budgets(),
    analysed: Collection[str] = (),
) -> Promoted:
    """Register, once, the bundle that is best on validation among those that pass their gates; it is champion if it beats the champion."""
    if not re.fullmatch(r"[\w.-]+( [\w.-]+)*", model):
        raise InputError(f"{model!r} can't be the name of a registered model. Use letters, digits, '.', '-' and '_'.")
    results = report.load(records, runs, teachers, analysed=analysed)
    run, bundle, passed_over = _best(results, bundles, budgets)
    row = next(row for row in rows.of(results) if (row.kind, row.name) == ("run", run.name))
    with store.writing() as (client, experiment):
        logged = write.find(client, experiment, row)
        if logged is None:
            raise InputError(f"MLflow at {store.shown(store.tracking_uri())} has no row of run {run.name} yet. `make track` logs it.")
        version = _version_of(client, model, bundle)
        new = version is None
        if version is None:
            version = _register(client, experiment, model, bundle, _tags(row, run, bundle, logged.info.run_id))
        alias, why = _name(client, model, version)
    return Promoted(model, str(version.version), alias, run.name, new, why, passed_over)


# --- gates -----------------------------------------------------------------------------------------------------------


def _best(results: report.Results, bundles: Path, budgets: Budgets) -> tuple[report.Run, Bundle, dict[str, str]]:
    passed_over: dict[str, str] = {}
    for run in results.ranked:
        fault = _fault(run, bundles / run.name, budgets)
        if fault is None:
            return run, open_bundle(bundles / run.name), passed_over
        passed_over[run.name] = fault
    told = "; ".join(f"{name}: {fault}" for name, fault in passed_over.items())
    raise InputError(f"No run has a bundle that passes its gates. {told}")


def _fault(run: report.Run, folder: Path, budgets: Budgets) -> str | None:
    """The first gate that the run's bundle doesn't pass: what it tells, how it answers here. A refused int8 is no fault: float ships."""
    from pipeline.deploy.verify import passed, verify

    try:
        facts = open_bundle(folder).facts
    except BundleError as error:
        return str(error)
    if sha256(folder) != run.records["export"].outputs["bundle"]:
        return f"{folder} isn't the bundle that the record of stage export speaks of (`dvc repro export@{run.name}` makes it again)"
    for format, told in facts["formats"].items():
        if (parity := told.get("parity")) and not parity["rel"] <= parity["allowed"]:
            return f"its {format} file differs from the trained network by {parity['rel']:.1e} (allowed: {parity['allowed']:.0e})"
    if not passed(checks := verify(folder)):
        return f"{checks[-1].what}: {checks[-1].says}"
    shipped = {format: took for format, took in facts["latency"]["median_ms"].items() if format in open_bundle(folder).formats}
    fastest = min(shipped, key=shipped.__getitem__)
    mb = facts["files"][facts["formats"][fastest]["file"]]["bytes"] / 1e6
    if budgets.latency_ms and shipped[fastest] > budgets.latency_ms:
        return f"it takes {shipped[fastest]:.3g} ms an image ({fastest}); export.max_latency_ms allows {budgets.latency_ms:g}"
    if budgets.size_mb and mb > budgets.size_mb:
        return f"it has {mb:.3g} MB ({fastest}); export.max_size_mb allows {budgets.size_mb:g}"
    return None


# --- the registry ----------------------------------------------------------------------------------------------------


def _version_of(client: "MlflowClient", model: str, bundle: Bundle) -> "ModelVersion | None":
    """The version that this very bundle is already."""
    found = client.search_model_versions(f"name = '{model}' AND tags.bundle = '{bundle.fingerprint}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _register(client: "MlflowClient", experiment: str, model: str, bundle: Bundle, tags: dict[str, str]) -> "ModelVersion":
    import mlflow
    from mlflow import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    mlflow.set_tracking_uri(store.tracking_uri())  # whatever the client's is, by this alone MLflow finds what `models:/` means
    logged = _files(client, experiment, bundle, tags)
    try:
        client.create_registered_model(model, description="Students to deploy: the bundle that was best on validation is the champion.")
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    return client.create_model_version(
        model, f"models:/{logged}", tags["row"], tags=tags, description=_description(bundle, tags, model), model_id=logged
    )


def _files(client: "MlflowClient", experiment: str, bundle: Bundle, tags: dict[str, str]) -> str:
    """The id of the MLflow model that holds the bundle, also where it is registered under another name; whole, or made anew."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    for found in client.search_logged_models([experiment], f"tags.bundle = '{bundle.fingerprint}'"):
        if found.status == LoggedModelStatus.READY:
            return found.model_id
        client.delete_logged_model(found.model_id)  # of an attempt that was killed
    logged = client.create_logged_model(experiment, name=bundle.name, source_run_id=tags["row"], tags=tags, model_type="student")
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(bundle.folder, folder)
        describe(bundle, folder, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.log_outputs(tags["row"], [LoggedModelOutput(logged.model_id, 0)])
    client.finalize_logged_model(logged.model_id, "READY")
    return logged.model_id


def describe(bundle: Bundle, folder: Path, model_id: str | None = None) -> None:
    """An MLmodel beside the bundle's files in `folder`: how MLflow loads it, what goes in, what comes out, and what the columns mean."""
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    image = TensorSpec(np.dtype("uint8"), (-1, bundle.size, bundle.size, bundle.channels), "image")
    answers: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype("float32"), (-1, len(bundle.classes)), name) for name in bundle.facts["outputs"]
    ]
    told = {"classes": bundle.classes, "input": bundle.facts["transform"]["words"], "bundle": bundle.fingerprint}
    model = Model(signature=ModelSignature(Schema([image]), Schema(answers)), metadata=told, model_id=model_id)
    file = bundle.facts["formats"]["onnx"]["file"]
    pyfunc.add_to_model(model, "mlflow.onnx", data=file, python_env="python_env.yaml")
    model.add_flavor("onnx", onnx_version=installed("onnx"), data=file, providers=["CPUExecutionProvider"])
    model.save(str(folder / "MLmodel"))
    needed = [f"mlflow=={installed('mlflow')}", f"numpy=={installed('numpy')}", f"onnx=={installed('onnx')}", "onnxruntime>=1.30,<2"]
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n")
    (folder / "python_env.yaml").write_text(f"python: {platform.python_version()}\ndependencies: [-r requirements.txt]\n")


def _tags(row: Row, run: report.Run, bundle: Bundle, run_id: str) -> dict[str, str]:
    """What the version is worth and where it comes from."""
    worth = {"run": run.name, "method": run.method, "teacher": run.teacher, "net": run.student, "formats": ", ".join(bundle.formats)}
    numbers = {key: f"{value:.5f}" for key, value in row.headline.items()}
    lineage = {"row": run_id, "bundle": bundle.fingerprint, "exported_seed": str(run.exported_seed)}
    lineage |= {f"hash.{key}": value for key, value in rows.hashes(row).items()}
    lineage |= {f"stage.{record.stage}": record.id for record in row.records}
    return worth | numbers | lineage | {"classes": json.dumps(bundle.classes)[:5000]}


def _description(bundle: Bundle, tags: Mapping[str, str], model: str) -> str:
    numbers = "\n".join(f"| {words} | {tags[key]} |" for key, words in rows.WORDS.items() if key in tags)
    names = ", ".join(bundle.classes[:50]) + (" ..." if len(bundle.classes) > 50 else "")
    return (
        f"Run **{tags['run']}** ({tags['method']}, {tags['net']}), seed {tags['exported_seed']}.\n\n| | |\n|---|---|\n{numbers}\n\n"
        f"Classes: {names}\n\n"
        f"`mlflow.pyfunc.load_model('models:/{model}@{CHAMPION}').predict(images)` takes uint8 images "
        f"N x {bundle.size} x {bundle.size} x {bundle.channels} and gives logits and probabilities. The files are the bundle itself: "
        "`python predictor.pyz verify FOLDER` checks them, `predict` and `serve` use them.\n"
    )


def _name(client: "MlflowClient", model: str, version: "ModelVersion") -> tuple[str, str]:
    """The alias that the version now has, and why."""
    aliases: dict[str, Any] = client.get_registered_model(model).aliases
    if CHAMPION not in aliases:
        alias, why = CHAMPION, "the first"
    elif str(aliases[CHAMPION]) == str(version.version):
        return CHAMPION, "as before"
    else:
        alias, why = _compare(version.tags, client.get_model_version(model, str(aliases[CHAMPION])))
    client.set_registered_model_alias(model, alias, version.version)
    if alias == CHAMPION and str(aliases.get(CHALLENGER)) == str(version.version):
        client.delete_registered_model_alias(model, CHALLENGER)
    return alias, why


def _compare(ours: Mapping[str, str], champion: "ModelVersion") -> tuple[str, str]:
    theirs = champion.tags
    if "by_val" not in theirs or any(ours[key] != theirs.get(key) for key in ("hash.data", "classes")):
        return CHALLENGER, f"champion is version {champion.version}, measured on other data or classes: only a person can choose"
    reached, held = float(ours["by_val"]), float(theirs["by_val"])
    if reached > held:
        return CHAMPION, f"{reached:.2%} on validation, better than the {held:.2%} of version {champion.version}"
    return CHALLENGER, f"{reached:.2%} on validation, not better than the {held:.2%} of version {champion.version}"
