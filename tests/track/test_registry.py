"""The best student as a version of a registered model, from fabricated records and small bundles."""

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import fabricated
import numpy as np
import pytest
from deploy.conftest import CLASSES, Draft, draft, pictures
from test_docs import code
from tracked import ANY_HINT, OLD_LOADER, client, log

from pipeline.deploy.predictor import Predictor
from pipeline.deploy.read_bundle import open_bundle
from pipeline.deploy.verify import passed, verify
from pipeline.files import sha256
from pipeline.settings import InputError
from pipeline.track import database, registry
from pipeline.track.registry import OF_VERSION, Budgets, Registered

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

pytestmark = [pytest.mark.filterwarnings(OLD_LOADER), pytest.mark.filterwarnings(ANY_HINT)]
NAME = "digits students"
NO_LIMITS = Budgets()


@pytest.fixture
def project(project: Path) -> Path:
    """Three runs in MLflow with their bundles. On validation fitnet is best, then kd, then alone."""
    return log_with_bundles(project)


def log_with_bundles(root: Path) -> Path:
    for name in fabricated.NAMES["runs"]:
        write_bundle(root, name)
    log(root)
    return root


@cache
def bundle_draft() -> Draft:
    with TemporaryDirectory() as scratch:
        return draft(Path(scratch), int8=False)


def write_bundle(root: Path, name: str, **changes: Any) -> Path:
    """Write the bundle of a run, and its hash into the run's record."""
    parity = {"rel": 3e-7, "allowed": 1e-5}
    formats = {
        **bundle_draft().facts["formats"],
        "onnx": {"file": "student.onnx", "opset": 20, "parity": parity},
    }
    facts = {
        **bundle_draft().facts,
        "name": name,
        "formats": formats,
        "latency": {"median_ms": {"onnx": 0.5, "torchscript": 0.9}},
        **changes,
    }
    shutil.rmtree(root / "bundles" / name, ignore_errors=True)
    folder = Draft(facts, bundle_draft().files).write(root / "bundles" / name)
    fabricated.edit(root / "records" / "export" / f"{name}.json", outputs={"bundle": sha256(folder)})
    return folder


def promote(root: Path, *, budgets: Budgets = NO_LIMITS, model: str = NAME) -> Registered:
    names = fabricated.NAMES
    return registry.register_best(
        root / "records",
        runs=names["runs"],
        teachers=names["teachers"],
        bundles=root / "bundles",
        model=model,
        budgets=budgets,
    )


def improve(root: Path, name: str, accuracy: float) -> None:
    """Log the run once more, with another accuracy on validation and another bundle."""
    again = [f"{stage}/{name}" for stage in ("distill", "evaluate", "export", "benchmark")]
    fabricated.fabricate(root / "records", validation={**fabricated.VALIDATION, name: accuracy}, again=again)
    for each in fabricated.NAMES["runs"]:
        write_bundle(
            root, each, **({"provenance": {"data": "1" * 64, "accuracy": accuracy}} if each == name else {})
        )
    log(root)


def refusal(root: Path, budgets: Budgets) -> str:
    with pytest.raises(InputError) as caught:
        promote(root, budgets=budgets)
    return str(caught.value)


def versions(model: str = NAME) -> "list[ModelVersion]":
    return sorted(
        client().search_model_versions(f"name = '{model}'"), key=lambda version: int(version.version)
    )


def aliases(model: str = NAME) -> dict[str, str]:
    return {alias: str(version) for alias, version in client().get_registered_model(model).aliases.items()}


