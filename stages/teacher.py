from pathlib import Path

from pipeline.files import sha256
from pipeline.params import load_params
from pipeline.project.command import FIRST, command
from pipeline.records.progress import recording_training
from pipeline.runs.teacher import train_teacher


def stage(name: str, data: Path, code: Path, out: Path, work: Path, record: Path) -> None:
    """Fine-tune one teacher on the whole training split."""
    run = load_params().teacher_run(name)
    training = recording_training(record, "teacher", name, run.settings, work=work, write=FIRST)
    with training as (done, on_point):
        done.add(train_teacher(run, data=data, out=out, work=work, code=sha256(code), on_point=on_point))


if __name__ == "__main__":
    command(stage)
