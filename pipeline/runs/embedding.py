"""What is measured between two phases, where the student's classifier knows nothing yet."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.seen import images_at_once
from pipeline.functional import auc, exact_distances
from pipeline.runs.context import Context
from pipeline.runs.phase import Trainee
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

BINS = 10  # of the histogram of weights from 0 to 1


def nearest_mean(context: Context, student: Tapped, net: nn.Module) -> dict[str, float]:
    """Accuracy of the nearest class mean on validation images (REFILLED, table 4).

    `net` is the student's network or an average of it. The means are those of the embeddings of the labelled
    training images, whole and not augmented.
    """
    probe = context.images(context.subset.rows[:2], student.input)
    tapped = Tapped(net, probe, taps=student.taps, input=student.input)
    with in_eval_mode(net):
        train, val = (_embeddings(context, tapped, rows) for rows in _rows(context))
    tapped.close()
    member = F.one_hot(context.labels.to(train.device), len(context.subset.classes)).to(train.dtype)
    means = (member.T @ train) / member.sum(0).unsqueeze(1)
    right = exact_distances(val, means).argmin(1).cpu().numpy() == context.validation.labels
    return {"val_nearest_mean": float(right.mean())}


def image_weights(context: Context, trainee: Trainee, teacher_classes: tuple[int, ...]) -> dict[str, Any]:
    """How much the last phase lets each of the student's training images count, seen by the teacher or not.

    Empty if all count the same. `auc` says how well the weights tell seen images from unseen ones (REFILLED,
    figure 3).
    """
    weights = _weights(context, trainee)
    if weights is None:
        return {}
    seen = np.isin(context.store.labels[context.subset.rows], teacher_classes)
    sides = {name: weights[mask] for name, mask in (("seen", seen), ("unseen", ~seen)) if mask.any()}
    found: dict[str, Any] = {name: _described(values) for name, values in sides.items()}
    return found | ({"auc": auc(sides["seen"], sides["unseen"])} if len(sides) == 2 else {})


def _rows(context: Context) -> tuple[np.ndarray, np.ndarray]:
    return context.subset.rows, context.validation.rows


def _embeddings(context: Context, tapped: Tapped, rows: np.ndarray) -> Tensor:
    count = images_at_once(tapped.input.size, most=512)
    parts = (rows[start : start + count] for start in range(0, len(rows), count))
    return torch.cat([tapped(context.images(part, tapped.input)).pooled for part in parts])


@torch.no_grad()
def _weights(context: Context, trainee: Trainee) -> Tensor | None:
    """Of all labelled training images, whole, in the order of the subset."""
    assert trainee.teacher is not None
    input, rows, found = trainee.teacher.input, context.subset.rows, []
    count = images_at_once(input.size, most=512)
    for start in range(0, len(rows), count):
        index = torch.arange(start, min(start + count, len(rows)))
        images = context.images(rows[index.numpy()], input)
        step = Step(images, context.labels[index], index, teacher_net=trainee.teacher)
        weights = trainee.method.image_weights(step)
        if weights is None:
            return None
        found.append(weights.cpu())
    return torch.cat(found)


def _described(weights: Tensor) -> dict[str, Any]:
    counts = torch.histc(weights, BINS, 0, 1).int().tolist()
    return {"images": len(weights), "mean": weights.mean().item(), "histogram": counts}
