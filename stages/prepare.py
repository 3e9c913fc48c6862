from pathlib import Path

from pipeline.data.left_out import in_words
from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.store import Store
from pipeline.files import atomic_folder
from pipeline.project.command import command
from pipeline.records.record import recording
from pipeline.records.ticker import counting
from pipeline.settings import load_section


def stage(data: Path, work: Path, record: Path) -> None:
    """Decode the images once, split them, and write down what there is."""
    cfg = load_section("data", DataConfig)
    with recording(record, "prepare", "prepare", {"data": cfg.model_dump(mode="json")}) as done:
        with atomic_folder(data) as folder, counting("decode") as on_decoded:
            files = {"bad_files": work / "bad_files.csv", "work": work / "prepare"}
            prepare(cfg, folder, on_decoded=on_decoded, **files)
        store = Store.open(data)
        splits, unlabelled = store.manifest["splits"], store.manifest["unlabelled"]
        done.metrics |= splits | {"unlabelled": unlabelled, "classes": len(store.classes)}
        done.outputs["data"] = store.content
        done.details["manifest"] = store.manifest
        print(f"{sum(splits.values())} images of {len(store.classes)} classes; look at {data / 'sheet.png'}")
        if unlabelled:
            print(f"{unlabelled} unlabelled images")
        if left_out := store.manifest["left_out"]:
            print(f"Left out: {in_words(left_out)}. They are listed in {data / 'left_out.csv'}")


if __name__ == "__main__":
    command(stage)
