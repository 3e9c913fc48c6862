"""The best student, registered in MLflow."""

from pathlib import Path


def promote(
    model: str = "folder-to-student", records: Path = Path("records"), bundles: Path = Path("models/export")
) -> None:
    """Register the student that is best on validation and passes its gates as a model version in MLflow."""
    from pipeline.params import load_params
    from pipeline.track.registry import Budgets, register_best

    params = load_params()
    done = register_best(
        records,
        bundles=bundles,
        model=model,
        budgets=Budgets(params.export.max_latency_ms, params.export.max_size_mb),
        runs=list(params.runs),
        teachers=list(params.teachers),
        analysed=list(params.analysis),
    )
    for name, fault in done.passed_over.items():
        print(f"{name} is better on validation, but was passed over: {fault}")
    print(
        f"{done.run} is {'now' if done.new else 'already'} version {done.version} of {done.model}, "
        f"its {done.alias} ({done.why}).\nmodels:/{done.model}@{done.alias}"
    )
