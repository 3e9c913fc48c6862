from pathlib import Path

from pipeline import config
from pipeline.record import record as recording
from pipeline.runs import pretrain
from stages.entry import FIRST, command


def stage(name: str, data: Path, teacher: Path, out: Path, work: Path, record: Path) -> None:
    """The phases of a run's method before the last: intermediate knowledge into the seeded students."""
    params = config.load()
    with recording(record, "pretrain", name, params.told(name), write=FIRST) as kept:
        pretrain(params, name, kept, data=data, teacher=teacher, out=out, work=work)


if __name__ == "__main__":
    command(stage)
