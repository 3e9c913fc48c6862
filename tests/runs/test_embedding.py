"""What is measured between phase `embed` of refilled and the last phase."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SmallRuns
from torch import nn
from world import QUICK, World, moved, snapshot

from pipeline.checkpoint import load_weights
from pipeline.data.protocol import class_sets
from pipeline.functional import auc
from pipeline.params import Params
from pipeline.runs.context import Context
from pipeline.taps.tapped import Tapped

REFILLED = {"name": "refilled"}
SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.3, "test": 0.1},
    "protocol": {"class_overlap": 0.5, "shots": 7, "class_seed": 1},
    "train": {"epochs": 4, "points": 4, "batch_size": 8, "lr": 0.02, "schedule": "constant"},
    "teachers": {"big": {"net": "resnet8", "train": {"epochs": 2, "batch_size": 8, "lr": 0.01}}},
    "runs": {"refilled": {"teacher": "big", "student": "small", "seeds": [0, 1], "method": REFILLED}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    runs = SmallRuns(tmp_path_factory.mktemp("embedding"), SETTINGS, images=160, classes=4)
    runs.train_teacher("big")
    return runs


def with_method(runs: SmallRuns, **settings: Any) -> Params:
    return runs.params(runs={"refilled": SETTINGS["runs"]["refilled"] | {"method": REFILLED | settings}})


def slow_rows(context: Context, net: Tapped, rows: np.ndarray) -> list[list[float]]:
    with torch.no_grad():
        return [net(context.images(np.array([row]), net.input)).pooled[0].tolist() for row in rows]


def slow_nearest_mean(context: Context, net: Tapped) -> float:
    """The share of validation images whose embedding is nearest to the mean of their own class."""
    means = []
    for label in range(len(context.classes)):
        own = slow_rows(context, net, context.subset.rows[context.subset.labels == label])
        means.append([math.fsum(column) / len(own) for column in zip(*own, strict=True)])
    right = 0
    for row, label in zip(
        slow_rows(context, net, context.validation.rows), context.validation.labels, strict=True
    ):
        distances = [math.dist(row, mean) for mean in means]
        right += distances.index(min(distances)) == label
    return right / len(context.validation.labels)


def test_the_embedding_is_measured_by_the_nearest_class_mean(runs: SmallRuns) -> None:
    params = runs.params()
    scores = runs.pretrain("refilled", params).metrics
    run = params.run("refilled")
    context = Context.of_students(runs.data, run.protocol, run.augment)
    for seed in (0, 1):
        net = context.load_network(runs.place / f"initial/refilled/seed-{seed}")
        net.net.eval()
        assert scores[f"val_nearest_mean/seed-{seed}"] == pytest.approx(slow_nearest_mean(context, net))
    of_seeds = [scores[f"val_nearest_mean/seed-{seed}"] for seed in (0, 1)]
    assert 0.5 < scores["val_nearest_mean"] < 1
    assert scores["val_nearest_mean"] == pytest.approx(sum(of_seeds) / 2)


def test_the_best_embedding_is_chosen_if_asked(runs: SmallRuns) -> None:
    last = runs.pretrain("refilled")
    chosen = runs.pretrain("refilled", with_method(runs, choose_embedding=True))
    for seed in (0, 1):
        points = chosen.curves[f"embed/seed-{seed}"]["val_nearest_mean"]
        assert len(points) == 4
        assert chosen.metrics[f"val_nearest_mean/seed-{seed}"] == max(points)
        assert last.metrics[f"val_nearest_mean/seed-{seed}"] == points[-1]
        assert "val_nearest_mean" not in last.curves[f"embed/seed-{seed}"]


def test_the_phase_ends_with_the_weights_of_the_best_point() -> None:
    world, seen = World.make(), []

    def judge(net: nn.Module) -> dict[str, float]:
        seen.append(snapshot(net))
        return {"val_nearest_mean": (0.4, 0.6, 0.5)[len(seen) - 1]}

    cfg = QUICK.model_copy(update={"epochs": 3})
    curves = world.fit(world.method("refilled"), 0, cfg, validate=judge)
    assert curves["val_nearest_mean"] == [0.4, 0.6, 0.5]
    assert not moved(seen[1], snapshot(world.student.net))
    assert moved(seen[2], snapshot(world.student.net))


@pytest.mark.parametrize("score", ["squared", "dot"])
def test_the_weights_of_the_training_images_are_recorded(runs: SmallRuns, score: str) -> None:
    params = with_method(runs, score=score)
    found = runs.pretrain("refilled", params).details["image_weights"]
    run = params.run("refilled")
    context = Context.of_students(runs.data, run.protocol, run.augment)
    teacher = context.load_network(runs.place / "big")
    teacher.net.eval()
    seen_classes, _ = class_sets(context.store.classes, run.protocol)
    centres = load_weights(runs.place / "initial/refilled/seed-0/method.safetensors")[
        "centres.means"
    ].tolist()
    points, weights = slow_rows(context, teacher, context.subset.rows), []
    for point in points:
        scores = [slow_score(point, centre, score) / 2 for centre in centres]
        weights.append(1 / math.fsum(math.exp(each - max(scores)) for each in scores))
    is_seen = [context.store.labels[row] in seen_classes for row in context.subset.rows]
    for name, side in (("seen", True), ("unseen", False)):
        own = [weight for weight, seen in zip(weights, is_seen, strict=True) if seen == side]
        assert found[name]["images"] == len(own) == 7
        assert found[name]["mean"] == pytest.approx(math.fsum(own) / len(own), rel=1e-4)
        bins = [
            sum(n / 10 <= weight < (n + 1) / 10 or (n == 9 and weight == 1) for weight in own)
            for n in range(10)
        ]
        assert found[name]["histogram"] == bins
    pairs = [
        (a > b) + (a == b) / 2
        for a, a_seen in zip(weights, is_seen, strict=True)
        for b, b_seen in zip(weights, is_seen, strict=True)
        if a_seen and not b_seen
    ]
    if score == "dot":  # the others are so near to 1 that float32 cannot tell some of them apart
        assert found["auc"] == pytest.approx(sum(pairs) / len(pairs))


def slow_score(point: list[float], centre: list[float], score: str) -> float:
    if score == "squared":
        return -(math.dist(point, centre) ** 2)
    return math.fsum(x * y for x, y in zip(point, centre, strict=True)) / math.hypot(*centre)


def test_where_all_images_count_the_same_no_weights_are_recorded(runs: SmallRuns) -> None:
    assert "image_weights" not in runs.pretrain("refilled", with_method(runs, adaptive=False)).details


def test_the_auc_is_the_share_of_pairs_in_order() -> None:
    seen, unseen = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.5, 0.1, 0.5, 0.95])
    pairs = [(a > b) + (a == b) / 2 for a in seen.tolist() for b in unseen.tolist()]
    assert auc(seen, unseen) == pytest.approx(sum(pairs) / 12)
