"""What `check` finds out before anything runs: is params.yaml sound, and which code does each stage have?"""

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.data import sources, splits
from pipeline.data.walk import check_watched
from pipeline.files import atomic_file, atomic_folder
from pipeline.nets import importable
from pipeline.nets.start import check_file
from pipeline.params import Params
from pipeline.project.dependencies import closure, listing
from pipeline.settings import InputError

OF_ALL = ("prepare", "views", "report", "track")
OF_A_RUN = ("pretrain", "distill", "evaluate", "export", "benchmark")
MADE = ("data/prepared", "metrics", "models", "plots", "records", "reports", ".dvc", ".work")
WITH_METHODS = ("pretrain", "distill", "analyse")


def check_data_root(params: Params) -> None:
    """DVC watches the folder, so it must be there whatever the source, and be one that DVC can watch."""
    root = params.data.root
    if not os.path.isdir(root):  # no error if the name is too long
        raise InputError(
            f"data.root: there is no folder {root!r}. Name the folder that holds the images, or make it "
            "(mkdir -p) to download to."
        )
    if Path.cwd().is_relative_to(Path(root).resolve()):
        raise InputError(
            f"data.root: {root!r} holds the project itself, so what the project writes would be among the "
            "images. Name a folder that holds the images alone, such as data/raw."
        )
    for made in MADE:
        if _overlap(Path(root).resolve(), Path(made).resolve()):
            raise InputError(
                f"data.root: {root!r} and {made}, which the graph makes, lie in one another. Name a folder "
                "that holds the images alone, such as data/raw."
            )
    if params.data.source in sources.OWN:
        check_watched(Path(root), f"data.root {root!r}")


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def check_transfer(params: Params) -> None:
    """Other images are read after the last training, so what is wrong with them is said before the first."""
    for name in params.analysis:
        other = params.transfer(name)
        if other is not None and other.source in sources.OWN:
            where = f"analysis.{name}.transfer"
            try:
                source = sources.find(other)
                splits.check(source.items, source.classes, source.where)
            except InputError as error:
                raise InputError(f"{where}: {str(error).removeprefix('data.')}") from error


def check_networks(params: Params) -> None:
    """Modules must be there, and so must files of weights, with the hashes that params.yaml gives."""
    for section, entries in (("teachers", params.teachers), ("students", params.students)):
        for name, cfg in entries.items():
            field = f"{section}.{name}"
            try:
                importable.check(cfg.net)
            except InputError as error:
                raise InputError(f"{field}.{error}") from error
            check_file(cfg.start, net=cfg.net, field=f"{field}.start")


def check_launcher(launcher: str) -> None:
    """The program that starts training must be there: no shell reads the command."""
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise InputError(
            f"launcher: {launcher!r} is no command ({error}). Write python, for example."
        ) from error
    program = next(iter(words), "")
    if not program or shutil.which(program) is None:
        raise InputError(
            f"launcher: there is no program {program!r}. Write python, or with several devices `torchrun "
            "--nproc-per-node 4`."
        )


def write_code_lists(params: Params, folder: Path) -> None:
    """A file for each stage that lists its code with hashes: DVC runs the stage again when it changes."""
    with atomic_folder(folder) as filled:
        for name, modules in modules_of_stages(params):
            (filled / name).parent.mkdir(parents=True, exist_ok=True)
            (filled / name).write_text(listing(closure(*modules)))


def write_class_split(params: Params, file: Path) -> None:
    """What of `protocol` concerns teachers. DVC cannot watch a setting that params.yaml may leave out."""
    split = {"overlap": params.protocol.class_overlap, "seed": params.protocol.class_seed}
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(split) + "\n")


def write_names(names: dict[str, object], file: Path) -> None:
    """A list of names, so that the folder that `report` watches exists even if there are none.

    Its first line is always there, because DVC warns of an empty file at every start.
    """
    with atomic_file(file) as partial:
        partial.write_text("".join(f"{line}\n" for line in ("# names in params.yaml", *names)))


def modules_of_stages(params: Params) -> Iterator[tuple[str, list[str]]]:
    """Each stage of the graph with the modules it starts from: its own, and those that params.yaml names."""
    for stage in OF_ALL:
        yield stage, [f"stages.{stage}"]
    yield "trial", ["stages.trial", *_modules_of_trainings(params)]
    for name, teacher in params.teachers.items():
        yield f"teacher/{name}", ["stages.teacher", "pipeline.methods.ce", _module(teacher.net)]
    for name, knowledge in params.knowledge.items():
        method = f"pipeline.methods.{params.knowledge_run(name).method.name}"
        yield (
            f"knowledge/{name}",
            ["stages.knowledge", method, _module(params.teachers[knowledge.teacher].net)],
        )
    for name in params.runs:
        run = params.run(name)
        nets = [_module(params.trained_teacher(run.teacher).net), _module(run.student.net)]
        methods = [f"pipeline.methods.{method.name}" for method in (run.method, run.partner) if method]
        for stage in OF_A_RUN + (("analyse",) if name in params.analysis else ()):
            yield f"{stage}/{name}", [f"stages.{stage}", *nets, *(methods if stage in WITH_METHODS else [])]


def _modules_of_trainings(params: Params) -> set[str]:
    """Of all networks and methods."""
    nets = [each.net for each in (*params.teachers.values(), *params.students.values())]
    runs = [params.run(name) for name in params.runs]
    given = [each for run in runs for each in (run.method, run.partner) if each]
    given += [params.knowledge_run(name).method for name in params.knowledge]
    return {*map(_module, nets), *(f"pipeline.methods.{method.name}" for method in given)}


def _module(net: str) -> str:
    """Where a network comes from: `my_nets.small` for `my_nets.small:make`."""
    return net.partition(":")[0] if ":" in net else "pipeline.nets"