def test_the_champion_answers_like_the_bundle(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from mlflow import MlflowException

    done = promote(project)
    assert (done.run, done.version, done.alias, done.new, done.passed_over) == (
        "fitnet",
        "1",
        "champion",
        True,
        {},
    )
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(database.tracking_uri())
    try:
        loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
        images = pictures(5, seed=3)
        logits, probabilities = Predictor(project / "bundles" / "fitnet").run(images)
        answer = loaded.predict(images)
        assert np.array_equal(answer["logits"], logits)
        assert np.allclose(answer["probabilities"], probabilities, atol=1e-6)
        assert np.abs(logits).max() > 0.1
        with pytest.raises(MlflowException, match="schema"):
            loaded.predict(images.astype(np.float64))
        assert loaded.metadata.metadata["classes"] == list(CLASSES)
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion"))
    finally:
        mlflow.set_tracking_uri(before)
    # the files are those of the bundle, and loading them runs no code
    assert passed(verify(folder, expect=open_bundle(project / "bundles" / "fitnet").fingerprint))
    own = {path.name for path in (project / "bundles" / "fitnet").iterdir()}
    added = {"MLmodel", "python_env.yaml", "registered_model_meta", "requirements.txt"}
    added |= {"input_example.json", "serving_input_example.json"}
    assert {path.name for path in folder.iterdir()} - own == added


def test_a_version_says_how_good_it_is_and_where_it_comes_from(project: Path) -> None:
    promote(project)
    (version,) = versions()
    row = log(project).runs["fitnet"]
    tags = version.tags
    assert set(tags) == set(OF_VERSION)
    assert (version.run_id, tags["row"]) == (row, row)
    record = json.loads((project / "records" / "distill" / "fitnet.json").read_text())
    model = client().get_logged_model(str(version.source).removeprefix("models:/"))
    assert model.tags["stage.distill"] == record["id"]
    assert model.tags["hash.student"] == record["outputs"]["student"]
    content = (project / "bundles" / "fitnet" / "bundle.json").read_bytes()
    assert tags["bundle"] == hashlib.sha256(content).hexdigest()
    assert (tags["score_val"], model.tags["accuracy_test"], model.tags["accuracy_test_mean"]) == (
        "0.83",
        "0.81",  # of the file
        "0.8",  # of the method
    )
    assert (tags["accuracy"], tags["gain"]) == ("81.00 [72.2, 87.5]", "+8.0 ± 2.5")
    assert (tags["formats"], tags["method"]) == ("onnx", "fitnet")
    text = str(version.description)
    assert "The file to deploy is right on 81.00 % of 100 test images" in text
    assert text.index("| `accuracy_test` | 0.81 |") < text.index("`accuracy_test_mean` 0.8")
    assert json.loads(tags["classes"]) == list(CLASSES)
    run = client().get_run(row)
    assert run.outputs is not None
    assert [f"models:/{model.model_id}" for model in run.outputs.model_outputs] == [version.source]


def test_the_files_numbers_are_at_the_logged_model(project: Path) -> None:
    promote(project)
    (version,) = versions()
    experiment = client().get_run(str(version.run_id)).info.experiment_id
    good = client().search_logged_models([experiment], "metrics.accuracy_test > 0.805")
    assert [f"models:/{model.model_id}" for model in good] == [version.source]
    assert client().search_logged_models([experiment], "metrics.accuracy_test > 0.815") == []
    metrics = {metric.key: metric for metric in good[0].metrics or []}
    assert metrics["latency_ms"].value == 0.5
    assert metrics["accuracy_test"].dataset_name == "digits"
    assert not {"accuracy_test_mean", "gain_points", "score_val"} & metrics.keys()  # those of the method
    row = client().get_metric_history(str(version.run_id), "accuracy_test")
    assert [point.value for point in row] == [0.81]


def test_a_version_has_an_input_example(project: Path) -> None:
    import mlflow
    from mlflow.models import Model

    promote(project)
    mlflow.set_tracking_uri(database.tracking_uri())
    folder = mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion")
    model = Model.load(folder)
    assert model.load_input_example(folder) is not None
    example = np.array(json.loads(str(model.get_serving_input(folder)))["inputs"], np.uint8)
    assert np.array_equal(example, open_bundle(project / "bundles" / "fitnet").golden().images[:1])
    answer = mlflow.pyfunc.load_model(folder).predict(example)
    assert answer["logits"].shape == (1, len(CLASSES))


def test_the_snippet_of_the_page_asks_the_champion(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    (block,) = [block for page, block in code("python") if page == "docs/tracking.md"]
    assert "(1, 8, 8, 3)" in block
    promote(project, model="folder-to-student")
    monkeypatch.chdir(project)  # where mlflow.db is
    before = mlflow.get_tracking_uri()
    try:
        exec(block.replace("(1, 8, 8, 3)", str(pictures(1).shape)), {})
    finally:
        mlflow.set_tracking_uri(before)
    printed = capsys.readouterr().out
    assert "logits" in printed
    assert "probabilities" in printed


def test_a_bundle_is_registered_once(project: Path) -> None:
    first = promote(project)
    again = promote(project)
    assert (again.version, again.alias, again.new) == (first.version, "champion", False)
    assert len(versions()) == 1
    assert aliases() == {"champion": "1"}
    other = promote(project, model="another name")  # registered there too, from the same files
    assert (other.version, other.new) == ("1", True)
    assert versions("another name")[0].source == versions()[0].source != ""


def test_a_better_bundle_becomes_champion_and_a_worse_one_challenger(project: Path) -> None:
    promote(project)
    improve(project, "kd", 0.9)
    done = promote(project)
    assert (done.run, done.version, done.alias) == ("kd", "2", "champion")
    assert aliases() == {"champion": "2"}
    fabricated.fabricate(project / "records")  # the first records again, as from DVC's cache
    write_bundle(project, "fitnet")
    done = promote(project)
    assert (done.run, done.version, done.alias, done.new) == ("fitnet", "1", "challenger", False)
    assert "83.00% on validation, not better than the 90.00% of version 2" in done.why
    improve(project, "fitnet", 0.9)  # equal is not better
    assert promote(project).alias == "challenger"
    assert aliases() == {"champion": "2", "challenger": "3"}


def test_numbers_on_other_data_are_not_compared(project: Path) -> None:
    promote(project)
    improve(project, "kd", 0.9)
    record = json.loads((project / "records" / "prepare.json").read_text())
    record["details"]["manifest"]["content"] = "c" * 64
    record["id"] = "another"
    (project / "records" / "prepare.json").write_text(json.dumps(record))
    log(project)
    done = promote(project)
    assert (done.run, done.alias) == ("kd", "challenger")
    assert "was measured on other data" in done.why


def test_a_challenger_that_becomes_champion_is_no_longer_challenger(project: Path) -> None:
    promote(project)
    improve(project, "kd", 0.9)
    kd = promote(project)
    client().set_registered_model_alias(NAME, "challenger", kd.version)
    client().set_registered_model_alias(NAME, "champion", "1")
    assert promote(project).alias == "champion"
    assert aliases() == {"champion": kd.version}


def test_an_attempt_that_was_killed_can_be_repeated(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    for step in ("log_model_artifacts", "create_model_version", "set_registered_model_alias"):
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, step, killed)
            with pytest.raises(KeyboardInterrupt):
                promote(project)
    done = promote(project)
    assert (done.version, done.alias) == ("1", "champion")
    with closing(sqlite3.connect(project / "mlflow.db")) as connection:
        query = "SELECT count(*) FROM logged_models WHERE lifecycle_stage = 'active'"
        assert connection.execute(query).fetchone() == (1,)


# --- gates ---


def damage(folder: Path) -> None:
    content = bytearray((folder / "student.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "student.onnx").write_bytes(content)


def rehash(root: Path, name: str) -> None:
    fabricated.edit(
        root / "records" / "export" / f"{name}.json", outputs={"bundle": sha256(root / "bundles" / name)}
    )


def test_a_bundle_that_changed_after_the_export_is_passed_over(project: Path) -> None:
    damage(project / "bundles" / "fitnet")
    done = promote(project)
    assert done.run == "kd"
    assert "is not the bundle that the record of stage export describes" in done.passed_over["fitnet"]


def test_a_bundle_that_fails_its_own_checks_is_passed_over(project: Path) -> None:
    damage(project / "bundles" / "fitnet")
    rehash(project, "fitnet")
    assert "student.onnx is not the file that was exported" in promote(project).passed_over["fitnet"]


def test_a_bundle_without_parity_is_passed_over(project: Path) -> None:
    parity = {"rel": 2e-5, "allowed": 1e-5}
    write_bundle(
        project,
        "fitnet",
        formats={**bundle_draft().facts["formats"], "onnx": {"file": "student.onnx", "parity": parity}},
    )
    log(project)
    assert (
        promote(project).passed_over["fitnet"]
        == "its onnx file differs from the trained network by 2.0e-05 (allowed: 1e-05)"
    )


def test_a_refused_int8_file_is_no_fault_and_does_not_count(project: Path) -> None:
    formats = {
        "onnx": {"file": "student.onnx", "parity": {"rel": 3e-7, "allowed": 1e-5}},
        "int8": {"file": "README.md", "accepted": False, "refused": ["too far off"]},
    }
    write_bundle(project, "fitnet", formats=formats, latency={"median_ms": {"onnx": 0.5, "int8": 0.1}})
    log(project)
    done = promote(project)
    assert done.run == "fitnet"
    assert versions()[0].tags["formats"] == "onnx"
    assert "takes 0.5 ms an image (onnx)" in refusal(project, Budgets(latency_ms=0.3))


def test_a_bundle_over_budget_is_passed_over(project: Path) -> None:
    write_bundle(project, "kd", latency={"median_ms": {"onnx": 0.2}})
    log(project)
    done = promote(project, budgets=Budgets(latency_ms=0.3, size_mb=1))
    assert done.run == "kd"
    assert done.passed_over == {"fitnet": "it takes 0.5 ms an image (onnx); export.max_latency_ms allows 0.3"}
    with pytest.raises(
        InputError, match=r"No run has a bundle that passes all gates.*kd: it has 0\.\d+ MB \(onnx\)"
    ):
        promote(project, budgets=Budgets(size_mb=0.0001))


def test_missing_rows_and_bundles_and_impossible_names_are_refused(project: Path) -> None:
    with pytest.raises(InputError, match="cannot be the name of a registered model"):
        promote(project, model="a/b")
    fabricated.fabricate(project / "records", again=["evaluate/fitnet"])
    write_bundle(project, "fitnet")
    with pytest.raises(InputError, match=r"no row of run fitnet yet\. `handdown track` logs it"):
        promote(project)
    shutil.rmtree(project / "bundles")
    with pytest.raises(InputError, match=r"fitnet: .*is not a bundle"):
        promote(project)


def test_versions_that_were_chosen_by_different_scores_are_not_compared(project: Path) -> None:
    promote(project)
    for path in (project / "records" / "distill").glob("*.json"):
        record = json.loads(path.read_text())
        metrics = record["metrics"] | {"val_macro_f1": 0.9 if path.stem == "kd" else 0.5}
        details = record["details"] | {"select": "macro_f1"}
        fabricated.edit(path, metrics=metrics, details=details, id=f"{path.stem}, again")
    log(project)
    done = promote(project)
    assert (done.run, done.alias) == ("kd", "challenger")
    assert "version 1, was chosen by accuracy, and this one by macro_f1" in done.why
    tags = versions()[0].tags if versions()[0].version == "2" else versions()[1].tags
    assert (tags["select"], tags["score_val"]) == ("macro_f1", "0.9")
