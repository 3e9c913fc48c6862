"""Which form of SRM's pixels keeps its dictionaries alive, and what the students are worth.

    python -m experiments.srm_forms [FORM ...] --images FOLDER --work WORK [--sparsity 0.02 0.15]

Before or after the activation, centred or not, with few and with many atoms in a code: the runs `srm` of
recipes/few_shot.yaml, each with dictionaries of its own. A FORM is one of them, such as `before-plain-150`,
which has lambda 0.15. Nothing is read of the test images. WORK keeps what
was trained, so a command that was stopped goes on where it was.
"""

import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from experiments._script import parser_of
from experiments.comparison import Comparison, load_recipe
from pipeline.methods.srm import Health, SparseRepresentationMatching
from pipeline.params import Params
from pipeline.project.dependencies import ROOT
from pipeline.runs.context import Context
from pipeline.runs.student import build_student

RECIPE = ROOT / "recipes/few_shot.yaml"
BATCH = 128
HEADING = """\
| pixels | centred | lambda | k | effective atoms | error, share of the variance | validation accuracy % |
|---|---|--:|---|---|---|--:|"""


def with_forms(recipe: Params, sparsities: Sequence[float], seeds: Sequence[int]) -> Params:
    """The recipe with a run for each form, named by its settings."""
    template, settings = recipe.runs["srm_paper"], ("preactivation", "centre")
    runs = {}
    for before, centre, sparsity in product((False, True), (False, True), sparsities):
        own: dict[str, Any] = dict(zip(settings, (before, centre), strict=True)) | {"sparsity": sparsity}
        name = (
            f"{'before' if before else 'after'}-{'centred' if centre else 'plain'}-{round(1000 * sparsity)}"
        )
        method = {"name": "srm", "ce_weight": 0.1, "kd_weight": 0.9} | own
        runs[name] = template.model_copy(update={"method": method, "seeds": tuple(seeds)})
    return recipe.model_copy(update={"knowledge": {}, "runs": runs, "analysis": {}})


class Forms(Comparison):
    def run(self, name: str) -> None:
        """Train one form. The test images stay unread."""
        self.train(name)

    def health(self, name: str, seed: int) -> tuple[dict[str, Health], dict[str, int]]:
        """The dictionaries of a seed on validation images, and k; both by map."""
        run = self.params.run(name)
        context = Context.of_students(self.data, run.protocol, run.augment)
        teacher = context.load_network(self.teacher("big"))
        _, method = build_student(context, run, seed, teacher, self.work / "initial" / name)
        assert isinstance(method, SparseRepresentationMatching)
        rows = context.validation.rows
        with torch.no_grad():
            answers = [
                teacher(context.images(rows[start : start + BATCH], teacher.input))
                for start in range(0, len(rows), BATCH)
            ]
        return method.health(answers), method.code_sizes

    def row(self, name: str, baseline: str | None = None) -> list[str]:
        run = self.params.runs[name]
        found = [self.health(name, seed) for seed in run.seeds]
        sizes = found[0][1]

        def means(value: str, form: str) -> str:
            of_maps = (statistics.fmean(getattr(of_seed[m], value) for of_seed, _ in found) for m in sizes)
            return ", ".join(format(mean, form) for mean in of_maps)

        scores = self.read("distill", name).metrics
        accuracies = [100 * scores[f"val_accuracy/seed-{seed}"] for seed in run.seeds]
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        return [
            "before the activation" if run.method["preactivation"] else "after",
            "yes" if run.method["centre"] else "no",
            f"{run.method['sparsity']:g}",
            ", ".join(map(str, sizes.values())),
            means("effective", ".0f"),
            means("error", ".2f"),
            f"{statistics.fmean(accuracies):.1f}{spread}",
        ]

    def table(self) -> str:
        done = [name for name in self.params.runs if self.missing("distill", name) is None]
        return "\n".join([HEADING, *(f"| {' | '.join(self.row(name))} |" for name in done)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("srm_forms", __doc__)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="its `srm_paper` is the run to vary")
    parser.add_argument("forms", nargs="*", help="such as after-centred-20; all of them if none is named")
    parser.add_argument("--images", required=True, help="the folder of images")
    parser.add_argument("--work", type=Path, required=True, help="the folder that keeps what was trained")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.02, 0.15], help="lambda")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_intermixed_args(arguments)
    recipe = load_recipe(given.recipe, given.images)
    forms = Forms(with_forms(recipe, given.sparsity, given.seeds), given.work)
    forms.all(given.forms, given.write)


if __name__ == "__main__":
    main()
