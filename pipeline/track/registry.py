"""The best student as a version of a registered model, which others load as `models:/NAME@champion`.

A version is the bundle, file by file, with an MLmodel beside it. MLflow's own ONNX flavour loads the file
that was verified. So nothing is pickled, no code of ours runs, and nothing is rewritten: MLflow's `log_model`
would move the weights out of the graph.
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
from typing import TYPE_CHECKING

from pipeline.deploy.read_bundle import Bundle, BundleError, open_bundle
from pipeline.files import sha256
from pipeline.records.results import Results, RunResults, load_results
from pipeline.settings import InputError
from pipeline.track import database, measures, rows
from pipeline.track.rows import Row
from pipeline.track.write_rows import find_row

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
OF_METHOD: tuple[str, ...] = ("accuracy_test_mean", "accuracy_test_spread", "seeds", "score_val")
OF_METHOD += ("gain_points", "gain_points_low", "gain_points_high")
OF_TRAINING = ("train_images", "train_images_unlabelled", "training_minutes", "energy_wh")
OF_FILE = tuple(key for key in measures.MEANINGS if key not in (*OF_METHOD, *OF_TRAINING))
# tags of a version, which MLflow's list of versions shows in full; the logged model has all
OF_VERSION: tuple[str, ...] = ("run", "method", "teacher", "net", "formats", "accuracy", "gain", "score_val")
OF_VERSION += ("select", "exported_seed", "row", "bundle", "hash.data", "classes")


@dataclass(frozen=True)
class Budgets:
    """The limits for the bundle's fastest file, with one image; 0 sets no limit."""

    latency_ms: float = 0.0
    size_mb: float = 0.0


@dataclass(frozen=True)
class Registered:
    """The version that the best run's bundle is, its alias and why. `passed_over` has, for each better run
    whose bundle failed a gate, which gate."""

    model: str
    version: str
    alias: str
    run: str
    new: bool
    why: str
    passed_over: dict[str, str]


def register_best(
    records: Path,
    *,
    runs: Sequence[str],
    teachers: Sequence[str],
    bundles: Path,
    model: str,
    budgets: Budgets = Budgets(),
    analysed: Collection[str] = (),
) -> Registered:
    """Register the bundle that is best on validation and passes all gates, once. It becomes the champion if
    there is none or if it beats the champion."""
    if not re.fullmatch(r"[\w.-]+( [\w.-]+)*", model):
        raise InputError(
            f"{model!r} cannot be the name of a registered model. Use letters, digits, '.', '-' and '_', "
            "with single spaces between words."
        )
    results = load_results(records, runs, teachers, analysed=analysed)
    run, bundle, passed_over = _best(results, bundles, budgets)
    row = next(row for row in rows.build_rows(results) if (row.kind, row.name) == ("run", run.name))
    with database.open_for_writing() as (client, experiment):
        logged = find_row(client, experiment, row)
        if logged is None:
            uri = database.public_uri(database.tracking_uri())
            raise InputError(f"MLflow at {uri} has no row of run {run.name} yet. `handdown track` logs it.")
        version = _find_version(client, model, bundle)
        is_new = version is None
        if version is None:
            tags = _tags(row, run, bundle, logged.info.run_id) | {"select": results.select}
            version = _register(client, experiment, model, bundle, row, tags)
        alias, why = _set_alias(client, model, version)
    return Registered(model, str(version.version), alias, run.name, is_new, why, passed_over)


# --- gates ---


def _best(results: Results, bundles: Path, budgets: Budgets) -> tuple[RunResults, Bundle, dict[str, str]]:
    passed_over: dict[str, str] = {}
    for run in results.ranked:
        fault = _fault(run, bundles / run.name, budgets)
        if fault is None:
            return run, open_bundle(bundles / run.name), passed_over
        passed_over[run.name] = fault
    faults = "; ".join(f"{name}: {fault}" for name, fault in passed_over.items())
    raise InputError(f"No run has a bundle that passes all gates. {faults}")


def _fault(run: RunResults, folder: Path, budgets: Budgets) -> str | None:
    """The first gate that the run's bundle fails. A refused int8 file is no fault: the float file ships."""
    from pipeline.deploy.verify import passed, verify

    try:
        bundle = open_bundle(folder)
    except BundleError as error:
        return str(error)
    if sha256(folder) != run.records["export"].outputs["bundle"]:
        return (
            f"{folder} is not the bundle that the record of stage export describes "
            f"(`dvc repro export@{run.name}` makes it again)"
        )
    for format, facts in bundle.facts["formats"].items():
        if (parity := facts.get("parity")) and not parity["rel"] <= parity["allowed"]:
            return (
                f"its {format} file differs from the trained network by {parity['rel']:.1e} "
                f"(allowed: {parity['allowed']:.0e})"
            )
    if not passed(checks := verify(folder)):
        return f"{checks[-1].what}: {checks[-1].says}"
    return _over_budget(bundle, budgets)


