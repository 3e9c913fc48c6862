from pathlib import Path

import yaml

from pipeline.project.command import command
from pipeline.track.write_rows import write_rows


def stage(records: Path, bundles: Path, reports: Path, plots: Path, out: Path) -> None:
    """Write one comparable row for each run and each teacher to MLflow, exactly once."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    runs, teachers, analysed = (
        list(params["runs"]),
        list(params["teachers"]),
        list(params.get("analysis", {})),
    )
    common = [reports / "report.html", reports / "report.md", plots, Path("params.yaml"), Path("dvc.lock")]
    pictures = {run: sorted((records / "analyse" / run).glob("*.png")) for run in analysed}
    artifacts = {run: [bundles / run, *pictures.get(run, [])] for run in runs}
    done = write_rows(
        records, runs=runs, teachers=teachers, analysed=analysed, artifacts=artifacts, common=common, out=out
    )
    rows = len(done.runs) + len(done.teachers)
    print(
        f"{len(done.new)} new of {rows} rows in MLflow at {done.tracking_uri}: `handdown ui` compares them."
    )


if __name__ == "__main__":
    command(stage)
