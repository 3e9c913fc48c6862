"""Put the content of a file between the markers of a Markdown page.

    python -m experiments.insert few_shot FILE docs/results.md

The page has the markers `<!-- few_shot -->` and `<!-- /few_shot -->`, each on a line of its own. What is
between them is replaced. A `.txt` file becomes a code block.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from experiments._script import parser_of


def insert(name: str, content: str, page: str) -> str:
    """The page with `content` between the markers of this name."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    new, count = re.subn(
        f"({re.escape(start)}).*?({re.escape(end)})",
        lambda found: f"{found[1]}{content.rstrip()}\n{found[2]}",
        page,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"it must have <!-- {name} --> ... <!-- /{name} --> once, but has it {count} times")
    return new


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("insert", __doc__)
    parser.add_argument("name", help="the name in the markers")
    parser.add_argument("file", type=Path, help="what to put between them")
    parser.add_argument("page", type=Path, help="the Markdown page that has the markers")
    given = parser.parse_args(arguments)
    content = given.file.read_text()
    if given.file.suffix == ".txt":
        content = f"```\n{content.rstrip()}\n```"
    try:
        page = insert(given.name, content, given.page.read_text())
    except ValueError as error:
        parser.error(f"{given.page}: {error}.")
    given.page.write_text(page)


if __name__ == "__main__":
    main()
