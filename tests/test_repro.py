"""The whole graph through real `dvc repro`, in a path with a space.

One project on a folder of pictures. The tests build on one another, so they are numbered and run in order.
"""

import json
import os
import re
import signal
import socket
import sqlite3
import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from scratch_project import ROOT, Project
from world import save_pictures

from pipeline.project.ahead import ALWAYS

RUN = {"teacher": "big", "student": "small", "seeds": [0, 1]}
PARAMS: dict[str, Any] = {
    "launcher": "python",
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.3},
    "augment": {"pad": 1, "flip": 0.5},
    "protocol": {"shots": 4},
    "train": {"epochs": 15, "batch_size": 16, "lr": 0.01},
    "teachers": {
        "big": {"net": "resnet8", "min_accuracy": 0, "train": {"epochs": 6, "batch_size": 32, "lr": 0.01}}
    },
    "knowledge": {},
    "students": {"small": {"net": "wrn_10_1"}, "smaller": {"net": "allcnn"}},
    "runs": {
        "alone": RUN | {"method": {"name": "ce"}},
        "hints": RUN | {"method": {"name": "fitnet", "temperature": 4.0}, "phases": {"hint": {"epochs": 1}}},
    },
    "analysis": {"hints": {"images": 2}},
    "export": {"parity_images": 20},
    "benchmark": {"batches": [1, 2], "seconds": 0.05},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    place = tmp_path_factory.mktemp("a place") / "the project"
    save_pictures(place.parent / "our pictures", 90, size=10)
    project = Project(place, PARAMS | {"data": PARAMS["data"] | {"root": str(place.parent / "our pictures")}})
    project.params()
    project.do("git", "init", "-q")
    project.do("git", "add", "-A")
    project.do("git", "commit", "-qm", "start")
    project.first = project.repro()  # type: ignore[attr-defined]
    return project


def test_01_everything_is_there(project: Project) -> None:
    place = project.place
    assert len(project.first) == 4 + 1 + 5 * 2 + 1 + 2  # type: ignore[attr-defined]
    table = (place / "reports/table.txt").read_text()
    for word in ("big", "alone", "hints", "models/export", "make ui"):
        assert word in table, table
    assert {file.name for file in (place / "records/analyse/hints").iterdir()} == {
        "grad_cam.png",
        "maps.png",
    }
    assert "linear probe before distillation" in (place / "reports/report.html").read_text()
    for run in ("alone", "hints"):
        bundle = {file.name for file in (place / "models/export" / run).iterdir()}
        facts = json.loads((place / "models/export" / run / "bundle.json").read_text())
        assert (
            bundle
            == {*facts["files"], "bundle.json"}
            > {"student.onnx", "student.ts", "student.safetensors", "golden.npz", "student.html"}
        )
        assert "This bundle is whole" in project.do(
            "python", "-m", "pipeline.deploy", "verify", f"models/export/{run}"
        )
        assert len(list((place / "models/students" / run).glob("seed-*/weights.safetensors"))) == 2
    assert sorted(project.rows()) == ["alone", "big", "hints"]


def test_02_numbers_agree_wherever_they_stand(project: Project) -> None:
    place = project.place
    for run in ("alone", "hints"):
        evaluated = json.loads((place / f"records/evaluate/{run}.json").read_text())
        metrics = json.loads((place / f"metrics/{run}.json").read_text())
        bundle = json.loads((place / f"models/export/{run}/bundle.json").read_text())
        assert metrics["accuracy_test_mean"] == pytest.approx(evaluated["metrics"]["accuracy"], abs=1e-5)
        assert bundle["metrics"]["accuracy"] == pytest.approx(metrics["accuracy_test_mean"], abs=1e-5)
        seeds = [scores["accuracy"] for scores in evaluated["details"]["seeds"].values()]
        assert metrics["accuracy_test_mean"] == pytest.approx(np.mean(seeds), abs=1e-5)
        assert f"{100 * metrics['accuracy_test_mean']:.2f}" in (place / "reports/table.txt").read_text()


def test_03_the_student_that_is_exported_scores_what_is_reported(project: Project) -> None:
    import onnxruntime

    place = project.place
    images, labels, order = (np.load(place / f"data/prepared/{n}.npy") for n in ("images", "labels", "order"))
    manifest = json.loads((place / "data/prepared/manifest.json").read_text())
    test = slice(len(labels) - manifest["splits"]["test"], None)
    for run in ("alone", "hints"):
        session = onnxruntime.InferenceSession(
            place / f"models/export/{run}/student.onnx", providers=["CPUExecutionProvider"]
        )
        logits = session.run(["logits"], {session.get_inputs()[0].name: images[order[test]]})[0]
        details = json.loads((place / f"records/evaluate/{run}.json").read_text())["details"]
        assert (logits.argmax(1) == labels[test]).mean() == details["seeds"][str(details["exported_seed"])][
            "accuracy"
        ]


