from pathlib import Path

from pipeline.export.build_bundle import ExportConfig
from pipeline.export.export_run import export_run
from pipeline.project.command import command
from pipeline.records.record import load_record, recording
from pipeline.settings import load_section


def stage(
    name: str, data: Path, students: Path, distilled: Path, evaluated: Path, out: Path, record: Path
) -> None:
    """Export the run's best student on validation as a bundle, checked against the trained network."""
    cfg = load_section("export", ExportConfig)
    with recording(record, "export", name, {"export": cfg.model_dump(mode="json")}) as done:
        past = {"distill": load_record(distilled), "evaluate": load_record(evaluated)}
        exported = export_run(name, cfg, data=data, students=students, past=past, out=out, record=done.id)
        done.add(exported.result)
    for remark in exported.remarks:
        print(f"{name}: {remark}")
    print(f"{name}: seed {exported.seed} exported to {out}")


if __name__ == "__main__":
    command(stage)
