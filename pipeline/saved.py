"""A saved network made whole again."""

from pathlib import Path
from typing import Any

from torch import nn

from pipeline import checkpoint, nets
from pipeline.inputs import InputError


def load(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a folder that `checkpoint.save_net` filled, frozen and in eval mode, and what is known of it."""
    weights, facts = checkpoint.load_net(folder)
    net = nets.build(facts["net"], len(facts["classes"]), facts["channels"])
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{folder}: the weights there aren't of a {facts['net']} as it is built now. Run `dvc repro` to train it again."
        ) from error
    return net.eval().requires_grad_(False), facts


def best_seed(students: Path) -> Path:
    """The student of a run that did best on validation: the one that's exported."""

    def score(folder: Path) -> tuple[float, float]:
        _, facts = checkpoint.load_net(folder)
        return facts["val_accuracy"], -facts["val_loss"]

    seeds = sorted(students.glob("seed-*"), key=seed_of)
    if not seeds:
        raise InputError(f"{students} holds no trained student. Run `dvc repro`.")
    return max(seeds, key=score)


def seed_of(folder: Path) -> int:
    return int(folder.name.removeprefix("seed-"))
