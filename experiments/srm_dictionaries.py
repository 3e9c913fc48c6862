"""Which form of SRM's pixels keeps its dictionaries alive: before or after the activation, centred or not.

    python -m experiments.srm_dictionaries --work WORK [--recipe FILE] [--sparsity 0.02 0.15] [--seeds 0 1 2]

WORK is that of experiments/comparison.py or experiments/srm_forms.py, with its images and its teacher. The
teacher answers once to the train subset of the recipe, whole images, and the dictionaries learn from these
answers, so this takes minutes where experiments/srm_forms.py, which also trains students, takes hours. They
are judged on validation images.
"""

import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments._script import parser_of, print_table
from pipeline.methods.srm import Config, Health, SparseRepresentationMatching
from pipeline.params import load_params
from pipeline.project.dependencies import ROOT
from pipeline.runs.context import Context
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

BATCH = 32
HEADING = """\
| pixels | centred | lambda | k | effective atoms of {atoms} | error, share of the variance |
|---|---|--:|---|---|---|"""


def answer_to(context: Context, teacher: Tapped, rows: np.ndarray) -> Answer:
    """The teacher's answer to all of these rows."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            parts.append(teacher(context.images(rows[start : start + BATCH], teacher.input)))
    maps, before = (
        {name: torch.cat([getattr(part, kind)[name] for part in parts]) for name in getattr(parts[0], kind)}
        for kind in ("maps", "preactivations")
    )
    return Answer(
        torch.cat([part.logits for part in parts]), maps, torch.cat([part.pooled for part in parts]), before
    )


def step_of(answer: Answer, places: torch.Tensor) -> Step:
    part = answer.of(places)
    return Step.of(student=part, teacher=part, labels=torch.zeros(len(places)).long(), index=places)


def learn(answer: Answer, steps: int, seed: int, **settings: Any) -> SparseRepresentationMatching:
    """Dictionaries of this form after so many steps of AdamW at 0.01, onecycle and without weight decay."""
    torch.manual_seed(seed)
    count = len(answer.logits)
    method = SparseRepresentationMatching(
        Config(name="srm", **settings), step_of(answer, torch.arange(4)), torch.zeros(count).long()
    )
    optimizer = torch.optim.AdamW(method.dictionary.parameters(), 0.01, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for n in range(steps):
        step = step_of(answer, torch.randperm(count)[:BATCH])
        step.starts_epoch = n == 0
        loss = method.dictionary_loss(step)
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack([term.value for term in loss.values()]).sum())
        optimizer.step()
        schedule.step()
    return method


def row(before: bool, centre: bool, sparsity: float, found: Sequence[dict[str, Health]], k: str) -> str:
    def means(value: str, form: str) -> str:
        of_maps = (statistics.fmean(getattr(health[m], value) for health in found) for m in found[0])
        return ", ".join(format(mean, form) for mean in of_maps)

    cells = ["before the activation" if before else "after", "yes" if centre else "no", f"{sparsity:g}", k]
    return f"| {' | '.join([*cells, means('effective', '.0f'), means('error', '.2f')])} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("srm_dictionaries", __doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/few_shot.yaml")
    parser.add_argument("--work", type=Path, required=True, help="the folder with images and teacher")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.02, 0.08, 0.15], help="lambda")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    params = load_params(given.recipe)
    context = Context.of_students(given.work / "data", params.protocol, params.augment)
    teacher = context.load_network(given.work / "teachers/big")
    train, validation = (
        answer_to(context, teacher, part.rows) for part in (context.subset, context.validation)
    )
    lines = []
    for sparsity, before, centre in product(given.sparsity, (False, True), (False, True)):
        form = {"preactivation": before, "centre": centre, "sparsity": sparsity}
        methods = [learn(train, given.steps, seed, **form) for seed in given.seeds]
        found = [method.health([validation]) for method in methods]
        k = ", ".join(map(str, methods[0].code_sizes.values()))
        lines.append(row(before, centre, sparsity, found, k))
        print(lines[-1], flush=True)
    atoms = ", ".join(str(health.atoms) for health in found[0].values())
    print_table("\n".join([HEADING.format(atoms=atoms), *lines]) + "\n", given.write)


if __name__ == "__main__":
    main()
