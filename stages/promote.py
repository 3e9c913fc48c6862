from pathlib import Path

from pipeline import config
from pipeline.registry import Budgets, promote
from stages.entry import command


def stage(records: Path, bundles: Path, model: str) -> None:
    """The best student on validation among those that pass their gates as a version of a registered model; no part of the graph."""
    params = config.load()
    budgets = Budgets(params.export.max_latency_ms, params.export.max_size_mb)
    names = {"runs": list(params.runs), "teachers": list(params.teachers), "analysed": list(params.analysis)}
    done = promote(records, bundles=bundles, model=model, budgets=budgets, **names)
    for name, fault in done.passed_over.items():
        print(f"{name} is better on validation, but passed over: {fault}")
    print(
        f"{done.run} is {'now' if done.new else 'already'} version {done.version} of {done.model}, its {done.alias} ({done.why}).\n"
        f"models:/{done.model}@{done.alias}"
    )


if __name__ == "__main__":
    command(stage)
