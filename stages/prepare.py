from pathlib import Path

from pipeline.data.prepare import prepare
from pipeline.data.store import SPLITS, Store
from pipeline.files import atomic_folder
from pipeline.params import load_params
from pipeline.project.command import command
from pipeline.records.record import recording
from pipeline.records.ticker import counting


def stage(data: Path, record: Path) -> None:
    """Decode the images once, split them, and write down what there is."""
    cfg = load_params().data
    with recording(record, "prepare", "prepare", {"data": cfg.model_dump(mode="json")}) as done:
        with atomic_folder(data) as folder, counting("decode") as on_decoded:
            prepare(cfg, folder, on_decoded=on_decoded)
        store = Store.open(data)
        images = {split: len(store.indices(split)) for split in SPLITS}
        done.metrics |= images | {"classes": len(store.classes)}
        done.outputs["data"] = store.content
        done.details["manifest"] = store.manifest
        print(f"{sum(images.values())} images of {len(store.classes)} classes; look at {data / 'sheet.png'}")


if __name__ == "__main__":
    command(stage)