def _over_budget(bundle: Bundle, budgets: Budgets) -> str | None:
    facts = bundle.facts
    times: dict[str, float] = {
        format: ms for format, ms in facts["latency"]["median_ms"].items() if format in bundle.formats
    }
    fastest = min(times, key=times.__getitem__)
    mb = facts["files"][facts["formats"][fastest]["file"]]["bytes"] / 1e6
    if budgets.latency_ms and times[fastest] > budgets.latency_ms:
        return (
            f"it takes {times[fastest]:.3g} ms an image ({fastest}); "
            f"export.max_latency_ms allows {budgets.latency_ms:g}"
        )
    if budgets.size_mb and mb > budgets.size_mb:
        return f"it has {mb:.3g} MB ({fastest}); export.max_size_mb allows {budgets.size_mb:g}"
    return None


# --- the registry ---


def _find_version(client: "MlflowClient", model: str, bundle: Bundle) -> "ModelVersion | None":
    """The version of exactly this bundle, if it is registered already."""
    found = client.search_model_versions(f"name = '{model}' AND tags.bundle = '{bundle.fingerprint}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _register(
    client: "MlflowClient", experiment: str, model: str, bundle: Bundle, row: Row, tags: dict[str, str]
) -> "ModelVersion":
    import mlflow
    from mlflow import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    # whatever the client's address is, MLflow looks up `models:/` addresses at this one
    mlflow.set_tracking_uri(database.tracking_uri())
    logged = _log_files(client, experiment, bundle, row, tags)
    try:
        client.create_registered_model(
            model, description="Students to deploy: the bundle that was best on validation is the champion."
        )
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    return client.create_model_version(
        model,
        f"models:/{logged}",
        tags["row"],
        tags={key: tags[key] for key in OF_VERSION if key in tags},
        description=_description(bundle, tags, model),
        model_id=logged,
    )


def _log_files(
    client: "MlflowClient", experiment: str, bundle: Bundle, row: Row, tags: dict[str, str]
) -> str:
    """The id of the MLflow model that holds the bundle. One that is complete, perhaps registered under
    another name, is used again."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    for found in client.search_logged_models([experiment], f"tags.bundle = '{bundle.fingerprint}'"):
        if found.status == LoggedModelStatus.READY:
            return found.model_id
        client.delete_logged_model(found.model_id)  # of an attempt that was killed
    logged = client.create_logged_model(
        experiment, name=bundle.name, source_run_id=tags["row"], tags=tags, model_type="student"
    )
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(bundle.folder, folder)
        write_mlmodel(bundle, folder, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(folder))
    _attach_metrics(client, row, logged.model_id, tags["row"])
    client.log_outputs(tags["row"], [LoggedModelOutput(logged.model_id, 0)])
    client.finalize_logged_model(logged.model_id, "READY")
    return logged.model_id


def _attach_metrics(client: "MlflowClient", row: Row, model_id: str, run: str) -> None:
    """The numbers of the file, at the logged model itself: `search_logged_models` finds it by them."""
    from mlflow.entities import Metric

    test = next(digest for context, digest, _ in rows.splits(row) if context == "testing")
    data = row.shared[0].details["manifest"]["source"]
    metrics = [
        Metric(
            key, value, moment, step, model_id=model_id, dataset_name=data, dataset_digest=test, run_id=run
        )
        for key, value, moment, step in rows.points(row)
        if key in OF_FILE
    ]
    client.log_batch(run, metrics)


def write_mlmodel(bundle: Bundle, folder: Path, model_id: str | None = None) -> None:
    """Write an MLmodel beside the bundle's files in `folder`: how to load it, its inputs and outputs."""
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    image = TensorSpec(np.dtype("uint8"), (-1, bundle.size, bundle.size, bundle.channels), "image")
    outputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype("float32"), (-1, len(bundle.classes)), name) for name in bundle.facts["outputs"]
    ]
    metadata = {
        "classes": bundle.classes,
        "input": bundle.facts["transform"]["words"],
        "bundle": bundle.fingerprint,
    }
    signature = ModelSignature(Schema([image]), Schema(outputs))
    model = Model(
        signature=signature,
        metadata=metadata,
        model_id=model_id,
        saved_input_example_info=_write_example(bundle, folder),
    )
    file = bundle.facts["formats"]["onnx"]["file"]
    pyfunc.add_to_model(model, "mlflow.onnx", data=file, python_env="python_env.yaml")
    model.add_flavor("onnx", onnx_version=installed("onnx"), data=file, providers=["CPUExecutionProvider"])
    model.save(str(folder / "MLmodel"))
    pinned = [f"{package}=={installed(package)}" for package in ("mlflow", "numpy", "onnx")]
    (folder / "requirements.txt").write_text("\n".join([*pinned, "onnxruntime>=1.30,<2"]) + "\n")
    (folder / "python_env.yaml").write_text(
        f"python: {platform.python_version()}\ndependencies: [-r requirements.txt]\n"
    )


