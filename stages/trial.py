from pathlib import Path

from pipeline import nets
from pipeline.data.protocol import class_sets
from pipeline.data.store import Store
from pipeline.export.export_trial import try_export
from pipeline.files import atomic_file
from pipeline.params import load_params
from pipeline.project.command import command
from pipeline.project.trial import try_trainings


def stage(data: Path, out: Path) -> None:
    """Try what every training needs before the first one begins, and export students from elsewhere."""
    params, store = load_params(), Store.open(data)
    try_trainings(params, store)
    classes = len(class_sets(store.classes, params.protocol)[1])
    for name, student in params.students.items():
        if ":" in student.net:
            net = nets.build(student.net, classes, store.channels)
            size = student.input.size or store.size
            try_export(net, name=f"students.{name}.net", size=size, channels=store.channels, classes=classes)
            print(f"{name}: {student.net} can be exported")
    with atomic_file(out) as file:  # always the same text, so that no later stage runs again because of it
        file.write_text("Every training can begin, and every student can be exported.\n")


if __name__ == "__main__":
    command(stage)
