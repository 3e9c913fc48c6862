"""What came out of the graph: the table again, and the best student at work."""

import sys
from pathlib import Path

from pipeline.settings import InputError

REPORTS, RECORDS, BUNDLES = Path("reports"), Path("records"), Path("models/export")
NOTHING_YET = "There are no results yet. Make them: handdown run"


def report() -> None:
    """Print the table of results again, and say where the report is."""
    try:
        print((REPORTS / "table.txt").read_text(), end="")
    except FileNotFoundError:
        raise InputError(NOTHING_YET) from None
    print(f"\nOpen {(REPORTS / 'report.html').resolve().as_uri()}")


def predict(*pictures: str) -> None:
    """Let the best student answer: handdown predict PICTURES... (as `deploy predict BUNDLE PICTURES...`)."""
    deploy("predict", str(best_bundle()), *pictures)


def deploy(*words: str) -> None:
    """Every command for a bundle: verify, predict, benchmark, info, serve, page, pack, doctor."""
    from pipeline.deploy.__main__ import main

    sys.exit(main(list(words)))


def best_bundle() -> Path:
    """The bundle of the run that is best on validation."""
    from pipeline.params import load_params
    from pipeline.records.results import load_results

    params = load_params()
    names = {"runs": list(params.runs), "teachers": list(params.teachers), "analysed": list(params.analysis)}
    try:
        return BUNDLES / load_results(RECORDS, **names).best.name
    except InputError as error:
        raise InputError(f"{NOTHING_YET} ({error})") from error
