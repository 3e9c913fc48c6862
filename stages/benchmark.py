from functools import partial
from pathlib import Path

from pipeline.benchmark.speed import BenchmarkConfig, Network, measure
from pipeline.checkpoint import best_seed, load_facts, load_network, student_folders
from pipeline.data.seen import Seen
from pipeline.data.store import Store
from pipeline.export.deployable import Deployable
from pipeline.files import sha256
from pipeline.project.command import command
from pipeline.records.record import recording
from pipeline.settings import load_section


def stage(name: str, data: Path, teacher: Path, students: Path, bundle: Path, record: Path) -> None:
    """How fast and how large: the exported student, the trained one and the teacher on this machine."""
    cfg, store = load_section("benchmark", BenchmarkConfig), Store.open(data)

    def load(folder: Path) -> Deployable:
        net, facts = load_network(folder)
        return Deployable(net, facts["input"]["mean"], facts["input"]["std"])

    def network(folder: Path) -> Network:
        seen = Seen(store.images, load_facts(folder)["input"]["size"])
        return Network(partial(load, folder), seen[store.indices("test")[: max(cfg.batches)]])

    with recording(record, "benchmark", name, {"benchmark": cfg.model_dump(mode="json")}) as done:
        student = network(student_folders(students)[best_seed(students)])
        done.add(measure(bundle, student, network(teacher), cfg))
        done.inputs["bundle"] = sha256(bundle)
    print(f"{name}: {done.metrics['latency_ms']:.3f} ms an image, {done.metrics['size_mb']:.2f} MB")


if __name__ == "__main__":
    command(stage)
