"""Which code is installed. It runs at every `dvc repro`, so it imports next to nothing."""

import sys
from pathlib import Path

from pipeline.project.dependencies import installed


def stage(out: Path) -> None:
    """List the files of the tool with their hashes: DVC runs `check` again if one of them changes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(installed())


if __name__ == "__main__":
    stage(Path(sys.argv[sys.argv.index("--out") + 1]))
