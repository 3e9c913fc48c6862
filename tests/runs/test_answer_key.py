"""The key of stored answers: those of another teacher, data set or setting are never read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from answered import IMAGES, VIEWS, small_run, train
from small_runs import SmallRuns
from torch import nn

from pipeline.runs.answer_key import depends_on, key_of, key_of_function
from pipeline.runs.context import Context
from pipeline.runs.student import build_student
from pipeline.taps.answer import Frozen


def test_the_key_of_a_function_depends_on_its_weights_and_settings() -> None:
    weights = nn.Linear(2, 2)
    usual = Frozen("codes", lambda answer: answer.logits, weights, (1.0, 2.0))
    keys = {key_of_function(usual), key_of_function(replace(usual, settings=(1.0, 3.0)))}
    with torch.no_grad():
        weights.bias[0] += 1
    assert len(keys | {key_of_function(usual)}) == 3


def weights_changed(net: nn.Module) -> None:
    with torch.no_grad():
        next(net.parameters())[0, 0, 0, 0] += 1e-6


@pytest.mark.parametrize(
    "other",
    [{"change": weights_changed}, {"flip": 0.4}, {"erase": 0.1}, {"training": {"precision": "bf16"}}],
    ids=["weights", "flip", "erase", "precision"],
)
def test_other_answers_are_never_read(other: dict[str, Any], small: SmallRuns, tmp_path: Path) -> None:
    train(small, "kd", tmp_path)
    assert train(small, "kd", tmp_path, **other).made == VIEWS * IMAGES


def key(context: Context, small: SmallRuns, teacher: str = "big") -> str:
    run, net = small_run(small, "kd"), context.load_network(small.place / teacher)
    student, _ = build_student(context, run, 0, net)
    return key_of(depends_on(context, net, context.batches(run.train, 0, student, net), "fp32"))


def test_the_key_depends_on_data_code_and_input(
    small: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(small, "kd")
    context = Context.of_students(small.data, run.protocol, run.augment)
    usual = key(context, small)
    assert usual == key(context, small)
    assert usual != key(context, small, "larger")
    context.store.manifest["content"], content = "0" * 64, context.store.content
    assert usual != key(context, small)
    context.store.manifest["content"] = content
    context.augment = run.augment.model_copy(update={"seed": 1})
    assert usual != key(context, small)
    context.augment = run.augment.model_copy(update={"views": 9, "views_gb": 1.0, "preset": "strong"})
    assert usual == key(context, small)  # the other settings hold what these change
    (tmp_path / "net.py").write_text("changed = True")
    monkeypatch.setattr("pipeline.checkpoint.inspect.getfile", lambda kind: str(tmp_path / "net.py"))
    assert usual != key(context, small)


def test_only_mixing_makes_answers_depend_on_the_subset(small: SmallRuns) -> None:
    run = small_run(small, "kd")
    keys = [
        key(
            Context.of_students(
                small.data,
                run.protocol.model_copy(update={"shots": shots}),
                run.augment.model_copy(update={"mixup": mixup}),
            ),
            small,
        )
        for mixup in (0.0, 0.5)
        for shots in (0, 3)
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
