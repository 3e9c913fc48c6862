"""Unbalanced classes, from the settings to the weights and the scores."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from small_runs import SmallRuns
from torch import nn

from pipeline.checkpoint import load_facts, load_network, load_network_weights
from pipeline.data.prepare import prepare
from pipeline.runs import context as context_module
from pipeline.runs.context import Context
from pipeline.runs.teacher import train_teacher
from pipeline.settings import InputError

RUN: dict[str, Any] = {"teacher": "big", "student": "small", "seeds": [0], "method": {"name": "ce"}}
SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.3},
    "protocol": {},
    "train": {"epochs": 2, "batch_size": 8},
    "teachers": {"big": {"net": "wrn_10_1", "min_accuracy": 0, "train": {"epochs": 1, "batch_size": 8}}},
    "runs": {"alone": RUN},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    """Three classes of 30, 30 and 6 pictures, and a trained teacher."""
    runs = SmallRuns(tmp_path_factory.mktemp("unbalanced"), SETTINGS, images=90)
    for file in sorted((runs.place / "images" / "stripes 2").iterdir())[6:]:
        file.unlink()
    shutil.rmtree(runs.data)
    runs.data.mkdir()
    prepare(runs.params().data, runs.data)
    runs.train_teacher("big")
    return runs


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten().float() for tensor in load_network_weights(folder).values()])


def student(small: SmallRuns, **train: Any) -> torch.Tensor:
    small.pretrain("alone")
    small.distill("alone", small.params(runs={"alone": RUN | {"phases": {"distill": train}}}))
    return weights(small.place / "students" / "alone" / "seed-0")


def test_class_balance_changes_the_student_of_the_phase_that_has_it(small: SmallRuns) -> None:
    none, *others = (student(small, class_balance=each) for each in ("none", "sampler", "weights"))
    assert torch.equal(none, student(small))
    assert all(not torch.equal(none, other) for other in others)
    assert not torch.equal(*others)
    common = small.params(train=SETTINGS["train"] | {"class_balance": "sampler"})
    small.distill("alone", common)
    assert torch.equal(weights(small.place / "students" / "alone" / "seed-0"), others[0])


def test_a_teacher_may_have_its_own(small: SmallRuns) -> None:
    trained = {}
    for balance in ("none", "sampler", "weights"):
        big = SETTINGS["teachers"]["big"]
        own = big | {"train": big["train"] | {"class_balance": balance}}
        params = small.params(teachers={"big": own})
        result = train_teacher(params.teacher_run("big"), out=small.place / balance, **small._common())
        trained[balance] = weights(small.place / balance)
        assert {"val_balanced_accuracy", "val_macro_f1"} <= result.curves["teacher"].keys()
    assert torch.equal(trained["none"], weights(small.place / "big"))
    assert len({tuple(each.tolist()) for each in trained.values()}) == 3


def test_validation_has_the_scores_of_sklearn(small: SmallRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of a few images as at once."""
    context = Context.of_students(small.data, small.params().protocol, small.params().augment)
    labels = context.validation.labels
    assert sorted(np.bincount(labels).tolist()) == [2, 9, 9]
    net = load_network(small.place / "big")[0]
    for most in (512, 4):
        monkeypatch.setattr(context_module, "images_at_once", lambda size, most=most: most)
        found = context.validate(net, context.data_input)
        logits = net(context.images(context.validation.rows, context.data_input))
        predicted = logits.argmax(1).numpy()
        expected = {
            "val_accuracy": (predicted == labels).mean(),
            "val_loss": nn.functional.cross_entropy(logits, torch.as_tensor(labels)).item(),
            "val_balanced_accuracy": balanced_accuracy_score(labels, predicted),
            "val_macro_f1": f1_score(labels, predicted, average="macro", labels=np.unique(labels)),
        }
        assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(found.values())) == 4


def test_the_scores_and_what_selects_are_recorded(small: SmallRuns) -> None:
    small.pretrain("alone")
    params = small.params(
        runs={"alone": RUN | {"seeds": [0, 1], "phases": {"distill": {"select": "macro_f1"}}}}
    )
    small.pretrain("alone", params)
    result = small.distill("alone", params)
    assert result.details["select"] == "macro_f1"
    for name in ("val_accuracy", "val_loss", "val_balanced_accuracy", "val_macro_f1"):
        seeds = [result.metrics[f"{name}/seed-{seed}"] for seed in (0, 1)]
        assert result.metrics[name] == pytest.approx(sum(seeds) / 2)
        assert name in result.curves["distill/seed-1"]
        facts = [load_facts(small.place / "students" / "alone" / f"seed-{seed}") for seed in (0, 1)]
        assert [each[name] for each in facts] == seeds
        assert [each["select"] for each in facts] == ["macro_f1"] * 2
    of_seed = result.curves["distill/seed-0"]
    assert result.metrics["val_macro_f1/seed-0"] == max(of_seed["val_macro_f1"])


@pytest.mark.parametrize(
    ("key", "legal"),
    [
        ("class_balance", "'none', 'sampler' or 'weights'"),
        ("select", "'accuracy', 'balanced_accuracy', 'macro_f1' or 'loss'"),
    ],
)
def test_an_unknown_value_is_refused_with_the_legal_ones(small: SmallRuns, key: str, legal: str) -> None:
    with pytest.raises(InputError, match=rf"train\.{key}: .*{legal} \(it is 'even'\)"):
        small.params(train={key: "even"})
