import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline import saved
from pipeline.checkpoint import atomic_file
from pipeline.data.store import Store
from pipeline.evaluate import Scores, logits_of, score, summarise
from pipeline.export.deployable import Deployable
from pipeline.record import record as recording
from pipeline.record import sha256
from stages.entry import command


def stage(name: str, data: Path, teacher: Path, students: Path, metrics: Path, record: Path) -> None:
    """Read the test split once: every seed's student, and the teacher beside it."""
    store = Store.open(data)
    rows = store.indices("test")
    labels, classes = store.labels[rows], len(store.classes)

    def logits(folder: Path) -> np.ndarray:
        net, _ = saved.load(folder)
        return logits_of(Deployable(net, store.mean, store.std).predict, store.images, rows)

    with recording(record, "evaluate", name, {}) as kept:
        kept.inputs = {"data": store.content, "teacher": sha256(teacher), "students": sha256(students)}
        guide = logits(teacher)
        seeds: dict[int, Scores] = {}
        for folder in sorted(students.glob("seed-*"), key=saved.seed_of):
            seeds[saved.seed_of(folder)] = score(logits(folder), labels, classes, guide)
        kept.metrics |= summarise(list(seeds.values()))
        kept.details = {
            "classes": list(store.classes),
            "teacher": asdict(score(guide, labels, classes)),
            "seeds": {str(seed): asdict(scores) for seed, scores in seeds.items()},
            "exported_seed": saved.seed_of(saved.best_seed(students)),
        }
        with atomic_file(metrics) as file:
            file.write_text(json.dumps({key: round(value, 5) for key, value in kept.metrics.items()}, indent=1) + "\n")
    print(f"{name}: test accuracy {kept.metrics['accuracy']:.1%} ± {kept.metrics['spread']:.1%} over {len(seeds)} seeds")


if __name__ == "__main__":
    command(stage)
