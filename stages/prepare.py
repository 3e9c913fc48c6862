from pathlib import Path

from pipeline import config
from pipeline.checkpoint import atomic_folder
from pipeline.data.prepare import prepare
from pipeline.data.store import Store
from pipeline.record import record as recording
from stages.entry import command


def stage(data: Path, record: Path) -> None:
    """Decode the images once, split them, and write down what there is."""
    cfg = config.load().data
    with recording(record, "prepare", "prepare", {"data": cfg.model_dump(mode="json")}) as kept:
        with atomic_folder(data) as folder:
            prepare(cfg, folder, progress=True)
        store = Store.open(data)
        kept.metrics |= {split: len(store.indices(split)) for split in ("train", "val", "test")} | {"classes": len(store.classes)}
        kept.outputs["data"] = store.content
        kept.details["manifest"] = store.manifest
        print(
            f"{sum(kept.metrics[s] for s in ('train', 'val', 'test'))} images of {len(store.classes)} classes; look at {data / 'sheet.png'}"
        )


if __name__ == "__main__":
    command(stage)
