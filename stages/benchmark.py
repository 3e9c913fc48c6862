import json
from functools import partial
from pathlib import Path

from pipeline import config, saved
from pipeline.benchmark import measure
from pipeline.checkpoint import atomic_file
from pipeline.data.store import Store
from pipeline.export.deployable import Deployable
from pipeline.record import record as recording
from pipeline.record import sha256
from stages.entry import command


def stage(name: str, data: Path, teacher: Path, students: Path, bundle: Path, metrics: Path, record: Path) -> None:
    """How fast, how large: the exported student, the trained one and the teacher on this machine."""
    cfg, store = config.load().benchmark, Store.open(data)

    def load(folder: Path) -> Deployable:
        return Deployable(saved.load(folder)[0], store.mean, store.std)

    with recording(record, "benchmark", name, {"benchmark": cfg.model_dump(mode="json")}) as kept:
        kept.inputs = {"bundle": sha256(bundle)}
        images = store.images[store.indices("test")[: max(cfg.batches)]]
        measured = measure(bundle, partial(load, saved.best_seed(students)), partial(load, teacher), images, cfg)
        kept.metrics, kept.details = measured["metrics"], measured["details"]
        with atomic_file(metrics) as file:
            file.write_text(json.dumps({key: round(value, 4) for key, value in kept.metrics.items()}, indent=1) + "\n")
    print(f"{name}: {kept.metrics['latency_ms']:.3f} ms an image, {kept.metrics['size_mb']:.2f} MB")


if __name__ == "__main__":
    command(stage)
