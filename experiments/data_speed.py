"""Images per second of our views and of torchvision's transforms in a DataLoader, on one core.

    python -m experiments.data_speed [--images FOLDER] [--rounds 9] [--write FILE]

Both start from the same decoded images and end in the same normalised batches; one line starts from JPEG
files, which torchvision decodes again in every epoch and we decode once, in stage prepare. The two take
turns, batch by batch, and their CPU time is compared. Without FOLDER the images are made up; otherwise they
are the JPEG files below it.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.tv_tensors import Image as TVImage

from experiments._photographs import made_up
from experiments._script import parser_of, print_table, with_quartiles
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batches
from pipeline.data.decode import decode
from pipeline.data.protocol import Subset
from pipeline.device import keep_memory
from pipeline.export import machine
from pipeline.functional import Input

BATCH = 64
COUNT = 256  # images, so that a round is four batches
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """A setting, and the transforms of torchvision that do the same."""

    name: str
    kept: int
    size: int
    cfg: AugmentConfig
    transforms: Sequence[Callable[[Tensor], Tensor]]


def cases() -> list[Case]:
    def crop(smallest: float) -> v2.Transform:
        return v2.RandomResizedCrop(224, scale=(smallest, 1.0), antialias=True)

    mirror = v2.RandomHorizontalFlip()
    shift = AugmentConfig()
    standard, strong = AugmentConfig(preset="standard"), AugmentConfig(preset="strong")
    trivial = AugmentConfig(crop=standard.crop, policy="trivial")
    blur = v2.RandomApply([v2.GaussianBlur(17, (0.1, 2.0))], strong.blur)
    # what v2 draws per image: factors of 1 plus or minus these
    some, much = v2.ColorJitter(0.2, 0.2, 0.2), v2.ColorJitter(0.4, 0.4, 0.4, strong.hue)
    grey, erase = v2.RandomGrayscale(strong.grey), v2.RandomErasing(strong.erase, value=114)
    return [
        Case("shift and mirror", 32, 32, shift, [v2.RandomCrop(32, padding=4), mirror]),
        Case("crop and mirror", 256, 224, AugmentConfig(crop=standard.crop), [crop(0.35), mirror]),
        Case("standard", 256, 224, standard, [crop(0.35), mirror, some]),
        Case("strong", 256, 224, strong, [crop(0.2), mirror, much, grey, blur, erase]),
        Case("TrivialAugment", 256, 224, trivial, [crop(0.35), mirror, v2.TrivialAugmentWide()]),
    ]


class Stored(Dataset[Tensor]):
    """Decoded images, each through torchvision's transforms."""

    def __init__(self, images: np.ndarray, transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        self.transform = v2.Compose(
            [*transforms, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, n: int) -> Tensor:
        view: Tensor = self.transform(TVImage(self.images[n]))
        return view


class Files(Stored):
    """The same from files, which are decoded each time."""

    def __init__(self, files: Sequence[Path], transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        super().__init__(np.empty((0, 1, 1, 3), dtype=np.uint8), [v2.PILToTensor(), *transforms])
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, n: int) -> Tensor:
        with Image.open(self.files[n]) as image:
            view: Tensor = self.transform(image.convert("RGB"))
            return view


def theirs(dataset: Dataset[Tensor]) -> Iterator[Tensor]:
    loader: DataLoader[Tensor] = DataLoader(dataset, batch_size=BATCH, shuffle=True)
    while True:
        yield from loader


def ours(images: np.ndarray, case: Case) -> Iterator[Tensor]:
    rows = np.arange(len(images))
    batches = Batches(
        images,
        Subset(rows, rows * 0, (0,)),
        batch_size=BATCH,
        seed=0,
        mean=MEAN,
        augment=case.cfg,
        input=Input(case.size, MEAN, STD),
        device="cpu",
    )
    for n in range(1_000_000):
        for batch in batches.epoch(n):
            yield batch.images


def rates(loaders: Sequence[Iterator[Tensor]], rounds: int) -> list[list[float]]:
    """Images per second of CPU time of each loader in each round; they take turns batch by batch."""
    found: list[list[float]] = [[] for _ in loaders]
    for number in range(rounds + 1):
        seconds = [0.0] * len(loaders)
        for _ in range(COUNT // BATCH):
            for n, loader in enumerate(loaders):
                start = time.process_time()
                next(loader)
                seconds[n] += time.process_time() - start
        if number:  # the first round only warms up
            for rate, took in zip(found, seconds, strict=True):
                rate.append(COUNT / took)
    return found


def row(name: str, kept: int, size: int, loaders: Sequence[Iterator[Tensor]], rounds: int) -> str:
    own, other = rates(loaders, rounds)
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    medians = [f"{statistics.median(each):,.0f}" for each in (own, other)]
    cells = [name, f"{kept} to {size}", *medians, with_quartiles(ratios), str(rounds)]
    return f"| {' | '.join(cells)} |"


def files_of(images: str | None, folder: Path) -> list[Path]:
    """COUNT JPEG files: those below `images`, or made up ones in `folder`."""
    if images:
        found = sorted(Path(images).rglob("*.jpg"))
        if not found:
            raise SystemExit(f"{images}: there are no .jpg files below this folder.")
        return [file for file, _ in zip(cycle(found), range(COUNT), strict=False)]
    for n, picture in enumerate(made_up(COUNT)):
        picture.save(folder / f"{n:03}.jpg", quality=90)
    return sorted(folder.iterdir())


def table(files: Sequence[Path], rounds: int) -> str:
    stored = {kept: np.stack([decode(file, kept, 3) for file in files]) for kept in (32, 256)}
    lines = [
        f"One core of {machine.cpu()['model']}, CPU time. Medians of rounds of {COUNT} images, and quartiles "
        "of the rounds' ratios.",
        "",
        "| views | pixels | ours, images/s | torchvision, images/s | ratio | n |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for case in cases():
        loaders = [ours(stored[case.kept], case), theirs(Stored(stored[case.kept], case.transforms))]
        lines.append(row(case.name, case.kept, case.size, loaders, rounds))
    case = next(case for case in cases() if case.name == "standard")
    loaders = [ours(stored[case.kept], case), theirs(Files(files, case.transforms))]
    lines.append(row("standard, theirs from JPEG files", case.kept, case.size, loaders, rounds))
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("data_speed", __doc__)
    parser.add_argument("--images", help="a folder of JPEG files, in place of made up ones")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        files = files_of(given.images, Path(folder))
        print_table(table(files, given.rounds), given.write)


if __name__ == "__main__":
    main()
