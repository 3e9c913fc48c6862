from pathlib import Path

from pipeline import config
from pipeline.balance import balance_run
from stages.entry import command


def stage(name: str, data: Path, teachers: Path, initial: Path) -> None:
    """Suggest a `term_weight` for a run: the one at which its terms have half of the student's gradient."""
    params = config.load()
    found = balance_run(params, name, data=data, teacher=teachers / params.run(name).teacher, initial=initial / name)
    now = params.method(name).term_weight
    print(
        f"{name}: at method.term_weight {now:g} its terms have {found.share:.1%} of the student's gradient (median of {found.steps} steps)."
    )
    print(f"At {found.weight:.2g} they would have half of it (quartiles {found.low:.2g} to {found.high:.2g}).")
    print("Half is a start, not an optimum: try some weights around it and choose on validation.")


if __name__ == "__main__":
    command(stage)
