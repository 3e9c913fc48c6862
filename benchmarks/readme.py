"""Put a file of results between its markers in README.md: `python benchmarks/readme.py results reports/table.txt`."""

import re
import sys
from pathlib import Path


def main(name: str, file: Path, readme: Path = Path("README.md")) -> None:
    text = readme.read_text()
    content = file.read_text().rstrip()
    if file.suffix == ".txt":
        content = f"```\n{content}\n```"
    new, found = re.subn(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.S)
    if not found:
        sys.exit(f"{readme} has no <!-- {name} --> ... <!-- /{name} -->")
    readme.write_text(new)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
