import json
from collections.abc import Iterator
from pathlib import Path

from pipeline import config
from pipeline.checkpoint import atomic_file, atomic_folder
from pipeline.code import closure, listing
from pipeline.config import Params
from pipeline.inputs import InputError
from stages.entry import command

OF_ALL = ("prepare", "report", "track")
OF_A_RUN = ("pretrain", "distill", "evaluate", "export", "benchmark")
WITH_METHODS = ("pretrain", "distill", "analyse")


def stage(code: Path, classes: Path, analysed: Path, learned: Path) -> None:
    """Read params.yaml as a whole, so that what is wrong anywhere in it is said before anything runs; list the code of every stage."""
    params = config.load()
    data = params.data
    if not Path(data.root).is_dir():  # DVC watches it, so it must be there whatever the source
        raise InputError(
            f"data.root: there is no folder {data.root!r}. Name the one that holds the images, or make it (mkdir -p) to download to."
        )
    with atomic_folder(code) as folder:
        for name, modules in stages(params):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(listing(closure(*modules)))
    with atomic_file(classes) as file:  # what of `protocol` concerns teachers; DVC can't watch a setting that may be left out
        file.write_text(json.dumps({"overlap": params.protocol.class_overlap, "seed": params.protocol.class_seed}) + "\n")
    for path, names in ((analysed, params.analysis), (learned, params.knowledge)):
        with atomic_file(path) as file:  # so that the folders that `report` watches are there even if there are none
            file.write_text("".join(f"{name}\n" for name in names))


def stages(params: Params) -> Iterator[tuple[str, list[str]]]:
    """Each stage of the graph with the modules it starts from: its own and those that params.yaml names."""
    for stage in OF_ALL:
        yield stage, [f"stages.{stage}"]
    yield "probe", ["stages.probe", *(module(student.net) for student in params.students.values())]
    for name, teacher in params.teachers.items():
        yield f"teacher/{name}", ["stages.teacher", "pipeline.methods.ce", module(teacher.net)]
    for name, knowledge in params.knowledge.items():
        nets = [module(params.teachers[knowledge.teacher].net)]
        yield f"knowledge/{name}", ["stages.knowledge", f"pipeline.methods.{params.knowledge_method(name).name}", *nets]
    for name, run in params.runs.items():
        nets = [module(net.net) for net in (params.taught_by(name), params.students[run.student])]
        methods = [f"pipeline.methods.{method.name}" for method in (params.method(name), params.partner(name)) if method]
        for stage in OF_A_RUN + (("analyse",) if name in params.analysis else ()):
            yield f"{stage}/{name}", [f"stages.{stage}", *nets, *(methods if stage in WITH_METHODS else [])]


def module(net: str) -> str:
    """Where a network of the user's own comes from: `my_nets.small` for `my_nets.small:make`."""
    return net.partition(":")[0] if ":" in net else "pipeline.nets"


if __name__ == "__main__":
    command(stage)
