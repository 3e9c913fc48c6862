import json
from pathlib import Path

from pipeline import config
from pipeline.analysis.students import analyse
from pipeline.record import Record
from pipeline.record import record as recording
from stages.entry import command


def stage(name: str, data: Path, teachers: Path, initial: Path, students: Path, distilled: Path, pictures: Path, record: Path) -> None:
    """What a run's students have become beyond their accuracy, in numbers and pictures, on validation images."""
    params = config.load()
    with recording(record, "analyse", name, {"analysis": params.analysis[name].model_dump(mode="json")}) as kept:
        teacher, past = teachers / params.run(name).teacher, Record(**json.loads(distilled.read_text()))
        analyse(params, name, kept, data=data, teacher=teacher, initial=initial, students=students, distilled=past, out=pictures)
    for warning in kept.details["warnings"]:
        print(f"{name}: {warning}")
    told = kept.metrics
    print(f"{name}: linear probe {told['probe_before']:.1%} before distillation, {told['probe_after']:.1%} after (validation)")


if __name__ == "__main__":
    command(stage)
