from pathlib import Path

from pipeline import config
from pipeline.record import record as recording
from pipeline.runs import distill
from stages.entry import FIRST, command


def stage(name: str, data: Path, teacher: Path, initial: Path, out: Path, work: Path, record: Path) -> None:
    """The last phase of a run's method: the students as they will be used."""
    params = config.load()
    with recording(record, "distill", name, params.told(name), write=FIRST) as kept:
        distill(params, name, kept, data=data, teacher=teacher, initial=initial, out=out, work=work)


if __name__ == "__main__":
    command(stage)
