from pathlib import Path

import yaml

from pipeline.track import log
from stages.entry import command


def stage(records: Path, bundles: Path, reports: Path, plots: Path, out: Path) -> None:
    """One comparable row in MLflow for each run and each teacher, with curves and artifacts, exactly once."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    runs = list(params["runs"])
    common = [reports / "report.html", reports / "report.md", plots, Path("params.yaml")]
    log(records, runs=runs, teachers=list(params["teachers"]), artifacts={run: [bundles / run] for run in runs}, common=common, out=out)


if __name__ == "__main__":
    command(stage)
