import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from pipeline import predictions, saved
from pipeline.checkpoint import atomic_file
from pipeline.cross_task import known, measures, translated
from pipeline.data.protocol import among
from pipeline.data.store import Store
from pipeline.evaluate import Scores, logits_of, score, summarise
from pipeline.export.deployable import Deployable
from pipeline.predictions import Predictions, Said
from pipeline.record import record as recording
from pipeline.record import sha256
from stages.entry import command


def stage(name: str, data: Path, teacher: Path, students: Path, metrics: Path, said: Path, record: Path) -> None:
    """Read the test split once: every seed's student, and the teacher beside it."""
    store = Store.open(data)
    folders = {saved.seed_of(folder): folder for folder in sorted(students.glob("seed-*"), key=saved.seed_of)}
    learnt, taught = (known(store, folder) for folder in (saved.best_seed(students), teacher))
    tested, its_own = (among(store.labels, store.indices("test"), ids) for ids in (learnt, taught))

    def logits(folder: Path, rows: np.ndarray) -> np.ndarray:
        return logits_of(Deployable(saved.load(folder)[0], store.mean, store.std).predict, store.images, rows)

    with recording(record, "evaluate", name, {}) as kept:
        kept.inputs = {"data": store.content, "teacher": sha256(teacher), "students": sha256(students)}
        guide = logits(teacher, its_own.rows)
        guide_here = guide if taught == learnt else logits(teacher, tested.rows)
        answers = {seed: logits(folder, tested.rows) for seed, folder in folders.items()}
        seeds: dict[int, Scores] = {
            seed: score(answer, tested.labels, len(learnt), guide if taught == learnt else None) for seed, answer in answers.items()
        }
        teacher_said = Said.of(guide_here)
        teacher_said = replace(teacher_said, label=translated(teacher_said.label, taught, learnt))
        students_said = {seed: Said.of(answer) for seed, answer in answers.items()}
        predictions.save(said, Predictions(tested.rows, tested.labels, teacher_said, students_said))
        kept.metrics |= summarise(list(seeds.values()))
        kept.details = {
            "classes": [store.classes[n] for n in learnt],
            "teacher": asdict(score(guide, its_own.labels, len(taught))) | {"classes": [store.classes[n] for n in taught]},
            "seeds": {str(seed): asdict(scores) for seed, scores in seeds.items()},
            "exported_seed": saved.seed_of(saved.best_seed(students)),
        }
        if taught != learnt:
            means, kept.details["cross_task"] = measures(store, teacher, folders, taught, learnt)
            kept.metrics |= means
        with atomic_file(metrics) as file:
            file.write_text(json.dumps({key: round(value, 5) for key, value in kept.metrics.items()}, indent=1) + "\n")
    print(f"{name}: test accuracy {kept.metrics['accuracy']:.1%} ± {kept.metrics['spread']:.1%} over {len(seeds)} seeds")


if __name__ == "__main__":
    command(stage)
