from pathlib import Path

from pipeline.params import load_params
from pipeline.project.__main__ import version
from pipeline.project.changed_code import changed_code, in_words
from pipeline.project.check import (
    check_data_root,
    check_launcher,
    check_networks,
    check_transfer,
    write_class_split,
    write_code_lists,
    write_names,
)
from pipeline.project.command import command


def stage(code: Path, classes: Path, analysed: Path, learned: Path) -> None:
    """Check params.yaml as a whole before anything runs, and list the code of every stage."""
    params = load_params()
    check_launcher(params.launcher)
    check_data_root(params)
    check_transfer(params)
    check_networks(params)
    write_code_lists(params, code)
    write_class_split(params, classes)
    write_names(dict(params.analysis), analysed)
    write_names(dict(params.knowledge), learned)
    if words := in_words(changed_code(code), version()):
        print(words, flush=True)


if __name__ == "__main__":
    command(stage)
