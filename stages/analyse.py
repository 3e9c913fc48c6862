from pathlib import Path

from pipeline.analysis.analyse import analyse
from pipeline.params import load_params
from pipeline.project.command import command
from pipeline.records.record import load_record, recording


def stage(
    name: str,
    data: Path,
    teachers: Path,
    initial: Path,
    students: Path,
    distilled: Path,
    pictures: Path,
    record: Path,
) -> None:
    """Analyse a run's students beyond their accuracy, in numbers and pictures, on validation images."""
    params = load_params()
    run, cfg, transfer = params.run(name), params.analysis[name], params.transfer(name)
    folders = {"data": data, "teacher": teachers / run.teacher, "initial": initial, "students": students}
    with recording(record, "analyse", name, {"analysis": cfg.model_dump(mode="json")}) as done:
        past = load_record(distilled)
        done.add(analyse(run, **folders, distilled=past, images=cfg.images, transfer=transfer, out=pictures))
    for warning in done.details["warnings"]:
        print(f"{name}: {warning}")
    before, after = done.metrics["probe_before"], done.metrics["probe_after"]
    print(f"{name}: linear probe {before:.1%} before distillation, {after:.1%} after (validation)")


if __name__ == "__main__":
    command(stage)
