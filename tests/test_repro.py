"""The whole graph through real `dvc repro`, on a folder of pictures, in a path with a space: one project, whose tests build on one another."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import yaml
from PIL import Image
from world import pictures

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CODE = ("pipeline", "stages", "dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore", ".dvc/plots", "data/raw")
RUN = {"teacher": "big", "student": "small", "seeds": [0, 1]}
PARAMS = {
    "launcher": "python",
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.3},
    "augment": {"pad": 1, "flip": 0.5},
    "protocol": {"shots": 4},
    "train": {"epochs": 15, "batch_size": 16, "lr": 0.01},
    "teachers": {"big": {"net": "resnet8", "train": {"epochs": 6, "batch_size": 32, "lr": 0.01}}},
    "students": {"small": {"net": "wrn_10_1"}},
    "runs": {
        "alone": RUN | {"method": {"name": "ce"}},
        "hints": RUN | {"method": {"name": "fitnet", "temperature": 4.0}, "phases": {"hint": {"epochs": 1}}},
    },
    "export": {"parity_images": 20},
    "benchmark": {"batches": [1, 2], "seconds": 0.05},
}


def copy_of_the_project(place: Path) -> Path:
    for name in CODE:
        source, target = ROOT / name, place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return place


class Project:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.settings: dict = json.loads(json.dumps(PARAMS))
        self.settings["data"]["root"] = str(place.parent / "our pictures")
        home = place.parent / "home"
        home.mkdir()
        kept = {key: os.environ[key] for key in ("LANG", "TMPDIR") if key in os.environ}
        person = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.env = kept | person | {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1"}

    def do(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(
            command, cwd=self.place, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout[-4000:]
        return done.stdout

    def repro(self, *arguments: str, fails: bool = False) -> list[str]:
        """The stages that ran."""
        self.said = self.do("dvc", "repro", *arguments, fails=fails)
        return re.findall(r"Running stage '([^']+)'", self.said)

    def params(self, change: Callable[[Any], Any] = lambda settings: None) -> None:
        """Write params.yaml: the settings of the first run, changed."""
        settings = json.loads(json.dumps(self.settings))
        change(settings)
        (self.place / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))

    def rows(self) -> list[str]:
        with sqlite3.connect(self.place / "mlflow.db") as database:
            return [name for (name,) in database.execute("select name from runs where status = 'FINISHED' and lifecycle_stage = 'active'")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    place = tmp_path_factory.mktemp("a place") / "the project"
    images, labels = pictures(90, size=10)
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = place.parent / "our pictures" / f"stripes {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{n}.png")
    project = Project(copy_of_the_project(place))
    project.params()
    project.do("git", "init", "-q")
    project.do("git", "add", "-A")
    project.do("git", "commit", "-qm", "start")
    project.first = project.repro()  # type: ignore[attr-defined]
    return project


def test_everything_is_there(project: Project) -> None:
    place = project.place
    assert len(project.first) == 2 + 1 + 5 * 2 + 2  # type: ignore[attr-defined]
    table = (place / "reports/table.txt").read_text()
    for word in ("big", "alone", "hints", "models/export", "make ui"):
        assert word in table, table
    for run in ("alone", "hints"):
        bundle = {file.name for file in (place / "models/export" / run).iterdir()}
        assert bundle == {"student.onnx", "student.ts", "student.safetensors", "bundle.json"}
        assert len(list((place / "models/students" / run).glob("seed-*/weights.safetensors"))) == 2
    assert sorted(project.rows()) == ["alone", "big", "hints"]


def test_numbers_agree_wherever_they_stand(project: Project) -> None:
    place = project.place
    for run in ("alone", "hints"):
        evaluated = json.loads((place / f"records/evaluate/{run}.json").read_text())
        metrics = json.loads((place / f"metrics/evaluate/{run}.json").read_text())
        bundle = json.loads((place / f"models/export/{run}/bundle.json").read_text())
        assert metrics["accuracy"] == pytest.approx(evaluated["metrics"]["accuracy"], abs=1e-5)
        assert bundle["facts"]["test"] == metrics
        seeds = [scores["accuracy"] for scores in evaluated["details"]["seeds"].values()]
        assert metrics["accuracy"] == pytest.approx(np.mean(seeds), abs=1e-5)
        assert f"{100 * metrics['accuracy']:.2f}" in (place / "reports/table.txt").read_text()


def test_the_student_that_is_exported_scores_what_is_reported(project: Project) -> None:
    import onnxruntime

    place = project.place
    images, labels = (np.load(place / f"data/prepared/{name}.npy") for name in ("images", "labels"))
    manifest = json.loads((place / "data/prepared/manifest.json").read_text())
    test = slice(len(labels) - manifest["splits"]["test"], None)
    for run in ("alone", "hints"):
        session = onnxruntime.InferenceSession(place / f"models/export/{run}/student.onnx", providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], {session.get_inputs()[0].name: images[test]})[0]
        details = json.loads((place / f"records/evaluate/{run}.json").read_text())["details"]
        assert (logits.argmax(1) == labels[test]).mean() == details["seeds"][str(details["exported_seed"])]["accuracy"]


def test_a_second_repro_does_nothing(project: Project) -> None:
    rows = project.rows()
    assert project.repro() == []
    assert "up to date" in project.said
    assert project.rows() == rows
    assert "up to date" in project.do("dvc", "status")


def test_a_lost_tracking_database_is_rebuilt(project: Project) -> None:
    for file in project.place.glob("mlflow.db*"):
        file.unlink()
    assert project.repro("-f", "-s", "track") == ["track"]
    assert sorted(project.rows()) == ["alone", "big", "hints"]


def test_dvc_has_something_to_show(project: Project) -> None:
    metrics = project.do("dvc", "metrics", "show")
    assert "metrics/evaluate/hints.json" in metrics
    assert "accuracy" in metrics
    assert "hints" in project.do("dvc", "exp", "show", "--md")
    project.do("dvc", "plots", "show")
    assert (project.place / "dvc_plots/index.html").stat().st_size > 1000


def test_a_changed_run_runs_alone_and_going_back_runs_nothing(project: Project) -> None:
    project.do("git", "add", "-A")
    project.do("git", "commit", "-qm", "results")

    def change(settings: Any) -> None:
        settings["runs"]["hints"]["method"]["temperature"] = 2.0
        settings["runs"]["more"] = RUN | {"method": {"name": "kd"}}

    project.params(change)
    ran = project.repro()
    expected = [f"{stage}@{run}" for run in ("hints", "more") for stage in ("pretrain", "distill", "evaluate", "export", "benchmark")]
    assert sorted(ran) == sorted(["check", *expected, "report", "track"])
    assert sorted(project.rows()) == ["alone", "big", "hints", "hints", "more"]
    assert "accuracy" in project.do("dvc", "metrics", "diff", "--all")
    project.do("dvc", "plots", "diff", "HEAD")

    project.params()
    assert set(project.repro()) <= {"check", "report", "track"}  # the rest comes out of DVC's cache
    assert sorted(project.rows()) == ["alone", "big", "hints", "hints", "more"]


def test_an_experiment_runs_and_is_listed(project: Project) -> None:
    project.params()
    project.do("dvc", "exp", "run", "--temp", "-n", "warmer", "-S", "runs.hints.method.temperature=8")
    assert "warmer" in project.do("dvc", "exp", "show", "--md")
    assert sorted(project.rows()).count("hints") == 3  # kept in the project's own store


# what else can be wrong: test_config.py, data/
BAD = {
    "key": (lambda p: p["runs"]["hints"]["method"].update(temprature=2.0), "Did you mean 'temperature'"),
    "method": (
        lambda p: p["runs"]["hints"]["method"].update(name="fitnets"),
        "runs.hints.method.name: there is no 'fitnets'. Did you mean 'fitnet'",
    ),
    "folder": (lambda p: p["data"].update(root="nowhere"), "data.root: there is no folder 'nowhere'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_params_are_said_before_anything_runs(what: str, project: Project) -> None:
    change, said = BAD[what]
    project.params(change)
    assert project.repro(fails=True) == ["check"]
    assert said in " ".join(project.said.split())
    assert "Traceback" not in project.said


def test_after_bad_params_good_ones_go_on(project: Project) -> None:
    assert not list(project.place.rglob("*.partial"))
    project.params()
    project.do("dvc", "checkout")
    assert set(project.repro()) <= {"check", "report", "track"}


def test_make_run_ends_with_the_table_and_make_ui_serves_the_runs(project: Project) -> None:
    shutil.copy(ROOT / "Makefile", project.place)
    (project.place / ".venv").symlink_to(BIN.parent)
    assert (project.place / "reports/table.txt").read_text() in project.do("make", "-o", "setup", "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["make", "-o", "setup", "ui", f"PORT={port}"]
    ui = subprocess.Popen(command, cwd=project.place, env=project.env, stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        assert ui.stdout is not None
        link = ui.stdout.readline()
        assert f"http://127.0.0.1:{port}/#/experiments/" in link
        search = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search"
        body = json.dumps({"experiment_ids": re.findall(r"experiments/(\d+)", link)}).encode()
        found = answer(Request(search, body, {"Content-Type": "application/json"}), within=90)
        names = sorted(run["info"]["run_name"] for run in json.loads(found)["runs"])
        assert names == sorted(project.rows())
        with pytest.raises(HTTPError, match="403") as refused:
            urlopen(Request(f"http://127.0.0.1:{port}/", headers={"Host": "10.evil.com"}), timeout=30)
        refused.value.close()
    finally:
        os.killpg(ui.pid, signal.SIGINT)
        ui.communicate(timeout=60)


def answer(request: Request, *, within: float) -> bytes:
    deadline = time.monotonic() + within
    while True:
        try:
            with urlopen(request, timeout=30) as response:
                return response.read()
        except URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
