"""What is true of every network of our own families."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pipeline.nets import build, names
from pipeline.nets.efficientnet_lite import EfficientNetLite
from pipeline.nets.layers import Chain

Own = Chain | EfficientNetLite

PLAIN = [name for name in names() if ":" not in name and "<" not in name]
PARAMETRIC = ["wrn_10_3", "resnet8_x0.67", "allcnn_x0.25", "mobilenet_x0.3", "mobilenetv2_x1.4"]
# they have more of the same blocks than a quicker member of their family
SLOW = {"resnet26", "resnet32", "resnet44", "resnet56", "resnet110", "resnet32x4", "wrn_40_1", "wrn_40_2"}
SLOW |= {"vgg11", "vgg13", "vgg16", "vgg19"}
SLOW |= {"mobilenet_x0.75", "mobilenet_x0.5", "mobilenetv2_x1.0", "allcnn"}
SLOW |= {"efficientnet_lite1", "efficientnet_lite2"}
LINEAR = (
    "mobilenetv2",
    "shufflenetv2",
    "efficientnet_lite",
)  # their taps are sums or shuffles, not activations


def own(name: str, channels: int = 3) -> Own:
    torch.manual_seed(0)
    net = build(name, 5, channels)
    assert isinstance(net, Own)
    return net.eval()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PLAIN + PARAMETRIC
    ],
)
def name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def net(name: str) -> Own:
    """In eval mode. A test that would change it takes a copy."""
    return own(name)


def images(batch: int, size: int, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


@contextmanager
def watching(net: nn.Module) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Path, input and output of every call of a module, in the order in which the calls end."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def note(path: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        calls.append((path, args[0], output))

    hooks = [module.register_forward_hook(partial(note, path)) for path, module in net.named_modules()]
    with torch.no_grad():
        yield calls
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_logits_have_one_column_for_each_class_at_every_size(net: Own) -> None:
    for size in (8, 16, 32):
        logits = net(images(2, size))
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()
        difference = (logits[0] - logits[1]).abs().max()
        assert difference > 1e-4 * logits.abs().max()  # images differ even in an untrained network


@torch.no_grad()
def test_grey_images_work_too(name: str) -> None:
    grey = own(name, channels=1)
    for size in (8, 32):
        assert grey(images(2, size, channels=1)).shape == (2, 5)


@torch.no_grad()
def test_a_small_batch_of_any_size_works_in_training(net: Own) -> None:
    training = copy.deepcopy(net).train()
    assert training(images(2, 8)).shape == (2, 5)
    assert training(images(2, 19)).shape == (2, 5)


@torch.no_grad()
def test_the_answer_to_an_image_does_not_depend_on_the_batch(net: Own) -> None:
    batch = images(3, 8)
    together, single = net(batch), torch.cat([net(image[None]) for image in batch])
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-5 * together.abs().max().item())


def test_every_layer_runs_once(net: Own) -> None:
    with watching(net) as calls:
        net(images(1, 8))
    leaves = {path for path, module in net.named_modules() if not any(module.children())}
    assert Counter(path for path, _, _ in calls if path in leaves) == dict.fromkeys(leaves, 1)


def test_taps_name_shrinking_maps_from_shallow_to_deep(name: str, net: Own) -> None:
    assert list(net.taps) == ["stem", *(f"stage{n}" for n in range(1, len(net.taps)))]
    assert len(net.taps) >= 4
    with watching(net) as calls:
        net(images(2, 32))
    tapped = [(path, output) for path, _, output in calls if path in net.taps.values()]
    assert [path for path, _ in tapped] == list(net.taps.values())
    assert all(
        output.ndim == 4 and len(output) == 2 and output.shape[2] == output.shape[3] for _, output in tapped
    )
    sizes = [output.shape[2] for _, output in tapped]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    for tap, path in net.taps.items():
        if tap == "stem" or not name.startswith(LINEAR):
            assert isinstance(net.get_submodule(path), nn.ReLU | nn.LeakyReLU | nn.ReLU6), path


def test_the_classifier_is_linear_on_the_pooled_embedding(net: Own) -> None:
    classifier = net.get_submodule(net.classifier)
    assert isinstance(classifier, nn.Linear)
    with watching(net) as calls:
        logits = net(images(2, 16))
    [(embedding, output)] = [(read, output) for path, read, output in calls if path == net.classifier]
    assert embedding.shape == (2, classifier.in_features)
    assert torch.equal(output, logits)


def test_every_parameter_gets_a_gradient(net: Own) -> None:
    training = copy.deepcopy(net).train()
    torch.autograd.backward(nn.functional.cross_entropy(training(images(3, 16)), torch.tensor([0, 1, 2])))
    for path, parameter in training.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        if parameter.ndim > 1:  # the bias of a convolution before batch norm has a gradient of 0
            assert parameter.grad.abs().sum() > 0, path


def test_nothing_works_in_place(net: Own) -> None:
    assert not [path for path, module in net.named_modules() if getattr(module, "inplace", False)]


def test_the_signal_neither_dies_nor_explodes(net: Own) -> None:
    """Before any step, in train mode, the values of every map spread about as widely as the pixels."""
    training = copy.deepcopy(net).train()
    with watching(training) as calls:
        training(images(8, 16))
    spread = {path: output.std().item() for path, _, output in calls if path in net.taps.values()}
    assert all(0.1 < value < 10 for value in spread.values()), spread


# torch announces the end of TorchScript, which this project exports on purpose
@pytest.mark.filterwarnings("ignore:.*torch.jit")
@torch.no_grad()
def test_a_trace_gives_the_same_logits_for_another_batch(net: Own) -> None:
    traced = torch.jit.trace(net, images(2, 8), check_trace=False)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(images(5, 8)), net(images(5, 8)))


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_x0.25"])
def test_the_seed_determines_the_network(name: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in build(name, 5).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