def test_04_what_logging_costs_is_measured_without_a_trace(project: Project) -> None:
    rows = project.rows()
    printed = project.do(
        "env", f"PYTHONPATH={ROOT}", "python", "-m", "experiments.logging_cost", "--rounds", "1"
    )
    seconds = {
        what: float(taken)
        for what, taken in re.findall(r"^\| ([^|]+) \| ([\d.e-]+) \[", printed, re.MULTILINE)
    }
    assert len(seconds) == 7
    training, curves, shares, looking, fresh, again, row = seconds.values()
    assert 0 < curves + shares < training
    assert looking > 0
    assert row == pytest.approx((fresh - again) / 3, rel=0.05)  # of two runs and a teacher
    assert project.rows() == rows


def test_05_a_second_repro_does_nothing(project: Project) -> None:
    rows = project.rows()
    assert project.repro() == []
    assert project.rows() == rows
    assert json.loads(project.do("dvc", "status", "--json")) == {ALWAYS[0]: ["always changed"]}


def test_06_the_best_student_is_registered_once(project: Project) -> None:
    assert "is now version 1 of students" in project.do(
        "make", "-s", "-o", "setup", "promote", "MODEL=students"
    )
    assert "is already version 1 of students" in project.do(
        "make", "-s", "-o", "setup", "promote", "MODEL=students"
    )


def test_07_a_lost_tracking_database_is_rebuilt(project: Project) -> None:
    for file in project.place.glob("mlflow.db*"):
        file.unlink()
    assert project.repro("-f", "-s", "track") == ["track"]
    assert sorted(project.rows()) == ["alone", "big", "hints"]


def test_08_dvc_has_something_to_show(project: Project) -> None:
    printed = project.do("dvc", "metrics", "show")
    head, *rows = [line for line in printed.splitlines() if line.startswith(("Path", "metrics/"))]
    assert [row.split()[0] for row in rows] == ["metrics/alone.json", "metrics/hints.json"]
    assert "accuracy_test_mean" in head
    assert len(head.split()) <= 1 + 10
    assert "hints" in project.do("dvc", "exp", "show", "--md")
    project.do("dvc", "plots", "show")
    page = (project.place / "dvc_plots/index.html").read_text()
    assert page.count("vegaEmbed('#") == 2 + len(
        project.settings["runs"]
    )  # curves of accuracy and loss, a confusion matrix a run
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", page)  # it draws without a network


def test_09_an_experiment_runs_and_is_listed(project: Project) -> None:
    project.do("git", "add", "-A")
    project.do("git", "commit", "-qm", "results")
    project.do("dvc", "exp", "run", "--temp", "-n", "cooler", "-S", "runs.hints.method.temperature=2.0")
    assert "cooler" in project.do("dvc", "exp", "show", "--md")
    assert sorted(project.rows()) == ["alone", "big", "hints", "hints"]  # kept in the project's own store


def test_10_a_changed_run_runs_alone_and_what_was_tried_is_not_run_again(project: Project) -> None:
    def change(settings: Any) -> None:
        settings["runs"]["hints"]["method"]["temperature"] = 2.0
        settings["knowledge"]["atoms"] = {
            "teacher": "big",
            "method": {"name": "srm"},
            "phases": {"dictionary": {"epochs": 2}},
        }
        settings["runs"]["more"] = RUN | {
            "teacher": "atoms",
            "method": {"name": "srm"},
            "phases": {"match": {"epochs": 2}},
        }

    project.params(change)
    ran = project.repro()
    assert sorted(re.findall(r"Stage '(\w+@hints)' is cached", project.printed)) == sorted(
        f"{stage}@hints" for stage in ("analyse", "benchmark", "distill", "evaluate", "export", "pretrain")
    )  # from the experiment
    expected = [f"{stage}@more" for stage in ("pretrain", "distill", "evaluate", "export", "benchmark")]
    assert sorted(ran) == sorted(["check", "trial", "knowledge@atoms", *expected, "report", "track"])
    curves = json.loads((project.place / "records/pretrain/more.json").read_text())["curves"]
    assert sorted(curves) == ["match/seed-0", "match/seed-1"]  # the dictionary was learned once, before

    def another_student(settings: Any) -> None:
        change(settings)
        settings["runs"]["more"]["student"] = "smaller"

    project.params(another_student)
    would_run = re.findall(r"Running stage '([^']+)'", project.do("dvc", "repro", "--dry"))
    assert "pretrain@more" in would_run
    assert "knowledge@atoms" not in would_run
    assert sorted(project.rows()) == ["alone", "big", "hints", "hints", "more"]
    assert "accuracy" in project.do("dvc", "metrics", "diff", "--all")
    project.do("dvc", "plots", "diff", "HEAD")

    project.params()
    assert set(project.repro()) <= {"check", "trial", "report", "track"}  # the rest comes out of DVC's cache
    assert sorted(project.rows()) == ["alone", "big", "hints", "hints", "more"]


