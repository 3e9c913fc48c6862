from pathlib import Path

from pipeline.data.augment import AugmentConfig
from pipeline.data.store import Store
from pipeline.data.views_sheet import views_sheet
from pipeline.files import atomic_file
from pipeline.project.command import command
from pipeline.settings import load_section


def stage(data: Path, out: Path) -> None:
    """Draw what training sees of some images, with `augment` as it is set."""
    page = views_sheet(Store.open(data), load_section("augment", AugmentConfig))
    with atomic_file(out) as file:
        page.save(file, "PNG")
    print(f"look at {out}: what training sees of some images")


if __name__ == "__main__":
    command(stage)
