import json
from pathlib import Path

from pipeline import config, saved
from pipeline.checkpoint import atomic_folder
from pipeline.code import library
from pipeline.data.protocol import among
from pipeline.data.store import Store
from pipeline.export.bundle import Labelled, export
from pipeline.record import record as recording
from pipeline.record import sha256
from stages.entry import command


def stage(name: str, data: Path, students: Path, distilled: Path, evaluated: Path, out: Path, record: Path) -> None:
    """The run's best student on validation as a bundle of files to deploy, checked against the trained network."""
    cfg, store = config.load().export, Store.open(data)
    chosen = saved.best_seed(students)
    net, facts = saved.load(chosen)
    past = {told["stage"]: told for told in (json.loads(file.read_text()) for file in (distilled, evaluated))}
    tested = past["evaluate"]

    def split(name: str, most: int) -> Labelled:
        sample = among(store.labels, store.indices(name), [store.classes.index(each) for each in facts["classes"]])
        return Labelled(store.images[sample.rows[:most]], sample.labels[:most])

    with recording(record, "export", name, {"export": cfg.model_dump(mode="json")}) as kept:
        kept.inputs = {"data": store.content, "students": sha256(students)}
        exported = {"seed": facts["seed"], "accuracy": tested["details"]["seeds"][str(facts["seed"])]["accuracy"]}
        provenance = {
            "data": store.content,
            "teacher": tested["inputs"]["teacher"],
            "student": sha256(chosen),
            "code": library(),
            **{key: facts[key] for key in ("net", "seed", "val_accuracy")},
            "params": past["distill"]["params"],
            "record": kept.id,
            "records": {stage: told["id"] for stage, told in past.items()},
        }
        with atomic_folder(out) as folder:
            bundle = export(
                net, out=folder, name=name, classes=facts["classes"], mean=store.mean, std=store.std,
                training=split("train", cfg.int8.images).images, validation=split("val", cfg.int8.check),
                test=split("test", max(cfg.int8.check, cfg.parity_images)),
                metrics=tested["metrics"] | {"exported": exported}, provenance=provenance, cfg=cfg,
            )  # fmt: skip
        kept.details, kept.outputs["bundle"] = bundle, sha256(out)
        if quantized := bundle["formats"].get("int8"):
            kept.metrics = {f"int8_{key}": quantized["test"][key] for key in ("accuracy", "drop", "agreement", "snr_db")}
            if quantized["refused"]:
                seen = f"on {quantized['quality']['images']} validation images {'; '.join(quantized['refused'])}"
                print(f"{name}: ships as float alone, since int8 isn't close enough to it ({seen}; limits: export.int8)")
    print(f"{name}: seed {facts['seed']} exported to {out}")


if __name__ == "__main__":
    command(stage)
