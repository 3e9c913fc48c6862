import numpy as np

from pipeline.data.sheet import GAP, LINE, PER_CLASS, TILE, sheet


def counts(classes: list[str]) -> dict[str, dict[str, int]]:
    return {split: dict.fromkeys(classes, 1234) for split in ("train", "val", "test")}


def test_each_class_shows_its_own_images() -> None:
    labels = np.arange(30) % 3
    images = np.zeros((30, 8, 8, 3), dtype=np.uint8)
    images[:] = (50 + labels * 80)[:, None, None, None]
    page = np.asarray(sheet(images, labels, ["a", "b", "c"], counts(["a", "b", "c"])))
    for label in range(3):
        top = label * (LINE + TILE + GAP) + GAP + LINE
        for column in range(PER_CLASS):
            left = GAP + column * (TILE + GAP)
            assert (page[top + 2 : top + TILE - 2, left + 2 : left + TILE - 2] == 50 + label * 80).all()
        assert (page[top - LINE : top - 4] < 128).any()  # the name of the class


def test_unusual_sizes_channels_names_and_few_images_are_drawn() -> None:
    for size, channels in ((8, 1), (33, 3), (96, 1), (500, 3)):
        images = np.zeros((3, size, size, channels), dtype=np.uint8)
        names = ["x" * 400 + "\n", "Привет 猫"]
        page = np.asarray(sheet(images, np.array([0, 1, 1]), names, counts(names)))
        assert (page[GAP + LINE + TILE // 2, GAP + TILE // 2] == 0).all()
        assert (page[GAP + LINE + TILE // 2, GAP + TILE + GAP + TILE // 2] == 255).all()


def test_classes_that_are_not_shown_are_counted() -> None:
    def height(number: int) -> int:
        names = [str(n) for n in range(number)]
        return sheet(
            np.zeros((number, 8, 8, 3), dtype=np.uint8), np.arange(number), names, counts(names)
        ).height

    assert height(21) == height(100) == height(20) + LINE
