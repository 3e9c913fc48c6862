"""A new project: a folder with params.yaml for the images at hand, the graph, and what DVC and git need."""

import shutil
import subprocess
from pathlib import Path

from pipeline.files import atomic_folder
from pipeline.project.plots_page import FILE as PLOTS_PAGE
from pipeline.project.plots_page import write_plots_page
from pipeline.settings import InputError

TEMPLATE = Path(__file__).parent / "template"  # most of it links to the files of this repository
FILES = {
    "dvc.yaml": "dvc.yaml",
    "tool/dvc.yaml": "tool.yaml",
    ".dvc/config": "dvc/config",
    ".dvc/.gitignore": "dvc/gitignore",
    ".dvc/plots/curves.json": "dvc/plots/curves.json",
    ".dvc/plots/confusion_shares.json": "dvc/plots/confusion_shares.json",
    ".dvcignore": "dvcignore",
    ".gitignore": "gitignore",
    "my_nets/__init__.py": "my_nets.txt",
}


def new(folder: Path, /, images: Path, teacher: str = "", student: str = "") -> None:
    """Make a project in a new folder for a folder of images (CLASS/*.jpg). The networks are named as
    torchvision:resnet50, as timm:NAME, as NET=WEIGHTS.pth or as a file of weights, or they are chosen."""
    _check_place(folder, images)
    from pipeline.project.first_params import first_params
    from pipeline.project.look import look_at

    pictures = look_at(images)
    text, words = first_params(
        (TEMPLATE / "params.yaml").read_text(), pictures, teacher=teacher, student=student
    )
    with atomic_folder(folder) as made:
        _write(made, text, folder.resolve().name, images)
    if _needs_git(folder):
        subprocess.run(["git", "init", "--quiet", str(folder)], check=True)  # noqa: S603, S607
    print(
        f"{pictures.words()}\n{words}\n{folder}/params.yaml holds these choices. Now: cd {folder}, then "
        "`handdown plan` (what would run, and for how long) or `handdown run`."
    )


def _check_place(folder: Path, images: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and not empty. Name a new folder, or empty this one.")
    if folder.resolve().is_relative_to(images.resolve()):
        raise InputError(
            f"{folder} would lie among the images in {images}, and what it writes would be taken for images. "
            "Name a folder elsewhere."
        )
    if shutil.which("git") is None:
        raise InputError("git is not installed, and DVC needs it. Install it, then call this again.")


def _write(made: Path, params: str, name: str, images: Path) -> None:
    from pipeline.params import load_params
    from pipeline.project.__main__ import version
    from pipeline.project.check import check_data_root

    (made / "params.yaml").write_text(params)
    check_data_root(load_params(made / "params.yaml"))
    for target, source in FILES.items():
        (made / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TEMPLATE / source, made / target)
    readme = (TEMPLATE / "README.md").read_text()
    (made / "README.md").write_text(readme.format(name=name, version=version(), images=images.resolve()))
    write_plots_page(made / PLOTS_PAGE)


def _needs_git(folder: Path) -> bool:
    inside = ["git", "-C", str(folder), "rev-parse", "--is-inside-work-tree"]
    return subprocess.run(inside, capture_output=True, check=False).returncode != 0  # noqa: S603
