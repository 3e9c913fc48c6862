from pathlib import Path

import yaml

from pipeline.track import log
from stages.entry import command


def stage(records: Path, bundles: Path, reports: Path, plots: Path, out: Path) -> None:
    """One comparable row in MLflow for each run and each teacher, with curves and artifacts, exactly once."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    runs = list(params["runs"])
    common = [reports / "report.html", reports / "report.md", plots, Path("params.yaml"), Path("dvc.lock")]
    names = {"runs": runs, "teachers": list(params["teachers"]), "analysed": list(params.get("analysis", {}))}
    pictures = {run: sorted((records / "analyse" / run).glob("*.png")) for run in names["analysed"]}
    artifacts = {run: [bundles / run, *pictures.get(run, [])] for run in runs}
    done = log(records, artifacts=artifacts, common=common, out=out, **names)
    print(f"{len(done.new)} new of {len(done.runs) + len(done.teachers)} rows in MLflow at {done.tracking_uri}: `make ui` compares them.")


if __name__ == "__main__":
    command(stage)
