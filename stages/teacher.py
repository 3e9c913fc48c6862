from pathlib import Path

from pipeline import config
from pipeline.record import record as recording
from pipeline.runs import train_teacher
from stages.entry import FIRST, command


def stage(name: str, data: Path, out: Path, work: Path, record: Path) -> None:
    """Fine-tune one teacher on the whole training split."""
    params = config.load()
    told = {"teacher": params.teacher(name).model_dump(mode="json"), "augment": params.augment.model_dump(mode="json")}
    with recording(record, "teacher", name, told, write=FIRST) as kept:
        train_teacher(params, name, kept, data=data, out=out, work=work)


if __name__ == "__main__":
    command(stage)
