"""The artifacts of a project that was moved or copied.

MLflow keeps the address of every file as an absolute one. So before a database is used, the addresses that
were made beside it somewhere else become addresses beside it here. Otherwise a copy would write into its
original.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.files import locked

FOLDER = "mlartifacts"  # beside the database
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def lock_of(database: Path) -> Path:
    """The lock for whoever builds or changes the database as a whole."""
    return database.with_name(f"{database.name}.lock")


def beside(database: Path) -> str:
    """The address of the artifacts that belong to a database."""
    return (database.absolute().parent / FOLDER).as_uri()


def bring_along(database: Path) -> list[str]:
    """Let the addresses in an SQLite database follow it; returns where its artifacts were said to be."""
    if not _elsewhere(database):
        return []
    with locked(lock_of(database)), closing(sqlite3.connect(database)) as connection, connection:
        found = _elsewhere(database)  # another process may have done it in the meantime
        for old in found:
            _replace(connection, old, beside(database))
            # the experiment that MLflow itself made, with the first experiment of ours
            project, here = _path(old).parent, database.absolute().parent
            _replace(connection, f"{project}/mlruns", f"{here}/mlruns")
    return found


def _elsewhere(database: Path) -> list[str]:
    """The places of artifacts that were made beside this database when it was elsewhere."""
    query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file:///%'"
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            roots = [root for (root,) in connection.execute(query)]
    except sqlite3.DatabaseError:  # there is none, or one that MLflow has not finished
        return []
    return [root for root in roots if _path(root).name == FOLDER and root != beside(database)]


def _path(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))


def _replace(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Replace the beginning of all addresses that lie in the folder `old`."""
    for table, column in ADDRESSES:
        connection.execute(
            f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608
            f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
            {"old": old, "new": new},
        )
