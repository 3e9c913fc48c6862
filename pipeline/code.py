"""Which of the project's files a stage's code consists of: it runs again when one of them changes, and not because of any other."""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKS_ONLY = "pipeline/config.py"  # its imports only check params.yaml: what a stage computes with comes through rooms it imports itself
BY_NAME = "pipeline/nets/__init__.py"  # imports the files beside it by name: any of them may be meant


def listing(files: Iterable[str]) -> str:
    """As `sha256sum` writes it, so `sha256sum --check` tells which file changed."""
    return "".join(f"{hashlib.sha256((ROOT / file).read_bytes()).hexdigest()}  {file}\n" for file in sorted(files))


def library() -> str:
    """Hash of all of it."""
    files = (file.relative_to(ROOT).as_posix() for file in Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(listing(files).encode()).hexdigest()


def closure(*modules: str) -> set[str]:
    """The files of these modules and all they import, directly or not; what isn't the project's own is left out."""
    seen: set[str] = set()
    todo = {file for module in modules for file in files_of(module)}
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= beside(file)
        if file.endswith(".py") and file != CHECKS_ONLY:
            todo |= imported_by(file)
        todo -= seen
    return seen


def imported_by(file: str) -> set[str]:
    """What `file` imports itself, wherever in it the import stands; what only types need is left out."""
    found: set[str] = set()
    tree = ast.parse((ROOT / file).read_text())
    typing_only = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= files_of(node.module) | {file for name in node.names for file in files_of(f"{node.module}.{name.name}")}
        elif isinstance(node, ast.Import):
            found |= {file for name in node.names for file in files_of(name.name)}
    return found - {file}


def files_of(module: str) -> set[str]:
    """The file of a module, and the `__init__.py` of the packages it lies in."""
    parts = module.split(".")
    candidates = [Path(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)] + [Path(*parts).with_suffix(".py")]
    return {path.as_posix() for path in candidates if (ROOT / path).is_file()}


def beside(file: str) -> set[str]:
    """What a file reads that no import names: templates in its folder."""
    folder = (ROOT / file).parent
    kinds = {".html", ".css"} | ({".py"} if file == BY_NAME else set())
    return {path.relative_to(ROOT).as_posix() for path in folder.iterdir() if path.suffix in kinds}
