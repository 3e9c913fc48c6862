"""Choose one weight of each run on validation images, with the same small budget for all.

    python -m experiments.choose_weights recipes/few_shot.yaml --images FOLDER --work WORK [--into RECIPE ...]

Three values are tried in one training each, as long as in the table, with a seed that no table has: the
published weight, a tenth of it, and ten times it. The best validation accuracy wins; of equal ones, the first
in this order. Chosen is `method.term_weight` where a run of the recipe names it, otherwise
`method.kd_weight`. Test images are not read. `--into` writes the winners into recipes. WORK may be that of
experiments/comparison.py: what was trained is kept, so a command that was stopped goes on where it was.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from experiments._script import parser_of, print_table
from experiments.comparison import Comparison, load_recipe
from pipeline import methods
from pipeline.files import atomic_file
from pipeline.params import Params, RunConfig

SEED = 10
FACTORS = {"published": 1.0, "tenth": 0.1, "tenfold": 10.0}
SETTINGS = ("term_weight", "kd_weight")
KD = 0.9  # beside labels of weight 0.1, as in the tables that compare with KD
# Where the published weight is neither that nor the method's default: that of the public code with the kernel
# of `cc`, that of logit standardisation, and that of SRM beside labels of weight 0.25.
PUBLISHED = {"cc": 100.0, "kd_standardised": 9.0, "srm_paper": 0.75}
HEADING = """\
| run | weight | a tenth | published | ten times | chosen |
|---|---|--:|--:|--:|--:|"""


class Trial(NamedTuple):
    run: str
    setting: str
    weight: float


def setting_of(run: RunConfig) -> str | None:
    """The weight to choose; None if the run names none."""
    return next((setting for setting in SETTINGS if run.method.get(setting)), None)


def trials(recipe: Params) -> dict[str, Trial]:
    """What to train, by the names of runs."""
    found = {}
    for name, run in recipe.runs.items():
        if setting := setting_of(run):
            kind = str(run.method["name"])
            default = methods.load(kind).Config(name=kind).term_weight if setting == "term_weight" else KD
            for factor, times in FACTORS.items():
                weight = float(f"{PUBLISHED.get(name, default) * times:.6g}")
                found[f"{name}-{factor}"] = Trial(name, setting, weight)
    return found


def with_trials(recipe: Params, tried: dict[str, Trial]) -> Params:
    """The recipe with a run for each trial."""
    runs = {}
    for name, trial in tried.items():
        run = recipe.runs[trial.run]
        method = run.method | {trial.setting: trial.weight}
        runs[name] = run.model_copy(update={"method": method, "seeds": (SEED,)})
    return recipe.model_copy(update={"runs": runs, "analysis": {}})


class Choice(Comparison):
    def __init__(self, recipe: Params, work: Path) -> None:
        self.trials = trials(recipe)
        self.chosen = dict.fromkeys(trial.run for trial in self.trials.values())  # the runs with a weight
        super().__init__(with_trials(recipe, self.trials), work)

    def score(self, name: str) -> float:
        """Validation accuracy of a trial."""
        return self.read("distill", name).metrics[f"val_accuracy/seed-{SEED}"]

    def best(self, run: str) -> Trial:
        """The trial of the run that wins."""
        return self.trials[max((f"{run}-{factor}" for factor in FACTORS), key=self.score)]

    def row(self, name: str, baseline: str | None = None) -> list[str]:
        best = self.best(name)
        scores = {factor: f"{100 * self.score(f'{name}-{factor}'):.1f}" for factor in FACTORS}
        shown = [scores[factor] for factor in ("tenth", "published", "tenfold")]
        return [name, f"`{best.setting}`", *shown, f"{best.weight:g}"]

    def table(self) -> str:
        return "\n".join([HEADING, *(f"| {' | '.join(self.row(name))} |" for name in self.chosen)]) + "\n"


def with_weight(recipe: str, best: Trial) -> str:
    """The text of a recipe with this weight; as it is if it lacks the run."""
    head, runs, body = recipe.partition("\nruns:\n")
    if not (entry := re.search(rf"^  {best.run}:.*?(?=^  \w|^\w|\Z)", body, re.MULTILINE | re.DOTALL)):
        return recipe
    weight = format(Decimal(str(best.weight)), "f")  # YAML takes 1e-05 for text
    text, count = re.subn(rf"\b{best.setting}: [\d.]+", f"{best.setting}: {weight}", entry[0], count=1)
    assert count, f"runs.{best.run}.method has no {best.setting}"
    return head + runs + body[: entry.start()] + text + body[entry.end() :]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("choose_weights", __doc__)
    parser.add_argument("recipe", type=Path, help="such as recipes/few_shot.yaml")
    parser.add_argument("--images", help="the folder of images, in place of data.root")
    parser.add_argument("--work", type=Path, required=True, help="the folder that keeps what was trained")
    parser.add_argument(
        "--into", type=Path, nargs="+", default=[], help="recipes that get the chosen weights"
    )
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    choice = Choice(load_recipe(given.recipe, given.images), given.work)
    choice.prepare()
    for name in choice.trials:
        choice.train(name)
    for file in given.into:
        text = file.read_text()
        for run in choice.chosen:
            text = with_weight(text, choice.best(run))
        with atomic_file(file) as partial:
            partial.write_text(text)
    print_table(choice.table(), given.write)


if __name__ == "__main__":
    main()
