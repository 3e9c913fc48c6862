"""Where a network's first weights come from."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.nets import build
from pipeline.nets.start import StartConfig, check_start, keep_outputs, known_classes, load_start
from pipeline.settings import InputError

NAME = "resnet8"
FIELD = "teachers.big.start"


def net_of(seed: int, *, name: str = NAME, classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, classes)


def config(file: Path) -> StartConfig:
    return StartConfig(source="file", file=str(file), sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def saved(folder: Path, content: object, name: str = "weights.pt") -> Path:
    file = folder / name
    torch.save(content, file)
    return file


def refused(net: nn.Module, start: StartConfig, *, message: str, name: str = NAME) -> str:
    """The error message. The network must be as it was."""
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        load_start(net, start, name=name, field=FIELD)
    same(net.state_dict(), before)
    assert str(error.value).startswith(FIELD)
    return str(error.value)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_random_changes_nothing() -> None:
    net = net_of(0)
    assert set(load_start(net, StartConfig(), name=NAME, field=FIELD)) == set(net.state_dict())
    same(net.state_dict(), net_of(0).state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "model", "module.", "_orig_mod.", "all at once", "old norms"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_state_dict_is_loaded_from_any_wrapper(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any], suffix: str
) -> None:
    source, net = net_of(1), net_of(2)
    start = config(saved(tmp_path, wrap(source.state_dict()), f"weights{suffix}"))
    assert load_start(net, start, name=NAME, field=FIELD) == ()
    same(net.state_dict(), source.state_dict())


def test_safetensors_are_loaded(tmp_path: Path) -> None:
    source, net = net_of(1), net_of(2)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    assert load_start(net, config(tmp_path / "weights.safetensors"), name=NAME, field=FIELD) == ()
    same(net.state_dict(), source.state_dict())


def test_half_precision_becomes_the_precision_of_the_network(tmp_path: Path) -> None:
    source, net = net_of(1), net_of(2)
    load_start(net, config(saved(tmp_path, source.half().state_dict())), name=NAME, field=FIELD)
    same(
        net.state_dict(),
        {
            key: value if value.dtype == torch.int64 else value.float()
            for key, value in source.state_dict().items()
        },
    )
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", [NAME, "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1"])
def test_only_a_classifier_for_other_classes_stays_random(tmp_path: Path, name: str) -> None:
    source, net = net_of(1, name=name, classes=8), net_of(2, name=name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random = load_start(net, config(saved(tmp_path, source.state_dict())), name=name, field=FIELD)
    assert len(random) == 2
    after, given = net.state_dict(), source.state_dict()
    same({key: after[key] for key in random}, {key: before[key] for key in random})
    same(
        {key: after[key] for key in after if key not in random},
        {key: given[key] for key in given if key not in random},
    )


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("resnet14", 5, "holds 92 tensors; the network has 56\\. 36 only in the file: stage1.1"),
        (
            "resnet8x4",
            5,
            "of another shape: stem.0.weight \\(there 32x3x3x3, here 16x3x3x3\\), .*, \\.\\.\\.",
        ),
        ("vgg8", 5, "missing in the file: stage1.0.conv1.0.weight.* only in the file: stem.0.bias"),
        ("resnet8x4", 9, "of another shape"),
    ],
)
def test_another_architecture_is_refused_with_names_and_numbers(
    tmp_path: Path, name: str, classes: int, message: str
) -> None:
    file = saved(tmp_path, net_of(1, name=name, classes=classes).state_dict())
    given = refused(net_of(2), config(file), message=message)
    assert str(file) in given
    assert "does not fit resnet8" in given


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    state = net_of(1).state_dict()
    del state["fc.bias"]
    refused(net_of(2), config(saved(tmp_path, state)), message="1 missing in the file: fc.bias\\.")


def test_only_the_classifier_may_differ_and_only_in_its_classes(tmp_path: Path) -> None:
    state = net_of(1).state_dict()
    refused(
        net_of(2),
        config(saved(tmp_path, state | {"fc.weight": torch.zeros(5, 63)})),
        message="fc.weight \\(there 5x63, here 5x64\\)",
    )
    refused(
        net_of(2),
        config(saved(tmp_path, state | {"stem.0.weight": torch.zeros(17, 3, 3, 3)})),
        message="stem.0.weight",
    )


@pytest.mark.parametrize("given", ["", "0" * 64])
def test_the_true_hash_is_printed_to_be_pasted(tmp_path: Path, given: str) -> None:
    file = saved(tmp_path, net_of(1).state_dict())
    message = refused(net_of(2), StartConfig(source="file", file=str(file), sha256=given), message="sha256")
    lines = [line.strip() for line in message.splitlines()]
    assert f"sha256: {hashlib.sha256(file.read_bytes()).hexdigest()}" in lines


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    file = saved(tmp_path, net_of(1).state_dict())
    start = config(file)
    saved(tmp_path, net_of(3).state_dict())
    refused(net_of(2), start, message="belongs to another file")


class Evil:
    """It writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, plain_pickle: bool) -> None:
    mark = tmp_path / "it ran"
    content = net_of(1).state_dict() | {"evil": Evil(mark)}
    if plain_pickle:
        file = tmp_path / "weights.pt"
        file.write_bytes(pickle.dumps(dict(content), protocol=2))
    else:
        file = saved(tmp_path, content)
    refused(
        net_of(2), config(file), message="could run code and so is refused.*torch.save\\(net.state_dict\\(\\)"
    )
    assert not mark.exists()
    if not plain_pickle:
        torch.load(file, weights_only=False)  # the file does run code
        assert mark.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    refused(net_of(2), config(saved(tmp_path, net_of(1))), message="is not a plain state dict")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        saved(tmp_path, net_of(1).state_dict())
    else:
        save_file(net_of(1).state_dict(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    refused(net_of(2), config(file), message="damaged")


@pytest.mark.parametrize("noise", [b"hello", b"\x80\x02}q\x00.", bytes(range(256)) * 8])
def test_any_other_bytes_are_refused(tmp_path: Path, noise: bytes) -> None:
    for suffix in (".pt", ".safetensors"):
        file = tmp_path / f"weights{suffix}"
        file.write_bytes(noise)
        refused(net_of(2), config(file), message="damaged|holds no state dict")


@pytest.mark.parametrize(
    "content", [{}, [torch.zeros(1)], torch.zeros(3), {"state_dict": {}}, {"epoch": 3}, {1: torch.zeros(1)}]
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    refused(net_of(2), config(saved(tmp_path, content)), message="holds no state dict")


def test_a_missing_file_a_folder_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    refused(
        net_of(2),
        StartConfig(source="file", file=str(tmp_path / "no.pt")),
        message="cannot be opened \\(No such file.*relative path starts at",
    )
    (tmp_path / "folder.pt").mkdir()
    refused(
        net_of(2),
        StartConfig(source="file", file=str(tmp_path / "folder.pt")),
        message="cannot be opened \\(Is a directory",
    )
    refused(
        net_of(2),
        StartConfig(source="file", file="weights.onnx"),
        message="must end in one of .safetensors, .pt, .pth",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"file": "weights.pt"}, "source is 'random', but a file is given"),
        ({"source": "torchvision", "sha256": "00"}, "source is 'torchvision', but a file is given"),
        ({"source": "timm", "file": "weights.pt"}, "source is 'timm', but a file is given"),
        ({"source": "imagenet"}, "source"),
        ({"sources": "file"}, "sources"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StartConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("net", "start", "message"),
    [
        ("resnet8", {"source": "file"}, r"\.source is 'file', but `file` is empty: name a state dict"),
        ("resnet8", {"source": "torchvision"}, r"torchvision:NAME networks only, and this one is 'resnet8'"),
        ("torchvision:resnet18", {"source": "timm"}, "timm:NAME networks only"),
        ("timm:resnet18", {"source": "torchvision"}, "torchvision:NAME networks only"),
        ("onnx:teacher.onnx", {}, r"onnx:teacher\.onnx is what its own file holds"),
        ("onnx:teacher.onnx", {"source": "file", "file": "teacher.onnx"}, "without `file`"),
    ],
)
def test_a_start_that_does_not_fit_the_network_is_refused_before_anything_is_opened(
    net: str, start: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        check_start(StartConfig.model_validate(start), net=net, field=FIELD)
    assert str(error.value).startswith(FIELD)


@pytest.mark.parametrize(
    ("net", "start"),
    [
        ("resnet8", {}),
        ("resnet8", {"source": "file", "file": "weights.pt"}),
        ("torchvision:resnet18", {"source": "torchvision"}),
        ("timm:resnet18", {"source": "timm"}),
        ("timm:resnet18", {"source": "file", "file": "weights.pt"}),
        ("onnx:teacher.onnx", {"source": "file", "sha256": "00"}),
    ],
)
def test_a_start_that_fits_the_network_is_taken(net: str, start: dict[str, str]) -> None:
    check_start(StartConfig.model_validate(start), net=net, field=FIELD)


CUT = ["resnet20", "torchvision:squeezenet1_1", "torchvision:mobilenet_v2", "efficientnet_lite0"]
CUT += ["timm:test_resnet", "timm:test_efficientnet", "timm:test_vit", "timm:test_convnext"]


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("positions", [[4, 1], [0]])
def test_outputs_are_cut_in_order_and_the_rest_fits_a_network_of_fewer_classes(
    name: str, positions: list[int]
) -> None:
    net, images = net_of(1, name=name).eval().requires_grad_(False), torch.randn(2, 3, 160, 160)
    whole = net(images)
    keep_outputs(net, positions)
    torch.testing.assert_close(net(images), whole[:, positions])
    assert not any(parameter.requires_grad for parameter in net.parameters())
    smaller = net_of(2, name=name, classes=len(positions)).eval()
    smaller.load_state_dict(net.state_dict())
    assert torch.equal(smaller(images), net(images))
    assert _counts(net) == _counts(smaller)


def _counts(net: nn.Module) -> list[object]:
    """What modules say about how many outputs they have."""
    names = ("num_classes", "out_features", "out_channels")
    return [getattr(module, name, None) for module in net.modules() for name in names]


def test_a_network_that_was_cut_can_be_trained_on() -> None:
    net = net_of(1).train()
    keep_outputs(net, [2, 0])
    torch.autograd.backward(net(torch.randn(2, 3, 8, 8)).square().sum())
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_classes_are_known_for_the_weights_of_torchvision_alone() -> None:
    known = known_classes("torchvision:resnet18", "torchvision")
    assert known is not None
    assert (len(known), known[0], known[-1]) == (1000, "tench", "toilet tissue")
    for net, source in (("torchvision:resnet18", "file"), ("timm:resnet18", "timm"), ("resnet8", "random")):
        assert known_classes(net, source) is None


@pytest.mark.parametrize("name", [NAME, "torchvision:squeezenet1_1"])
def test_weights_without_a_classifier_leave_it_random(tmp_path: Path, name: str) -> None:
    source, net = net_of(1, name=name), net_of(2, name=name)
    given = {key: value for key, value in source.state_dict().items() if key not in classifier_of(name)}
    random = load_start(net, config(saved(tmp_path, given)), name=name, field=FIELD)
    assert random == classifier_of(name)
    after = net.state_dict()
    same({key: after[key] for key in given}, given)
    same({key: after[key] for key in random}, {key: net_of(2, name=name).state_dict()[key] for key in random})


def classifier_of(name: str) -> tuple[str, str]:
    layer = "fc" if name == NAME else "classifier.1"
    return f"{layer}.weight", f"{layer}.bias"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache folder of torch, without internet access."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, hub: Path) -> tuple[dict[str, Tensor], Path]:
    """A substitute for torchvision's file of squeezenet1_1, named after its own hash."""
    from torchvision.models import SqueezeNet1_1_Weights

    hub.mkdir(parents=True)
    state = net_of(1, name="torchvision:squeezenet1_1", classes=1000).state_dict()
    file = saved(hub, state)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    file = file.rename(hub / f"squeezenet1_1-{digest}.pth")
    monkeypatch.setattr(
        SqueezeNet1_1_Weights.DEFAULT.value, "url", f"https://download.pytorch.org/models/{file.name}"
    )
    return state, file


SQUEEZENET = "torchvision:squeezenet1_1"
TORCHVISION = StartConfig(source="torchvision")


def test_weights_of_torchvision_are_loaded(weights: tuple[dict[str, Tensor], Path]) -> None:
    net = net_of(2, name=SQUEEZENET, classes=1000)
    assert load_start(net, TORCHVISION, name=SQUEEZENET, field=FIELD) == ()
    same(net.state_dict(), weights[0])


def test_weights_of_torchvision_leave_a_classifier_for_other_classes_random(
    weights: tuple[dict[str, Tensor], Path],
) -> None:
    net = net_of(2, name=SQUEEZENET)
    assert load_start(net, TORCHVISION, name=SQUEEZENET, field=FIELD) == (
        "classifier.1.weight",
        "classifier.1.bias",
    )
    assert torch.equal(net.state_dict()["features.0.weight"], weights[0]["features.0.weight"])
    assert torch.equal(
        net.state_dict()["classifier.1.weight"],
        net_of(2, name=SQUEEZENET).state_dict()["classifier.1.weight"],
    )


def test_weights_of_torchvision_leave_a_first_layer_for_other_channels_random(
    weights: tuple[dict[str, Tensor], Path],
) -> None:
    net = build(SQUEEZENET, 1000, 1)
    assert load_start(net, TORCHVISION, name=SQUEEZENET, field=FIELD) == ("features.0.weight",)
    after = net.state_dict()
    others = {key: value for key, value in weights[0].items() if key != "features.0.weight"}
    same({key: after[key] for key in others}, others)


def test_a_file_for_other_channels_is_refused(weights: tuple[dict[str, Tensor], Path]) -> None:
    start = config(weights[1])
    message = "features.0.weight \\(there 64x3x3x3, here 64x1x3x3\\)"
    refused(build(SQUEEZENET, 1000, 1), start, message=message, name=SQUEEZENET)


def test_a_damaged_torchvision_file_is_refused(weights: tuple[dict[str, Tensor], Path]) -> None:
    weights[1].write_bytes(weights[1].read_bytes()[:-100])
    refused(net_of(2, name=SQUEEZENET), TORCHVISION, message=f"{weights[1]} is damaged", name=SQUEEZENET)


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(hub: Path) -> None:
    message = refused(net_of(2, name=SQUEEZENET), TORCHVISION, message="no route to host", name=SQUEEZENET)
    assert str(hub / "squeezenet1_1-b8a52dc0.pth") in message
    assert "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth" in message
    assert "source: file" in message


def test_torchvision_has_no_weights_for_our_own_networks() -> None:
    refused(net_of(2), TORCHVISION, message="torchvision:NAME networks only, and this one is 'resnet8'")
