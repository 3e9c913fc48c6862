"""The plan: what it says, what it writes for the stages, and how near it comes."""

import json
import os
import re
import time
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scratch_project import ROOT, Project

from pipeline.params import Params, load_params
from pipeline.project import estimate
from pipeline.project import plan as planning
from pipeline.project.ahead import ALWAYS, Stage
from pipeline.project.estimate import Estimate, Pictures, estimates, look_at_pictures, with_answers
from pipeline.project.plan import (
    groups,
    keep_plan,
    lines,
    memory_at_once,
    plan,
    wall_seconds,
    write_plan,
)
from pipeline.records.place import PLAN
from pipeline.runs.measure import Cost, PhaseCost
from pipeline.runs.measure_answers import Made, Needed
from pipeline.runs.measure_answers import Part as PartOfAnswers
from pipeline.settings import InputError

STAGES = [
    Stage("check", "up to date"),
    Stage("distill@a", "runs"),
    Stage("distill@b", "runs"),
    Stage("distill@c", "up to date"),
    Stage("export@a", "cached"),
    Stage("report", "runs"),
]
COST = Cost(
    seeds=3,
    set_up=2.0,
    build=0.5,
    phases=[PhaseCost("distill", steps=100, step=0.1, points=5, validation=1.0)],
    parameters={"teacher": 4_000_000, "student": 1_000_000, "method": 500_000},
    answer={"teacher": 0.04, "student": 0.01},
    images=50,
    memory_mb=700.0,
)
PICTURES = Pictures(Path("data"), {"train": 700, "val": 100, "test": 200}, 0, 30.0, 4_000_000, "everywhere")


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return tmp_path


def estimated(params: Params, name: str, cost: Cost | None = COST) -> Estimate:
    return estimate._estimate(params, Stage(name, "runs"), PICTURES, 2.0, cost)


def test_a_training_is_start_and_steps_and_its_students_are_kept_twice(params: Params) -> None:
    found = estimated(params, "distill@kd")
    assert found.seconds == pytest.approx(1.5 * 2.0 + 2.0 + 2 * 0.5 + 3 * (100 * 0.1 + 5 * 1.0))
    assert found.disk_mb == pytest.approx(2 * 3 * 4 + estimate.PLAIN_MB)
    assert found.memory_mb == 700.0
    assert found.how == "measured: distill 100 steps of 100 ms, 5 validations of 1.0 s, 3 times"
    others = {name: estimated(params, name).disk_mb for name in ("teacher@big", "pretrain@kd", "knowledge@k")}
    for name, megabytes in (("teacher@big", 2 * 16), ("pretrain@kd", 2 * 3 * 6), ("knowledge@k", 2 * 18)):
        assert others[name] == pytest.approx(megabytes + estimate.PLAIN_MB)


def reading(rows: int, *names: str, views: int = 4, times: int = 1, there: int = 0) -> Cost:
    """A phase that reads such parts, of 100 bytes each, of the first rows."""
    parts = {name: PartOfAnswers(100, np.full(50, there), times) for name in names}
    needed = Needed(parts, views, np.arange(rows), seconds=0.5)
    return Cost(phases=[PhaseCost("distill", 100, 0.1, 0, 0.0, needed)])


def test_the_first_run_that_reads_answers_pays_for_them() -> None:
    made, zero = Made(), Estimate(10.0, 1.0, how="measured")

    def spent(*args: Any, **options: Any) -> tuple[float, float]:
        found = with_answers(zero, reading(*args, **options), made)
        return round(found.seconds - 10, 6), round(1e6 * (found.disk_mb - 1))

    assert spent(20, "logits") == (20 * 4 * 0.5, 20 * 4 * 100)
    assert spent(20, "logits") == (0, 0)
    assert with_answers(zero, reading(20, "logits"), made).how == "measured; teacher: answers are there"
    assert spent(30, "logits") == (10 * 4 * 0.5, 10 * 4 * 100)  # the images that are new
    assert spent(30, "logits", views=6) == (30 * 2 * 0.5, 30 * 2 * 100)  # the views that are new
    assert spent(30, "logits", "map", views=2) == (30 * 2 * 0.5, 30 * 2 * 100)  # one part more
    assert spent(10, "a", "b", views=1) == (10 * 0.5, 2 * 10 * 100)  # both parts of one answer
    assert spent(10, "codes", times=3) == (3 * 40 * 0.5, 3 * 40 * 100)  # of the dictionaries of three seeds
    assert spent(10, "old", views=4, there=3) == (10 * 0.5, 10 * 100)  # some are on the disk
    assert with_answers(zero, COST, made) == zero
    assert (
        with_answers(zero, reading(1, "new", views=1), made).how
        == "measured; teacher: 1 answers in 500 ms each"
    )


