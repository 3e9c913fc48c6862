"""How every script here ends: the table is printed, and kept where a file is named."""

from pathlib import Path

from pipeline.checkpoint import atomic_file


def tell(text: str, file: Path | None) -> None:
    print(text, end="")
    if file:
        with atomic_file(file) as partial:
            partial.write_text(text)
