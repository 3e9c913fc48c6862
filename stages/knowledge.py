from pathlib import Path

from pipeline.files import sha256
from pipeline.params import load_params
from pipeline.project.command import FIRST, command
from pipeline.records.progress import recording_training
from pipeline.runs.knowledge import learn_knowledge


def stage(name: str, data: Path, code: Path, teacher: Path, out: Path, work: Path, record: Path) -> None:
    """Learn what a method learns of the teacher alone, once for all students."""
    run = load_params().knowledge_run(name)
    folders = {"data": data, "teacher": teacher, "out": out, "work": work}
    training = recording_training(record, "knowledge", name, run.settings, work=work, write=FIRST)
    with training as (done, on_point):
        done.add(learn_knowledge(run, **folders, code=sha256(code), on_point=on_point))


if __name__ == "__main__":
    command(stage)
