from pathlib import Path

from pipeline import config, nets
from pipeline.checkpoint import atomic_file
from pipeline.data.protocol import class_sets
from pipeline.data.store import Store
from pipeline.export.probe import probe
from stages.entry import command


def stage(data: Path, out: Path) -> None:
    """Can every student from elsewhere be exported? Asked before anything is trained; those of pipeline/nets can."""
    params, store = config.load(), Store.open(data)
    classes = len(class_sets(store.classes, params.protocol)[1])
    for name, student in params.students.items():
        if ":" in student.net:
            net = nets.build(student.net, classes, store.channels)
            probe(net, name=f"students.{name}.net", size=store.size, channels=store.channels, classes=classes)
            print(f"{name}: {student.net} can be exported")
    with atomic_file(out) as file:  # always the same, so that what waits for it doesn't run again because of another student
        file.write_text("Every student can be exported.\n")


if __name__ == "__main__":
    command(stage)
