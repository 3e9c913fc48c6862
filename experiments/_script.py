"""What every script here does: it reads its options, and prints a table."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import atomic_file


def parser_of(script: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a script's options. The first line of its docstring says what it does."""
    return argparse.ArgumentParser(
        prog=f"python -m experiments.{script}", description=(doc or "").partition("\n")[0]
    )


def with_range(values: Sequence[float], digits: int = 2) -> str:
    """Median [smallest, largest]; the value alone if there is but one."""
    middle, low, high = (
        f"{each:,.{digits}f}" for each in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} [{low}, {high}]" if len(values) > 1 else middle


def with_quartiles(ratios: Sequence[float]) -> str:
    """Median [lower quartile, upper quartile]."""
    low, middle, high = quartiles(ratios)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile; one value is all three."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3


def print_table(table: str, file: Path | None) -> None:
    """Print the table, and write it to `file` if one is named."""
    print(table, end="")
    if file:
        with atomic_file(file) as partial:
            partial.write_text(table)
