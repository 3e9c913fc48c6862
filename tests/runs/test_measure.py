"""What a training will cost, measured on a small one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import SmallRuns

import pipeline.training.loop as training
from pipeline.checkpoint import load_network_weights
from pipeline.data.stand_in import stand_in
from pipeline.runs import measure
from pipeline.runs.context import Context
from pipeline.runs.measure import (
    Cost,
    PhaseCost,
    answers_of_run,
    measure_knowledge,
    measure_run,
    measure_teacher,
)

RUN: dict[str, Any] = {"teacher": "big", "student": "small", "seeds": [0, 1]}
SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "protocol": {"shots": 5},
    "train": {"epochs": 7, "batch_size": 8, "points": 3},
    "teachers": {
        "big": {"net": "resnet8", "min_accuracy": 0, "train": {"epochs": 4, "batch_size": 16, "points": 2}}
    },
    "runs": {
        "kd": RUN | {"method": {"name": "kd"}},
        "hints": RUN | {"method": {"name": "fitnet"}, "phases": {"hint": {"steps": 11}}},
        "codes": RUN | {"method": {"name": "srm"}},
        "known": RUN | {"teacher": "atoms", "method": {"name": "srm"}},
    },
    "knowledge": {
        "atoms": {"teacher": "big", "method": {"name": "srm"}, "phases": {"dictionary": {"epochs": 3}}}
    },
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    return SmallRuns(tmp_path_factory.mktemp("small"), SETTINGS, images=60)


@pytest.fixture(autouse=True)
def in_a_moment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)


def phases(cost: Cost) -> dict[str, tuple[int, int]]:
    """Steps and points by phase."""
    return {phase.name: (phase.steps, phase.points) for phase in cost.phases}


def test_steps_and_points_are_those_of_the_training(small: SmallRuns) -> None:
    params = small.params()
    big = params.teacher_run("big")
    trained = small.train_teacher("big").curves["teacher"]
    cost = measure_teacher(big, small.data)
    assert phases(cost) == {"distill": (4 * 3, len(trained["epoch"]))}  # 36 images: 16, 16 and 4
    assert cost.images == 36
    for name, stage, expected in (
        ("kd", "pretrain", {}),
        ("kd", "distill", {"distill": (14, 3)}),
        ("hints", "pretrain", {"hint": (11, 0)}),
        ("hints", "distill", {"distill": (14, 3)}),
    ):
        cost = measure_run(params.run(name), stage, big, small.data, is_known=False)
        assert phases(cost) == expected
        assert cost.seeds == 2
    small.pretrain("hints")
    curves = small.distill("hints").curves["distill/seed-0"]
    assert len(curves["epoch"]) == phases(cost)["distill"][1]


def test_what_a_teacher_knows_is_not_trained_again(small: SmallRuns) -> None:
    params = small.params()
    big = params.teacher_run("big")
    assert phases(measure_knowledge(params.knowledge_run("atoms"), big, small.data)) == {"dictionary": (6, 0)}
    codes = measure_run(params.run("codes"), "pretrain", big, small.data, is_known=False)
    known = measure_run(params.run("known"), "pretrain", big, small.data, is_known=True)
    assert list(phases(codes)) == ["dictionary", "match"]
    assert list(phases(known)) == ["match"]


VIEWS: dict[str, Any] = {"augment": {"views": 3}}


def measured(small: SmallRuns, name: str, trained: Path | None = None, **sections: Any) -> PhaseCost:
    """The last phase of a run."""
    params = small.params(**VIEWS | sections)
    run, stage = params.run(name), "distill"
    teacher = params.teacher_run("big")
    return measure_run(run, stage, teacher, small.data, is_known=False, trained=trained).phases[-1]


def test_with_fixed_views_answers_are_counted_and_steps_do_without_the_teacher(
    small: SmallRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small.train_teacher("big")
    counts, steps = [], 30
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "FEWEST", steps)
    changes: tuple[dict[str, Any], ...] = ({}, {"augment": {"views": 0}})
    for sections in changes:
        calls, usual = [0], measure._teacher

        def counted(*args: Any, calls: list[int] = calls, usual: Any = usual) -> Any:
            teacher = usual(*args)
            teacher.net.register_forward_pre_hook(lambda *_: calls.append(1))
            return teacher

        with monkeypatch.context() as patched:
            patched.setattr(measure, "_teacher", counted)
            phase = measured(small, "kd", **sections)
        counts.append(len(calls))
        assert (phase.answers is None) == bool(sections)
    assert counts[0] < steps < counts[1]
    needed = measured(small, "kd").answers
    assert needed is not None
    (part,) = needed.parts.values()
    assert (needed.views, len(needed.rows), part.bytes, part.there.sum()) == (3, 15, 2 * 3, 0)
    assert needed.seconds > 0
    assert not [*tmp_path.glob(".work/tmp*")]


def test_what_is_on_the_disk_is_known_once_the_teacher_is_trained(
    small: SmallRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.place)
    (small.place / ".work").symlink_to(small.place / "work")
    small.train_teacher("big")
    params = small.params(**VIEWS)
    small.pretrain("kd", params)
    small.distill("kd", params)
    for trained, there in ((small.place / "big", 3 * 15), (None, 0)):
        needed = measured(small, "kd", trained).answers
        assert needed is not None
        assert sum(part.there.sum() for part in needed.parts.values()) == there
    other = {"augment": {"views": 3, "flip": 0.1}}
    needed = measured(small, "kd", small.place / "big", **other).answers
    assert needed is not None
    assert sum(part.there.sum() for part in needed.parts.values()) == 0


def test_runs_share_what_depends_on_the_same(small: SmallRuns) -> None:
    """Before the teacher is trained: by its name."""
    first, again = (measured(small, "kd").answers for _ in range(2))
    other = measured(small, "kd", augment={"views": 3, "flip": 0.1}).answers
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.parts.keys() == again.parts.keys() != other.parts.keys()
    params = small.params(**VIEWS)
    big = params.teacher_run("big")
    match = measure_run(params.run("codes"), "pretrain", big, small.data, is_known=False).phases[-1].answers
    known = measure_run(params.run("known"), "pretrain", big, small.data, is_known=True).phases[-1].answers
    assert match is not None
    assert known is not None
    assert [part.times for part in (*match.parts.values(), *known.parts.values())] == [2] * 3 + [1] * 3
    assert not match.parts.keys() & known.parts.keys()


def test_what_cannot_be_stored_is_measured_live_and_said(small: SmallRuns) -> None:
    phase = measured(small, "kd", augment={"views": 3, "views_gb": 0})
    assert phase.answers is None
    assert phase.live.startswith("its answers would take more")


def test_what_is_saved_is_as_large_as_said(small: SmallRuns) -> None:
    params = small.params()
    small.train_teacher("big")
    small.pretrain("kd")
    cost = measure_run(params.run("kd"), "distill", params.teacher_run("big"), small.data, is_known=False)
    for name, folder in (("teacher", small.place / "big"), ("student", small.place / "initial/kd/seed-0")):
        assert cost.parameters[name] == sum(
            tensor.numel() for tensor in load_network_weights(folder).values()
        )
    assert cost.memory_mb > 100
    assert answers_of_run(params.run("kd"), params.teacher_run("big"), small.data).parameters == {
        **cost.parameters,
        "method": 0,
    }


def test_a_store_that_is_not_there_yet_costs_the_same(small: SmallRuns) -> None:
    params = small.params()
    found = measure_teacher(params.teacher_run("big"), stand_in(params.data).store)
    assert phases(found) == phases(measure_teacher(params.teacher_run("big"), small.data))


def test_the_warm_up_is_no_part_of_a_step(small: SmallRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the optimizer moves: by 8 in a step of the warm-up, and by 2 in each later one."""
    params, moments = small.params(), [100.0]
    real = torch.optim.AdamW.step

    def step(*args: Any, **kwargs: Any) -> Any:
        moments.append(moments[-1] + (8.0 if len(moments) <= measure.WARM_UP else 2.0))
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: moments[-1]))
    cost = measure_run(params.run("kd"), "distill", params.teacher_run("big"), small.data, is_known=False)
    (phase,) = cost.phases
    assert (phase.step, cost.set_up) == (2.0, measure.WARM_UP * 8.0)
    assert len(moments) - 1 == measure.WARM_UP + measure.FEWEST
    monkeypatch.setattr(measure, "SECONDS", 19.0)
    del moments[1:]
    measure_run(params.run("kd"), "distill", params.teacher_run("big"), small.data, is_known=False)
    assert len(moments) - 1 == measure.WARM_UP + 10


