from pathlib import Path

import yaml

from pipeline.project.command import command
from pipeline.report.write_report import write_report


def stage(
    records: Path, bundles: Path, data: Path, views: Path, reports: Path, plots: Path, metrics: Path
) -> None:
    """From the records of all stages to the table, the report, the plots and DVC's metrics."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    names = {
        "runs": list(params["runs"]),
        "teachers": list(params["teachers"]),
        "analysed": list(params["analysis"]),
    }
    write_report(records, reports, plots, metrics, **names, bundles=bundles, data=data, views=views)
    print(f"The report: {reports / 'report.html'}")


if __name__ == "__main__":
    command(stage)
