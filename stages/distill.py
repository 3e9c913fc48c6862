from pathlib import Path

from pipeline.files import sha256
from pipeline.params import load_params
from pipeline.project.command import FIRST, command
from pipeline.records.progress import recording_training
from pipeline.runs.student import distill


def stage(
    name: str, data: Path, code: Path, teacher: Path, initial: Path, out: Path, work: Path, record: Path
) -> None:
    """Train the last phase of a run's method: the students as they will be used."""
    run = load_params().run(name)
    folders = {"data": data, "teacher": teacher, "initial": initial, "out": out, "work": work}
    training = recording_training(record, "distill", name, run.settings, work=work, write=FIRST)
    with training as (done, on_point):
        done.add(distill(run, **folders, code=sha256(code), on_point=on_point))


if __name__ == "__main__":
    command(stage)
