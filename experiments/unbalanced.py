"""Write scikit-learn's digits as a folder of images of unequal class sizes.

    python -m experiments.unbalanced --out FOLDER [--ratio 50]

The digits 0 to 4 keep all images. Of 5 to 9, one of `--ratio` images stays in `train` and in `val`, but three
at least, and a third in `test`, so that their scores are more than chance.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from experiments._script import parser_of
from pipeline.files import atomic_folder

LEAST = 3  # images of a class in a split
SHARES = {"val": 0.1, "test": 0.2}


def write_folder(out: Path, ratio: int) -> None:
    """`out/SPLIT/DIGIT/NUMBER.png`."""
    pixels, labels = load_digits(return_X_y=True)
    with atomic_folder(out) as folder:
        for digit in range(10):
            for split, numbers in chosen(np.flatnonzero(labels == digit), ratio, is_rare=digit > 4).items():
                (folder / split / str(digit)).mkdir(parents=True)
                for number in numbers:
                    image = (pixels[number].reshape(8, 8) * 255 / 16).astype(np.uint8)
                    Image.fromarray(image).save(folder / split / str(digit) / f"{number}.png")


def chosen(numbers: np.ndarray, ratio: int, *, is_rare: bool) -> dict[str, np.ndarray]:
    """The images of one class by split."""
    sizes = {split: round(share * len(numbers)) for split, share in SHARES.items()}
    ends = np.cumsum([*sizes.values()])
    val, test, train = np.split(np.random.default_rng(0).permutation(numbers), ends)
    splits = {"train": train, "val": val, "test": test}
    if not is_rare:
        return splits
    kept = {"train": len(train) // ratio, "val": len(val) // ratio, "test": len(test) // 3}
    return {split: some[: max(LEAST, kept[split])] for split, some in splits.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("unbalanced", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--ratio", type=int, default=50, help="of the large classes to the small ones")
    given = parser.parse_args(arguments)
    write_folder(given.out, given.ratio)


if __name__ == "__main__":
    main()
