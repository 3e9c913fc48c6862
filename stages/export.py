import json
from pathlib import Path

from pipeline import config, saved
from pipeline.checkpoint import atomic_folder
from pipeline.data.store import Store
from pipeline.export.bundle import export
from pipeline.record import record as recording
from pipeline.record import sha256
from stages.entry import command


def stage(name: str, data: Path, students: Path, metrics: Path, out: Path, record: Path) -> None:
    """The run's best student on validation as a bundle of files to deploy, checked against the trained network."""
    cfg, store = config.load().export, Store.open(data)
    chosen = saved.best_seed(students)
    net, facts = saved.load(chosen)
    with recording(record, "export", name, {"export": cfg.model_dump(mode="json")}) as kept:
        kept.inputs = {"data": store.content, "students": sha256(students)}
        told = {"run": name, "seed": facts["seed"], "net": facts["net"], "val_accuracy": facts["val_accuracy"]}
        told |= {"test": json.loads(metrics.read_text()), "hashes": kept.inputs}
        with atomic_folder(out) as folder:
            kept.details = export(
                net, out=folder, classes=store.classes, mean=store.mean, std=store.std, size=store.size, channels=store.channels,
                images=store.images[store.indices("test")[: cfg.parity_images]], facts=told, cfg=cfg,
            )  # fmt: skip
        kept.outputs["bundle"] = sha256(out)
    print(f"{name}: seed {facts['seed']} exported to {out}")


if __name__ == "__main__":
    command(stage)
