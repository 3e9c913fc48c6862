"""Networks of timm."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.nets import build
from pipeline.nets.start import StartConfig, load_start
from pipeline.settings import InputError
from pipeline.taps.tapped import Tapped

TINY = "timm:test_resnet.r160_in1k"
TIMM = StartConfig(source="timm")
FIELD = "students.small.start"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet.r160_in1k", "test_vit", "test_convnext"])
def test_a_network_has_the_given_classes_and_channels_and_its_maps_are_found(
    name: str, channels: int
) -> None:
    net, images = build(f"timm:{name}", 7, channels).eval(), torch.randn(2, channels, 160, 160)
    tapped = Tapped(net, images[:1])
    with torch.no_grad():
        answer = tapped(images)
    assert answer.logits.shape == (2, 7)
    assert answer.logits.isfinite().all()
    assert answer.maps
    assert answer.pooled.ndim == 2
    assert not [path for path, module in net.named_modules() if getattr(module, "inplace", False)]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet81", "timm:resnet18"),
        ("resnet18.a1", "timm:resnet18.a1_in1k"),
        ("", "timm:"),
        ("hf-hub:a/b", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=r"These are the nearest; .* prints all") as error:
        build(f"timm:{name}", 5)
    message = str(error.value)
    assert message.startswith(f"net: there is no 'timm:{name}'")
    assert near in message.partition("Choose one of")[2]
    assert message.count("timm:") < 12


def test_without_timm_the_command_to_install_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"^net: 'timm:resnet18' .* not installed.*uv pip install 'timm>="):
        build("timm:resnet18", 5)
    assert build("resnet8", 5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache folder of the hub, without internet access."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def weights(hub: Path) -> dict[str, Tensor]:
    """A substitute for the file of TINY in the cache of the hub."""
    torch.manual_seed(1)
    state = build(TINY, 1000).state_dict()
    repository = hub / "models--timm--test_resnet.r160_in1k"
    (repository / "snapshots" / "1234").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1234")
    save_file(state, repository / "snapshots" / "1234" / "model.safetensors")
    return state


def taken(net: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    """The names of the tensors that are those of the weights."""
    own = net.state_dict()
    return {
        key for key in own if own[key].shape == weights[key].shape and torch.equal(own[key], weights[key])
    }


def test_weights_of_the_hub_are_loaded(weights: dict[str, Tensor]) -> None:
    net = build(TINY, 1000)
    assert load_start(net, TIMM, name=TINY, field=FIELD) == ()
    assert taken(net, weights) == set(weights)


def test_a_classifier_and_a_first_layer_that_do_not_fit_stay_random(weights: dict[str, Tensor]) -> None:
    net = build(TINY, 5)
    assert load_start(net, TIMM, name=TINY, field=FIELD) == ("fc.weight", "fc.bias")
    assert taken(net, weights) == set(weights) - {"fc.weight", "fc.bias"}
    grey = build(TINY, 1000, 1)
    assert load_start(grey, TIMM, name=TINY, field=FIELD) == ("conv1.0.weight",)
    assert taken(grey, weights) == set(weights) - {"conv1.0.weight"}


def test_weights_that_cannot_be_had_say_where_they_are(hub: Path) -> None:
    net = build(TINY, 5)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(InputError, match=rf"^{FIELD}\.source: timm's weights for test_resnet") as error:
        load_start(net, TIMM, name=TINY, field=FIELD)
    assert "https://huggingface.co/timm/test_resnet.r160_in1k" in str(error.value)
    assert "source: file" in str(error.value)
    assert taken(net, before) == set(before)


def test_a_network_without_weights_says_so() -> None:
    name = "timm:test_resnet"
    with pytest.raises(InputError, match=r"timm has no weights for darknet17\. Write source: random"):
        load_start(build(name, 5), TIMM, name="timm:darknet17", field=FIELD)


def test_timm_has_no_weights_for_our_own_networks() -> None:
    with pytest.raises(InputError, match=r"timm:NAME networks only, and this one is 'resnet8'"):
        load_start(build("resnet8", 5), TIMM, name="resnet8", field=FIELD)