def test_11_a_changed_line_of_code_runs_what_needs_it_alone(project: Project) -> None:
    file = project.place / "pipeline/methods/fitnet.py"
    before = file.read_text()
    file.write_text(before + "\n# a line more\n")
    assert project.repro("distill") == ["check", "trial", "pretrain@hints", "distill@hints"]
    before_it, _, _ = project.printed.partition("Running stage 'pretrain@hints'")
    assert "Code has changed since these stages ran" in before_it
    said = re.search(r"will run again with handdown 0\.1\.0: ([^.]+)\.", before_it)
    assert said is not None
    assert sorted(said[1].split(", ")) == ["analyse@hints", "distill@hints", "pretrain@hints", "trial"]
    file.write_text(before)
    assert project.repro("distill") == []


def test_12_a_weight_is_suggested_for_a_term(project: Project) -> None:
    project.params(lambda settings: settings["runs"].update(at=RUN | {"method": {"name": "at"}}))
    printed = project.do("make", "-s", "-o", "setup", "balance", "RUN=at")
    assert re.search(
        r"with method.term_weight 1000, its terms have [\d.]+% of the student's gradient", printed
    )
    assert re.search(r"With [\d.e+]+ they would have half of it", printed)


# what else can be wrong: test_params.py, data/
BAD = {
    "key": (lambda p: p["runs"]["hints"]["method"].update(temprature=2.0), "Did you mean 'temperature'"),
    "method": (
        lambda p: p["runs"]["hints"]["method"].update(name="fitnets"),
        "runs.hints.method.name: there is no 'fitnets'. Did you mean 'fitnet'",
    ),
    "folder": (lambda p: p["data"].update(root="nowhere"), "data.root: there is no folder 'nowhere'"),
}


@pytest.mark.parametrize("what", BAD)
def test_13_bad_params_are_said_before_anything_runs(what: str, project: Project) -> None:
    change, message = BAD[what]
    project.params(change)
    assert project.repro(fails=True) == ["check"]
    assert message in " ".join(project.printed.split())
    assert "Traceback" not in project.printed


def test_14_after_bad_params_good_ones_go_on(project: Project) -> None:
    assert not list(project.place.rglob("*.partial"))
    project.params()
    project.do("dvc", "checkout")
    assert set(project.repro()) <= {"check", "trial", "report", "track"}


def test_15_make_run_ends_with_the_table_and_make_ui_serves_the_runs(project: Project) -> None:
    assert (project.place / "reports/table.txt").read_text() in project.do("make", "-o", "setup", "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ui = project.start("make", "-o", "setup", "ui", f"PORT={port}")
    try:
        assert ui.stdout is not None
        link = next(line for line in ui.stdout if "#/experiments/" in line)  # when the server answers
        assert f"http://127.0.0.1:{port}/#/experiments/" in link
        search = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search"
        body = json.dumps({"experiment_ids": re.findall(r"experiments/(\d+)", link)}).encode()
        found = answer(Request(search, body, {"Content-Type": "application/json"}), within=90)
        names = [
            run["info"]["run_name"]
            for run in json.loads(found)["runs"]
            if "mlflow.parentRunId" not in {tag["key"] for tag in run["data"]["tags"]}
        ]
        assert sorted(names) == sorted(project.rows())
        with pytest.raises(HTTPError, match="403") as refused:
            urlopen(Request(f"http://127.0.0.1:{port}/", headers={"Host": "10.evil.com"}), timeout=30)
        refused.value.close()
    finally:
        os.killpg(ui.pid, signal.SIGINT)
        ui.communicate(timeout=60)


@pytest.mark.slow
def test_16_what_trains_is_shown_and_its_row_takes_it_in(project: Project) -> None:
    following = project.start("make", "-o", "setup", "live")
    try:
        assert following.stdout is not None
        while "viewStateShareKey=training" not in following.stdout.readline():
            pass
        while not (project.place / ".work/live/follower.lock").exists():
            time.sleep(0.1)
        project.repro("-f", "-s", "distill@hints")
        time.sleep(5.0)
        project.repro()
    finally:
        os.killpg(following.pid, signal.SIGINT)
        printed, _ = following.communicate(timeout=60)
    assert "distill hints" in printed
    with sqlite3.connect(project.place / "mlflow.db") as database:
        found = database.execute(
            "select r.name, r.lifecycle_stage from runs r join tags t using (run_uuid) "
            "where t.key = 'kind' and t.value = 'stage' order by r.name"
        ).fetchall()
        row = json.loads((project.place / "reports/mlflow.json").read_text())["runs"]["hints"]
        below = database.execute(
            "select r.name from runs r join tags t using (run_uuid) where r.lifecycle_stage = 'active' "
            "and t.key = 'mlflow.parentRunId' and t.value = ? order by r.name",
            [row],
        ).fetchall()
    assert found == [(f"distill hints seed {seed}", "deleted") for seed in (0, 1)]
    assert below == [(f"hints seed {seed}",) for seed in (0, 1)]  # which has their curves


def answer(request: Request, *, within: float) -> bytes:
    deadline = time.monotonic() + within
    while True:
        try:
            with urlopen(request, timeout=30) as response:
                content: bytes = response.read()
                return content
        except URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
