"""Which files of this project a module imports, directly or not."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKS_ONLY = "pipeline/config.py"  # its imports only check params.yaml: what a stage computes with comes through rooms it imports itself
BY_NAME = {"pipeline/nets/__init__.py": "pipeline/nets"}  # imports its files by name: any of them may be meant


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
            found |= _files(node.module) | {file for name in node.names for file in _files(f"{node.module}.{name.name}")}
        elif isinstance(node, ast.Import):
            found |= {file for name in node.names for file in _files(name.name)}
    return found - {file}


def closure(file: str) -> set[str]:
    """All that `file` reaches, itself included; packages' empty `__init__.py` are left out."""
    seen, todo = set(), [file]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current != CHECKS_ONLY:
            todo += imported_by(current)
    reached = {BY_NAME.get(file, file) for file in seen}
    folders = {file for file in reached if not file.endswith(".py")}
    return {file for file in reached if not _says_nothing(file) and not any(file.startswith(f"{folder}/") for folder in folders)}


def _files(module: str) -> set[str]:
    """The file of a module of this project, and the `__init__.py` of the packages it lies in."""
    parts = module.split(".")
    if parts[0] not in ("pipeline", "stages"):
        return set()
    candidates = [Path(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)] + [Path(*parts).with_suffix(".py")]
    return {str(path) for path in candidates if (ROOT / path).is_file()}


def _says_nothing(file: str) -> bool:
    return file.endswith("__init__.py") and len(ast.parse((ROOT / file).read_text()).body) <= 1