def test_it_is_said_that_a_teacher_runs_live(params: Params) -> None:
    phase = PhaseCost("distill", steps=100, step=0.1, points=0, validation=0.0, live="too large")
    found = estimated(params, "distill@kd", Cost(phases=[phase], parameters=COST.parameters))
    assert found.how == "measured: distill 100 steps of 100 ms, the teacher live"


AT_ONCE = [
    Stage("prepare", "runs"),
    Stage("teacher@t", "runs", ("prepare",)),
    Stage("distill@a", "runs", ("teacher@t",)),
    Stage("distill@b", "runs", ("teacher@t",)),
    Stage("benchmark@a", "runs", ("distill@a",)),
    Stage("report", "runs", ("benchmark@a",)),
]


def test_with_jobs_what_runs_alone_is_added_to_the_longest_way() -> None:
    seconds = {"prepare": 5.0, "teacher@t": 10.0, "distill@a": 30.0, "distill@b": 20.0, "report": 1.0}
    seconds |= {"benchmark@a": 7.0}
    assert wall_seconds(AT_ONCE, seconds, 2, lambda n: 1.0) == 5 + 10 + 30 + 7 + 1
    assert wall_seconds(AT_ONCE, seconds, 1, lambda n: 1.0) == sum(seconds.values())
    assert wall_seconds(AT_ONCE, seconds, 2, float) == 5 + 10 + 2 * 20 + 10 + 7 + 1
    found = {
        name: Estimate(1.0, 1.0, memory) for name, memory in (("distill@a", 700.0), ("distill@b", 300.0))
    }
    assert memory_at_once(AT_ONCE, found, 2) == 1000.0
    assert memory_at_once(AT_ONCE, found, 1) == 700.0


