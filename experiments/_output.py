"""What every script here does with its table."""

from pathlib import Path

from pipeline.files import atomic_file


def print_table(table: str, file: Path | None) -> None:
    """Print the table, and write it to `file` if one is named."""
    print(table, end="")
    if file:
        with atomic_file(file) as partial:
            partial.write_text(table)
