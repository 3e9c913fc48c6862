"""Every training of params.yaml, tried on the prepared images before the first one begins."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.data.store import Store
from pipeline.params import Params
from pipeline.runs.trial import try_knowledge, try_run, try_teacher
from pipeline.settings import InputError

SECTIONS = ("data.", "knowledge.", "runs.", "students.", "teachers.")  # how a message begins that says where


def try_trainings(params: Params, store: Store) -> None:
    """Raise InputError for what one of them would stop at, perhaps after hours of another one."""
    teachers, known = {}, {}
    for name in params.teachers:
        with _naming(f"teachers.{name}"):
            teachers[name] = try_teacher(params.teacher_run(name), store)
    for name, knowledge in params.knowledge.items():
        with _naming(f"knowledge.{name}"):
            known[name] = try_knowledge(params.knowledge_run(name), teachers[knowledge.teacher], store)
    for name in params.runs:
        run = params.run(name)
        teacher = params.knowledge[run.teacher].teacher if run.teacher in known else run.teacher
        with _naming(f"runs.{name}"):
            try_run(run, teachers[teacher], store, knows=known.get(run.teacher, {}))


@contextmanager
def _naming(entry: str) -> Iterator[None]:
    """Let an error say which entry of params.yaml it is about."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(SECTIONS):
            raise
        raise InputError(f"{entry}: {error}") from error
