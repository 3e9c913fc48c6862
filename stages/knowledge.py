from pathlib import Path

from pipeline import config
from pipeline.record import record as recording
from pipeline.runs import learn
from stages.entry import FIRST, command


def stage(name: str, data: Path, teacher: Path, out: Path, work: Path, record: Path) -> None:
    """What a method learns of the teacher alone, once for all students."""
    params = config.load()
    with recording(record, "knowledge", name, params.knowledge_told(name), write=FIRST) as kept:
        learn(params, name, kept, data=data, teacher=teacher, out=out, work=work)


if __name__ == "__main__":
    command(stage)