def _write_example(bundle: Bundle, folder: Path) -> dict[str, str]:
    """One of the bundle's golden images, in the form of MLflow's own examples; returns what it says of it."""
    image = bundle.golden().images[:1].tolist()
    (folder / "input_example.json").write_text(json.dumps(image))
    (folder / "serving_input_example.json").write_text(json.dumps({"inputs": image}))
    return {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "ndarray",
    }


def _tags(row: Row, run: RunResults, bundle: Bundle, run_id: str) -> dict[str, str]:
    """How good the student is, and where it comes from."""
    return {
        "run": run.name,
        "method": run.method,
        "teacher": run.teacher,
        "net": run.student,
        "formats": ", ".join(bundle.formats),
        **{key: f"{value:.6g}" for key, value in row.headline.items()},
        **row.shown,
        "row": run_id,
        "bundle": bundle.fingerprint,
        "exported_seed": str(run.exported_seed),
        "in_words": row.in_words,
        **{f"hash.{key}": value for key, value in rows.hashes(row).items()},
        **{f"stage.{record.stage}": record.id for record in row.records},
        "classes": json.dumps(bundle.classes)[:5000],
    }


def _description(bundle: Bundle, tags: Mapping[str, str], model: str) -> str:
    numbers = "\n".join(
        f"| `{key}` | {tags[key]} | {measures.MEANINGS[key]} |" for key in OF_FILE if key in tags
    )
    of_method = ", ".join(f"`{key}` {tags[key]}" for key in OF_METHOD if key in tags)
    names = ", ".join(bundle.classes[:50]) + (" ..." if len(bundle.classes) > 50 else "")
    return (
        f"Run **{tags['run']}** ({tags['method']}, {tags['net']}). {tags['in_words']}\n\n"
        f"| of the file | | |\n|---|--:|---|\n{numbers}\n\n"
        f"The method, over its seeds: {of_method}.\n\n"
        f"Classes: {names}\n\n"
        f"`mlflow.pyfunc.load_model('models:/{model}@{CHAMPION}').predict(images)` takes uint8 images "
        f"N x {bundle.size} x {bundle.size} x {bundle.channels} and gives logits and probabilities. "
        "The files are the bundle itself: `python predictor.pyz verify FOLDER` checks them, `predict` "
        "and `serve` use them.\n"
    )


def _set_alias(client: "MlflowClient", model: str, version: "ModelVersion") -> tuple[str, str]:
    """Make the version champion or challenger; returns which, and why."""
    aliases = {alias: str(number) for alias, number in client.get_registered_model(model).aliases.items()}
    if aliases.get(CHAMPION) == str(version.version):
        return CHAMPION, "as before"
    alias, why = CHAMPION, "the first"
    if CHAMPION in aliases:
        alias, why = _compare(version.tags, client.get_model_version(model, aliases[CHAMPION]))
    client.set_registered_model_alias(model, alias, version.version)
    if alias == CHAMPION and aliases.get(CHALLENGER) == str(version.version):
        client.delete_registered_model_alias(model, CHALLENGER)
    return alias, why


def _compare(ours: Mapping[str, str], champion: "ModelVersion") -> tuple[str, str]:
    """The alias for our version, and why. All versions of this project wrote the tags that this reads."""
    theirs = champion.tags
    score = theirs.get("score_val", theirs.get("by_val"))  # the second name is that of earlier versions
    if score is None or any(ours[key] != theirs.get(key) for key in ("hash.data", "classes")):
        return CHALLENGER, (
            f"the champion, version {champion.version}, was measured on other data or classes, so only a "
            "person can choose"
        )
    select = ours.get("select", "accuracy")
    if (other := theirs.get("select", "accuracy")) != select:
        return CHALLENGER, (
            f"the champion, version {champion.version}, was chosen by {other}, and this one by {select}, so "
            "only a person can choose"
        )
    our_score, their_score = float(ours["score_val"]), float(score)
    is_better, form = our_score > their_score, ".4f" if select == "loss" else ".2%"
    return CHAMPION if is_better else CHALLENGER, (
        f"{our_score:{form}} on validation, {'better' if is_better else 'not better'} than the "
        f"{their_score:{form}} of version {champion.version}"
    )