def test_a_plan_with_jobs_measures_with_their_share_of_the_cores_and_says_so(
    in_a_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def instead(*args: Any, threads: int | None, **options: Any) -> tuple[float, dict[str, Estimate]]:
        asked.append(threads)
        return 1.0, {stage.name: Estimate(60.0, 1.0, 500.0) for stage in AT_ONCE}

    asked: list[int | None] = []
    monkeypatch.setattr(planning, "stages_ahead", lambda: AT_ONCE)
    monkeypatch.setattr(planning, "estimates", instead)
    monkeypatch.setattr(planning, "look_at_pictures", lambda *args, **options: PICTURES)
    monkeypatch.setattr(planning, "cores", lambda: 4)
    monkeypatch.setattr(planning, "devices", list)
    monkeypatch.setattr(planning, "free_slots", lambda jobs: [{"OMP_NUM_THREADS": "2"}] * jobs)
    plan(jobs=2)
    printed = capsys.readouterr().out
    assert "Begun now, 2 runs at a time, it would end at about" in printed
    assert "(about 5 min from now).\nThe stages add up to about 6 min." in printed
    assert "Runs at the same time need up to 1.0 GB of memory." in printed
    assert "Each was measured alone with 2 of 4 cores, as it will have. That they" in printed
    monkeypatch.setattr(planning, "devices", lambda: ["0"])
    plan(jobs=2)
    printed = capsys.readouterr().out
    assert "(about 6 min from now)" in printed  # on one GPU nothing is won
    assert "As they share cores or GPUs, a run is counted up to 2 times." in printed
    assert json.loads(PLAN.read_text())["jobs"] == 2
    plan()
    assert "at a time" not in capsys.readouterr().out
    assert asked == [2, 2, None]
    with pytest.raises(InputError, match="--jobs: 0 runs at a time cannot be"):
        plan(jobs=0)


def test_what_reads_images_takes_longer_with_more_of_them(params: Params) -> None:
    spent = estimated(params, "evaluate@kd").seconds - estimated(params, "evaluate@kd", None).seconds
    assert spent == pytest.approx(200 * (3 * 0.01 + 0.04))
    spent = estimated(params, "analyse@kd").seconds - estimated(params, "analyse@kd", None).seconds
    assert spent == pytest.approx(2 * 3 * ((50 + 100 + 100) * 0.01 + 100 * 0.04))
    assert estimated(params, "export@kd").seconds > estimated(params, "export@kd", None).seconds + 200 * 0.01
    assert estimated(params, "export@kd").disk_mb > 3 * 4 * 3
    prepare = estimated(params, "prepare", None)
    assert prepare.seconds > 30.0
    assert prepare.disk_mb == pytest.approx(2 * 4.0 + estimate.PLAIN_MB)
    longer = params.model_copy(update={"benchmark": params.benchmark.model_copy(update={"seconds": 2.0})})
    assert estimated(longer, "benchmark@kd", None).seconds > 7 * 2 * 2.0


def test_every_stage_has_an_estimate(params: Params) -> None:
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(graph) == {*estimate.STARTS, *estimate.TRAINING}


def test_the_table_adds_up() -> None:
    found = {
        "distill@a": Estimate(100.0, 30.0, 700.0, how="measured"),
        "distill@b": Estimate(200.0, 30.0, 900.0, how="measured too"),
        "report": Estimate(4.0, 1.0),
    }
    table = [re.split(r"  +", line) for line in lines(groups(STAGES, found))]
    assert table == [
        ["stage", "runs", "time", "memory", "disk", "from"],
        ["check", "1 up to date"],
        ["distill", "2, 1 up to date", "5 min", "900 MB", "60 MB", "measured too"],
        ["export", "1 cached"],
        ["report", "1", "4 s", "1 MB", "assumed"],
        ["all", "5 min", "900 MB", "61 MB"],
    ]
    on_gpu = lines(groups(STAGES, found | {"report": Estimate(4.0, 1.0, 100.0, 2500.0)}))
    assert "2.5 GB" in on_gpu[-1]


def test_the_plan_is_written_for_the_stages_and_run_keeps_what_was_measured(in_a_project: Path) -> None:
    write_plan(STAGES, Path("records"), 3.0, {"distill@a": 50.0})
    written = json.loads(PLAN.read_text())
    assert written["stages"][1] == {"name": "distill@a", "runs": True, "seconds": 50.0}
    assert written["stages"][4] == {"name": "export@a", "runs": False, "seconds": None}
    keep_plan([Stage("distill@a", "up to date"), Stage("report", "runs")])
    kept = json.loads(PLAN.read_text())
    assert (kept["start"], kept["stages"][0]) == (3.0, {"name": "distill@a", "runs": False, "seconds": 50.0})
    (in_a_project / "params.yaml").write_text("data: {}\n")
    keep_plan([Stage("distill@a", "runs")])
    assert json.loads(PLAN.read_text())["stages"] == [{"name": "distill@a", "runs": True, "seconds": None}]
    PLAN.write_text("{")
    keep_plan(STAGES)
    assert len(json.loads(PLAN.read_text())["stages"]) == 6


def test_nothing_is_measured_if_nothing_runs(
    in_a_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "stages_ahead", lambda: [Stage("check", "up to date")])
    plan()
    assert "nothing would run" in capsys.readouterr().out
    assert not PLAN.exists()


def test_a_plan_measures_in_processes_and_says_when_it_ends(
    in_a_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before there is a store, with one teacher."""
    ahead = [Stage("check", "up to date"), Stage("prepare", "runs"), Stage("teacher@big", "runs")]
    monkeypatch.setattr(planning, "stages_ahead", lambda: ahead)
    plan()
    printed = capsys.readouterr()
    assert re.search(r"^From 1,797 pictures, of which 128 were decoded", printed.out)
    assert re.search(
        r"^teacher +1 +\d+ (s|min) +\d+ MB +2 MB +measured: distill 240 steps of", printed.out, re.MULTILINE
    )
    assert re.search(
        r"Begun now, it would end at about \d\d:\d\d on .* \(about \d+ (s|min) from now\)", printed.out
    )
    assert "epoch" not in printed.out + printed.err  # of the few steps nothing is printed
    written = {each["name"]: each for each in json.loads(PLAN.read_text())["stages"]}
    assert written["teacher@big"]["seconds"] > 0


def test_a_process_that_is_killed_is_explained() -> None:
    too_little = pytest.raises(InputError, match=r"was killed: probably there is too little memory")
    with too_little, estimate._processes() as process:
        process(partial(os._exit, 9))


def test_a_store_that_will_be_used_is_looked_at(params: Params, tmp_path: Path) -> None:
    from pipeline.data.prepare import prepare

    prepare(params.data, tmp_path / "store")
    found = look_at_pictures(params, tmp_path / "store", is_there=True)
    assert (found.store, found.decode, found.count) == (tmp_path / "store", 0.0, 1797)
    assert look_at_pictures(params, tmp_path / "store", is_there=False).decode > 0


@pytest.mark.slow
def test_the_digits_take_what_was_planned(tmp_path: Path) -> None:
    """The trainings and the whole within a factor of two; the estimates of all else within three.

    A machine that gets busy between the two makes this fail.
    """
    settings: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    project = Project(tmp_path / "project", settings)
    project.params()
    project.do("git", "init", "-q")
    begun = time.monotonic()
    printed = project.do("python", "-m", "pipeline.project", "plan")
    assert "stage " in printed
    assert time.monotonic() - begun < 90
    planned = {
        each["name"]: each["seconds"] for each in json.loads((project.place / PLAN).read_text())["stages"]
    }
    running = project.start("python", "-u", "-m", "pipeline.project", "run")
    assert running.stdout is not None
    moments, log = [], []
    for line in running.stdout:
        log.append(line)
        if found := re.match(r"Running stage '([^']+)'|(git add|To track)", line):
            moments.append((time.monotonic(), found[1]))
    assert running.wait() == 0
    took: dict[str, float] = defaultdict(float)
    expected: dict[str, float] = defaultdict(float)
    for (start, name), (end, _) in pairwise(moments):
        if name in ALWAYS:
            continue
        took[name.partition("@")[0]] += end - start
        expected[name.partition("@")[0]] += planned[name]
    table = {kind: (round(expected[kind], 1), round(seconds, 1)) for kind, seconds in took.items()}
    for kind, (guess, seconds) in table.items():
        limit = 2.0 if kind in estimate.TRAINING else 3.0
        assert 1 / limit < guess / seconds < limit, (kind, table)
    assert 0.5 < sum(expected.values()) / sum(took.values()) < 2.0, table
    assert any(re.match(r"\[stage 7 of 23, run 2 of 3, about .* left\]", line) for line in log)
    report = (project.place / "reports/report.md").read_text()
    assert "| planned |" in report


def test_estimates_of_stages_that_do_not_run_are_not_made(params: Params) -> None:
    stages = [Stage("teacher@big", "up to date")]
    assert estimates(params, stages, PICTURES, teachers=Path("teachers"))[1] == {}


def test_measuring_processes_have_as_many_threads_as_asked() -> None:
    with estimate._processes(2) as process:
        assert process(_threads).seeds == 2


def _threads() -> Cost:
    return Cost(seeds=torch.get_num_threads())


@pytest.mark.slow
def test_stored_answers_take_what_was_planned(tmp_path: Path) -> None:
    """Two runs of a teacher that is slower than their student: within a factor of two, in time and disk.

    A machine that gets busy between the two makes this fail.
    """
    run = {"teacher": "big", "student": "small", "seeds": [0]}
    settings: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["teachers"] = {
        "big": {"net": "resnet56", "min_accuracy": 0, "train": {"epochs": 1, "batch_size": 64}}
    }
    settings["train"] = {"epochs": 8, "batch_size": 64, "points": 2}
    settings["augment"] |= {"views": 4}
    settings |= {"analysis": {}, "protocol": {"shots": 0}}
    settings["runs"] = {name: run | {"method": {"name": name}} for name in ("kd", "at")}
    settings["runs"]["again"] = run | {"method": {"name": "kd", "temperature": 2.0}}
    project = Project(tmp_path / "project", settings)
    project.params()
    project.do("git", "init", "-q")
    printed = project.do("python", "-m", "pipeline.project", "plan")
    written = json.loads((project.place / PLAN).read_text())
    seconds = {each["name"]: each["seconds"] for each in written["stages"]}
    planned = {name: seconds[f"distill@{name}"] - written["start"] for name in ("kd", "at")}
    project.do("dvc", "repro", "distill@kd", "distill@at")
    for name in ("kd", "at"):
        record = json.loads((project.place / f"records/distill/{name}.json").read_text())
        facts = record["details"]["answers"]["distill/seed-0"]
        assert facts["seconds"] > 0.1 * record["seconds"], "this test needs a slower teacher"
        assert 0.5 < planned[name] / record["seconds"] < 2.0, (name, planned, record["seconds"])
    megabytes = re.search(r"^distill .* (\d+) MB +measured", printed, re.MULTILINE)
    files = [file for file in (project.place / ".work/answers").rglob("*") if file.is_file()]
    files += 2 * [*(project.place / "models/students").rglob("*.safetensors")]
    assert megabytes is not None, printed
    assert 0.5 < int(megabytes[1]) / sum(file.stat().st_blocks * 512e-6 for file in files) < 2.0
    printed = project.do("python", "-m", "pipeline.project", "plan")  # as after Ctrl-C
    assert re.search(r"^distill +1, 2 up to date .*; teacher: answers are there$", printed, re.M), printed
