"""Which files a stage's code consists of, installed and of the project: it runs again if one of them changes.

An edit of any other file leaves the stage's results, and its half-finished trainings, as they are. Files are
named from where Python finds them, so that a list is the same on every machine.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]  # a clone, or the place where Python keeps what is installed
OURS = ("pipeline", "stages")  # below ROOT; everything else of a project is in its own folder
# Their imports are there to check params.yaml, or the file of a teacher. A stage imports the code that it
# computes with elsewhere.
CHECKS_ONLY = ("pipeline/params.py", "pipeline/nets/onnx_file.py")
TEMPLATES = (".css", ".html")
CODE = (".py", *TEMPLATES)
# It imports the files beside it by the names in params.yaml, so any of them may be needed.
IMPORTS_BY_NAME = "pipeline/nets/__init__.py"


def listing(files: Iterable[str]) -> str:
    """Hashes and names in the form of `sha256sum`, so `sha256sum --check` says which file has changed."""
    return "".join(
        f"{hashlib.sha256(place(file).read_bytes()).hexdigest()}  {file}\n" for file in sorted(files)
    )


def installed() -> str:
    """The listing of the whole tool."""
    files = (path for room in OURS for path in (ROOT / room).rglob("*") if path.suffix in CODE)
    return listing(path.relative_to(ROOT).as_posix() for path in files)


def place(file: str) -> Path:
    """Where a file lies: the tool's own below ROOT, all others in the project's folder."""
    return (ROOT if file.partition("/")[0] in OURS else Path.cwd()) / file


def closure(*modules: str) -> set[str]:
    """The files that these modules consist of and import, directly or not; nothing of other packages."""
    seen: set[str] = set()
    todo = {file for module in modules for file in _files_of(module)}
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= _beside(file)
        if file.endswith(".py") and file not in CHECKS_ONLY:
            todo |= imported_by(file)
        todo -= seen
    return seen


def imported_by(file: str) -> set[str]:
    """The files that `file` itself imports, at any place in it, except for types only."""
    modules = _modules_in(place(file).read_text())
    return {found for module in modules for found in _files_of(module)} - {file}


@cache
def _modules_in(code: str) -> frozenset[str]:
    """The modules that code may import."""
    tree = ast.parse(code)
    typing_only = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in ast.walk(node)
    }
    return frozenset(
        module for node in ast.walk(tree) if id(node) not in typing_only for module in _named_by(node)
    )


def _named_by(node: ast.AST) -> list[str]:
    """The modules that an import statement may mean: a name in `from a import b` may be the module a.b."""
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
    return [name.name for name in node.names] if isinstance(node, ast.Import) else []


def _files_of(module: str) -> set[str]:
    """The file of a module, and the `__init__.py` of each package that it is in."""
    parts = module.split(".")
    candidates = [Path(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)]
    candidates.append(Path(*parts).with_suffix(".py"))
    return {path.as_posix() for path in candidates if place(path.as_posix()).is_file()}


def _beside(file: str) -> set[str]:
    """The files of the same folder that `file` needs without an import: modules, or templates it names."""
    text, is_by_name = place(file).read_text(), file == IMPORTS_BY_NAME
    kinds = CODE if is_by_name else TEMPLATES
    beside = (path for path in place(file).parent.iterdir() if path.suffix in kinds)
    names = [path.name for path in beside if is_by_name or path.name in text]
    return {(Path(file).parent / name).as_posix() for name in names}
