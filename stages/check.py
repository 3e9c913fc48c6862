import json
from pathlib import Path

from pipeline import config
from pipeline.checkpoint import atomic_file, atomic_folder
from pipeline.inputs import InputError
from stages.entry import command


def stage(out: Path, partners: Path, classes: Path) -> None:
    """Read params.yaml as a whole, so that what is wrong anywhere in it is said before anything runs."""
    params = config.load()
    data = params.data
    if not Path(data.root).is_dir():  # DVC watches it, so it must be there whatever the source
        raise InputError(
            f"data.root: there is no folder {data.root!r}. Name the one that holds the images, or make it (mkdir -p) to download to."
        )
    with atomic_folder(partners) as folder:
        for run in params.runs:  # dvc.yaml names the method of a run, and can't name one that only some runs have
            (folder / run).write_text(config.code_of(params.partner(run)))
    with atomic_file(classes) as file:  # what of `protocol` concerns teachers; DVC can't watch a setting that may be left out
        file.write_text(json.dumps({"overlap": params.protocol.class_overlap, "seed": params.protocol.class_seed}) + "\n")
    with atomic_file(out) as file:
        file.write_text("params.yaml is legal\n")  # always the same: no stage runs again because of it


if __name__ == "__main__":
    command(stage)