def test_nothing_is_written_and_no_weights_are_needed(small: SmallRuns, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in small.place.rglob("*")}
    params = small.params()
    written = (small.place / "params.yaml").stat().st_mtime_ns
    measure_run(params.run("hints"), "distill", params.teacher_run("big"), small.data, is_known=False)
    after = {file: file.stat().st_mtime_ns for file in small.place.rglob("*")}
    assert before | {small.place / "params.yaml": written} == after


def test_the_seconds_of_a_stage_are_added_up() -> None:
    phase = PhaseCost("distill", steps=100, step=0.5, points=4, validation=2.0)
    assert phase.seconds == 58.0
    assert Cost(seeds=3, set_up=10.0, build=1.0, phases=[phase, phase]).seconds == 10 + 2 + 3 * 2 * 58


@pytest.mark.parametrize("name", ["resnet14", "wrn_10_1", "torchvision:resnet18"])
def test_deep_teachers_that_nobody_trained_answer_with_numbers(name: str, small: SmallRuns) -> None:
    teachers = json.loads(json.dumps(SETTINGS["teachers"] | {"deep": {"net": name, "input": {"size": 32}}}))
    params = small.params(teachers=teachers)
    kd = small.params(
        teachers=teachers, runs={"kd": RUN | {"teacher": "deep", "method": {"name": "kd"}}}
    ).run("kd")
    cost = measure_run(kd, "distill", params.teacher_run("deep"), small.data, is_known=False)
    assert cost.seconds > 0


def test_weights_stay_as_they_are(small: SmallRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its real rate, a student of a teacher that nobody trained could diverge."""
    moved = []

    def fit(*args: Any, student: Any, **options: Any) -> Any:
        before = [parameter.detach().clone() for parameter in student.net.parameters()]
        curves = training.fit(*args, student=student, **options)
        pairs = zip(before, student.net.parameters(), strict=True)
        moved.append(max((new - old).abs().max().item() for old, new in pairs))
        return curves

    monkeypatch.setattr(measure, "fit", fit)
    params = small.params()
    measure_run(params.run("kd"), "distill", params.teacher_run("big"), small.data, is_known=False)
    assert 0 <= moved[0] < 1e-6


def test_a_deep_teacher_that_nobody_trained_answers_with_usual_numbers(small: SmallRuns) -> None:
    params = small.params(teachers={"big": {"net": "resnet110"}})
    context = Context.of_students(small.data, params.protocol, params.augment)
    teacher = measure._teacher(context, params.teacher_run("big"))
    logits = teacher.net(context.images(context.subset.rows[:16], teacher.input))
    assert 0.01 < logits.std() < 10
    assert not teacher.net.training
