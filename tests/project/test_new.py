"""What `new` finds out about a folder of images, and the project that it writes."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipeline import nets
from pipeline.files import sha256
from pipeline.params import load_params
from pipeline.project import named_net
from pipeline.project.first_params import first_params
from pipeline.project.look import Look, look_at
from pipeline.project.named_net import net_of_weights
from pipeline.project.new import FILES, TEMPLATE, new
from pipeline.settings import InputError

ROOT = Path(__file__).parents[2]
PARAMS = (TEMPLATE / "params.yaml").read_text()
DEFAULT = yaml.safe_load(PARAMS)


def images(
    root: Path, counts: dict[str, int], *, size: tuple[int, int] = (20, 16), mode: str = "RGB"
) -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{i}.png")
    return root


def chosen(folder: Path, **words: str) -> dict[str, Any]:
    """What params.yaml says, which is sound."""
    text, _ = first_params(PARAMS, look_at(folder), **words)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "params.yaml"
        file.write_text(text)
        load_params(file)
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("our flowers"), {"rose": 12, "lily": 9})


def test_a_project_has_what_dvc_and_git_need(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "my flowers"
    place.mkdir()  # an empty folder is fine
    new(place, images=flowers)
    made = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    git = {name for name in made if name.startswith(".git/")}
    assert made - git == {*FILES, "params.yaml", "README.md", ".dvc/plots/page.html"}
    assert git
    params = load_params(place / "params.yaml")
    assert (params.data.source, params.data.root, params.data.size) == ("folder", str(flowers), 16)
    assert list(params.runs) == ["alone", "kd"]
    readme = (place / "README.md").read_text()
    assert readme.startswith("# my flowers\n")
    assert str(flowers) in readme
    assert len(readme.splitlines()) <= 15
    printed = capsys.readouterr().out
    assert "21 images of 2 classes, 9 to 12 of each, about 20 x 16" in printed
    assert "handdown run" in printed
    assert subprocess.check_output(["git", "status", "--porcelain"], cwd=place)


def test_what_is_written_is_what_this_repository_has() -> None:
    """One graph and one params.yaml: the templates are links to them."""
    for target, source in FILES.items():
        assert (TEMPLATE / source).resolve() == (ROOT / target).resolve(), target
    assert (TEMPLATE / "params.yaml").resolve() == ROOT / "params.yaml"


def test_a_repository_above_is_used(flowers: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    new(tmp_path / "flowers", images=flowers)
    assert not (tmp_path / "flowers/.git").exists()


@pytest.mark.parametrize(
    ("folder", "at", "message"),
    [
        ("full", "flowers", "full is there and not empty. Name a new folder"),
        ("full/file", "flowers", "is there and not empty"),
        ("flowers/mine", "flowers", "would lie among the images"),
        ("mine", "nowhere", "--images: there is no folder"),
        ("mine", "single", "has one class alone, 'rose'"),
        ("mine", "empty", "there are no class folders in it"),
        ("mine", "piped", "--images 'piped': DVC cannot read what is in it: rose/pipe (a pipe"),
    ],
)
def test_what_cannot_become_a_project_is_refused(
    folder: str, at: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images(Path("flowers"), {"rose": 2, "lily": 2})
    images(Path("single"), {"rose": 2})
    images(Path("piped"), {"rose": 2, "lily": 2})
    os.mkfifo("piped/rose/pipe")
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as refused:
        new(Path(folder), images=Path(at))
    assert message in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_git_it_says_so(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="git is not installed"):
        new(tmp_path / "mine", images=flowers)


def test_a_wrong_network_leaves_nothing_behind(flowers: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teachers\.big\.net.*torchvision:resnet50"):
        new(tmp_path / "mine", images=flowers, teacher="torchvision:resnet5O")
    assert list(tmp_path.iterdir()) == []


def test_small_pictures_are_learned_from_zero(flowers: Path) -> None:
    found = chosen(flowers)
    assert found["teachers"]["big"]["net"] == "resnet20"
    assert "start" not in found["teachers"]["big"]
    assert found["students"] == {"small": {"net": "resnet8"}}
    assert (found["data"]["size"], found["data"]["channels"], found["augment"]["pad"]) == (16, 3, 2)
    assert found["protocol"]["shots"] == 0
    assert found["train"]["batch_size"] == 8
    assert found["train"]["epochs"] == 200
    assert found["train"]["class_balance"] == "none"


def test_photographs_get_pretrained_networks(tmp_path: Path) -> None:
    found = chosen(images(tmp_path / "raw", {"a": 3, "b": 3}, size=(300, 200)))
    assert found["teachers"]["big"]["net"] == "torchvision:resnet50"
    assert found["teachers"]["big"]["start"] == {"source": "torchvision"}
    assert found["students"]["small"]["start"] == {"source": "torchvision"}
    assert (found["data"]["size"], found["augment"]["pad"]) == (160, 5)
    assert found["train"]["lr"] == 0.001
    assert found["train"]["decay"] == "weights"
    assert found["teachers"]["big"]["train"]["lr"] == 0.0005


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    found = chosen(images(tmp_path / "raw", {"a": 3, "b": 3}, mode="L"))
    assert found["data"]["channels"] == 1


def test_one_picture_with_colours_is_enough_for_three_channels(tmp_path: Path) -> None:
    root = images(tmp_path / "x rays", {"well": 12, "ill": 9}, mode="L")
    images(root / "more", {"coloured": 1})
    (root / "more/coloured/0.png").rename(root / "ill/coloured.png")
    shutil.rmtree(root / "more")
    assert chosen(root)["data"]["channels"] == 3


def test_unequal_classes_are_balanced(tmp_path: Path) -> None:
    found = chosen(images(tmp_path / "raw", {"a": 13, "b": 2}))
    assert (found["train"]["class_balance"], found["train"]["select"]) == ("sampler", "macro_f1")


def test_images_without_a_label_are_used(tmp_path: Path) -> None:
    look = look_at(images(tmp_path / "raw", {"a": 3, "b": 3, "unlabelled": 4}))
    assert (look.counts, look.unlabelled) == ((3, 3), 4)
    assert "and 4 without a label" in look.words()
    assert chosen(tmp_path / "raw")["protocol"] == {**DEFAULT["protocol"], "shots": 0, "rest": "unused"}


def test_a_table_is_found(tmp_path: Path) -> None:
    root = images(tmp_path / "raw", {"all": 4})
    rows = ["path,label", *(f"all/{i}.png,{'ab'[i % 2]}" for i in range(4))]
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    found = chosen(root)
    assert (found["data"]["source"], found["data"]["table"]) == ("manifest", "labels.csv")


def test_a_picture_that_cannot_be_decoded_is_left_to_prepare(tmp_path: Path) -> None:
    root = images(tmp_path / "raw", {"a": 3, "b": 3})
    (root / "a/broken.png").write_bytes(b"no picture")
    assert look_at(root).counts == (4, 3)


def test_more_images_get_larger_batches_and_fewer_epochs() -> None:
    def train(labelled: int, side: int) -> tuple[int, int]:
        look = Look({"root": "x"}, ("a", "b"), (labelled // 2,) * 2, 0, side, side, False)
        settings = yaml.safe_load(first_params(PARAMS, look)[0])["train"]
        return settings["batch_size"], settings["epochs"]

    assert train(200, 200) == (16, 30)
    assert train(1000, 200) == (32, 20)
    assert train(100_000, 200) == (32, 8)
    assert train(60_000, 32) == (64, 20)


def test_comments_stay_and_lines_are_short(flowers: Path) -> None:
    look = look_at(flowers)
    text, _ = first_params(PARAMS, look)
    own = [line for line in text.splitlines() if str(flowers) not in line]
    assert max(map(len, own)) <= 110
    assert text.startswith(
        "# 21 images of 2 classes, 9 to 12 of each, about 20 x 16.\n# Classes: lily, rose\n"
    )
    comments = [line.partition("#")[2] for line in PARAMS.splitlines() if "#" in line]
    kept = [comment for comment in comments if comment in text]
    assert len(kept) > 0.9 * len(comments)


def test_weights_are_named_with_their_network(flowers: Path, tmp_path: Path) -> None:
    file = tmp_path / "big weights.pt"
    torch.save(nets.build("resnet14", 5).state_dict(), file)
    big = chosen(flowers, teacher=f"resnet14={file}")["teachers"]["big"]
    assert big["net"] == "resnet14"
    assert big["start"] == {"source": "file", "file": str(file), "sha256": sha256(file)}
    assert big["input"] == {"mean": "imagenet", "std": "imagenet"}


def test_the_network_of_a_file_of_weights_is_found(flowers: Path, tmp_path: Path) -> None:
    file = tmp_path / "big.safetensors"
    weights = nets.build("wrn_16_2", 7).state_dict()
    save_file({key: tensor for key, tensor in weights.items() if "num_batches" not in key}, file)
    assert chosen(flowers, teacher=str(file))["teachers"]["big"]["net"] == "wrn_16_2"


def test_a_network_of_torchvision_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_net, "torchvision_zoo", _few_networks())
    torch.save(nets.build("torchvision:resnet18", 1000).state_dict(), tmp_path / "mine.pt")
    assert net_of_weights(tmp_path / "mine.pt", "--teacher") == "torchvision:resnet18"


def test_weights_of_an_unknown_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_net, "torchvision_zoo", _few_networks())
    torch.save({"layer.weight": torch.zeros(3, 4)}, tmp_path / "mine.pt")
    with pytest.raises(InputError, match=r"those of no network.*--teacher NET=mine\.pt"):
        net_of_weights(tmp_path / "mine.pt", "--teacher")


def _few_networks() -> Any:
    class Zoo:
        PREFIX = "torchvision:"

        @staticmethod
        def available() -> list[str]:
            return ["resnet18"]

    return Zoo


def test_an_onnx_teacher_only_answers(flowers: Path, tmp_path: Path) -> None:
    (tmp_path / "big.onnx").write_bytes(b"a graph")
    big = chosen(flowers, teacher=str(tmp_path / "big.onnx"))["teachers"]["big"]
    assert big["net"] == f"onnx:{tmp_path}/big.onnx"
    assert big["start"] == {"source": "file", "sha256": sha256(tmp_path / "big.onnx")}
    assert big["train"] == {"epochs": 0}


@pytest.mark.parametrize("words", ["nothing.pt", "resnet8=nothing.pt", "nothing.onnx"])
def test_weights_that_are_not_there_are_refused(words: str, flowers: Path) -> None:
    with pytest.raises(InputError, match=r"^--student: there is no file 'nothing\."):
        chosen(flowers, student=words)
