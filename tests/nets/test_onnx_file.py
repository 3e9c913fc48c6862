"""A teacher in an ONNX file."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from world import CLASSES, World

from pipeline import checkpoint, methods
from pipeline.nets import build
from pipeline.nets.onnx_file import OnnxNet
from pipeline.nets.start import StartConfig, keep_outputs, load_start
from pipeline.runs.overview import overview
from pipeline.settings import InputError
from pipeline.taps.tapped import Tapped

FIELD = "teachers.big.start"
READ_LOGITS = {"ce", "dist", "dkd", "eskd", "kd", "mlkd", "ttm", "wttm"}  # others read more of the teacher


def graph_of(
    classes: int = 7,
    *,
    image: tuple[Any, ...] = ("batch", 3, "height", "width"),
    logits: tuple[Any, ...] | None = None,
    kind: int = TensorProto.FLOAT,
    operator: str = "Relu",
    more: tuple[str, ...] = (),
) -> bytes:
    """A convolution, an activation, a mean and a linear layer, with the weights of `plain`."""
    net = plain(classes)
    weights = [
        helper.make_tensor(name.replace(".", "_"), TensorProto.FLOAT, value.shape, value.flatten().tolist())
        for name, value in net.state_dict().items()
    ]
    nodes = [
        helper.make_node("Conv", ["image", "0_weight", "0_bias"], ["a"]),
        helper.make_node(operator, ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "4_weight", "4_bias"], ["logits"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info(name, kind, image) for name in ("image", *more)]
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits or ("batch", classes))
    graph = helper.make_graph(nodes, "teacher", inputs, [answer], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def plain(classes: int = 7) -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(6, classes)).requires_grad_(False)


def loaded(folder: Path, content: bytes, classes: int = 7, channels: int = 3) -> nn.Module:
    file = folder / "teacher.onnx"
    file.write_bytes(content)
    name = f"onnx:{file}"
    net = build(name, classes, channels)
    start = StartConfig(source="file", sha256=hashlib.sha256(content).hexdigest())
    assert load_start(net, start, name=name, field=FIELD) == ()
    return net.eval()


def test_it_answers_as_the_network_in_the_file(tmp_path: Path) -> None:
    net, images = loaded(tmp_path, graph_of()), torch.randn(5, 3, 9, 11)
    torch.testing.assert_close(net(images), plain()(images))
    torch.testing.assert_close(net(images.double()), plain()(images))
    assert not list(net.parameters())


@pytest.mark.slow
def test_a_network_that_torch_exports_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build("resnet8", 4).eval()
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 3, 16, 16),),
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "exported.onnx")
    taken = loaded(tmp_path, (tmp_path / "exported.onnx").read_bytes(), 4)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(taken(images), net(images), rtol=1e-4, atol=1e-4)


def test_it_runs_on_as_many_threads_as_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    net = loaded(tmp_path, graph_of())
    assert isinstance(net, OnnxNet)
    assert net._graph is not None
    options = net._graph.session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert net._graph.session.get_providers() == ["CPUExecutionProvider"]
    assert isinstance(net._graph.session, onnxruntime.InferenceSession)


def test_building_opens_no_file_and_an_empty_network_cannot_answer() -> None:
    net = build("onnx:no/such/file.onnx", 4)
    assert {name: value.tolist() for name, value in net.state_dict().items()} == {
        "content": [],
        "outputs": [0, 1, 2, 3],
    }
    with pytest.raises(AssertionError, match="load a file or a state dict first"):
        net(torch.zeros(1, 3, 8, 8))


def test_outputs_are_cut_and_ordered(tmp_path: Path) -> None:
    net, images = loaded(tmp_path, graph_of()), torch.randn(2, 3, 8, 8)
    whole = net(images)
    keep_outputs(net, [5, 0])
    assert torch.equal(net(images), whole[:, [5, 0]])
    keep_outputs(net, [1])
    assert torch.equal(net(images), whole[:, [0]])


def test_it_is_saved_and_built_again_as_any_network(tmp_path: Path) -> None:
    net, images = loaded(tmp_path, graph_of()), torch.randn(2, 3, 8, 8)
    keep_outputs(net, [6, 2, 3])
    facts = {"net": "onnx:teacher.onnx", "classes": ["a", "b", "c"], "channels": 3}
    checkpoint.save_network(tmp_path / "saved", net.state_dict(), facts)
    (tmp_path / "teacher.onnx").unlink()
    again, _ = checkpoint.load_network(tmp_path / "saved")
    assert torch.equal(again(images), net(images))
    with pytest.raises(RuntimeError, match="size mismatch for outputs"):
        build("onnx:teacher.onnx", 4).load_state_dict(net.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*content"):
        build("onnx:teacher.onnx", 3).load_state_dict({"outputs": torch.arange(3)})


def test_bytes_in_a_saved_network_are_checked_too(tmp_path: Path) -> None:
    state = loaded(tmp_path, graph_of()).state_dict()
    state["content"] = state["content"][:-9]
    with pytest.raises(InputError, match="is not a plain ONNX network"):
        build("onnx:teacher.onnx", 7).load_state_dict(state)


def with_data_elsewhere() -> bytes:
    model = onnx.load_from_string(graph_of())
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is not a plain ONNX network.*Nothing of it was run.*external_data=False"),
        (with_data_elsewhere(), "field 1[34] of a message 'tensor' is not allowed"),
        (graph_of(operator="Add"), r"cannot be run \(.*\)\. Export the network again"),
        (graph_of(operator="Hardmax"), "operator 'Hardmax', which is not allowed"),
        (graph_of(5), "gives 5 numbers for each image, but there are 7 classes. Name a class for each"),
        (graph_of(image=(1, 3, 8, 8)), "takes 'image' \\(float32, 1 x 3 x 8 x 8\\).*with a free N"),
        (graph_of(image=("n", 1, 8, 8)), "n x 1 x 8 x 8.*It must take float32 N x 3 x height x width"),
        (graph_of(image=("n", 8, 8)), "\\(float32, n x 8 x 8\\)"),
        (graph_of(kind=TensorProto.UINT8), "'image' \\(not float32, batch x 3 x height x width\\)"),
        (graph_of(more=("other",)), "'image' .* and 'other' "),
        (graph_of(logits=(4, 7)), "gives 'logits' \\(float32, 4 x 7\\)"),
        (graph_of(logits=("batch", "classes")), "gives 'logits' \\(float32, batch x classes\\)"),
        (graph_of(logits=("batch", 7, 1)), "batch x 7 x 1"),
    ],
)
def test_another_file_is_refused_with_what_it_has(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        loaded(tmp_path, content)
    assert str(error.value).startswith(f"{FIELD}: {tmp_path}/teacher.onnx ")


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    net, images = loaded(tmp_path, graph_of()), torch.randn(2, 3, 8, 8)
    before = net(images)
    assert isinstance(net, OnnxNet)
    for content in (b"hello", graph_of(5)):
        with pytest.raises(InputError):
            net.take(content)
        assert torch.equal(net(images), before)
        assert bytes(net.content.tolist()) == graph_of()


def test_images_of_another_size_are_refused_with_the_size_that_fits(tmp_path: Path) -> None:
    net = loaded(tmp_path, graph_of(image=("batch", 3, 8, 8)))
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    with pytest.raises(
        InputError, match=r"^/.*onnx takes images of batch x 3 x 8 x 8, and was given 2 x 3 x 16 x 16.*size"
    ):
        Tapped(net, torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({}, f"{FIELD}: onnx:.* is what its own file holds. Write start: {{source: file, sha256: ...}}"),
        ({"source": "file", "file": "other.onnx"}, "without `file`"),
        ({"source": "torchvision"}, f"{FIELD}.source: torchvision has weights for torchvision:NAME networks"),
        ({"source": "file"}, f"{FIELD}.sha256 is missing"),
        ({"source": "file", "sha256": "00"}, f"{FIELD}.sha256 belongs to another file"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(tmp_path: Path, start: dict[str, str], message: str) -> None:
    (tmp_path / "teacher.onnx").write_bytes(graph_of())
    name = f"onnx:{tmp_path}/teacher.onnx"
    with pytest.raises(InputError, match=message) as error:
        load_start(build(name, 7), StartConfig.model_validate(start), name=name, field=FIELD)
    if "sha256 " in message:
        assert f"sha256: {hashlib.sha256(graph_of()).hexdigest()}" in str(error.value)


def test_a_missing_file_and_a_missing_name_are_refused() -> None:
    start = StartConfig(source="file", sha256="00")
    with pytest.raises(InputError, match=r"^teachers\.big\.net: no/file\.onnx cannot be opened"):
        load_start(build("onnx:no/file.onnx", 7), start, name="onnx:no/file.onnx", field=FIELD)
    with pytest.raises(InputError, match="'onnx:' names no file"):
        build("onnx:", 7)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world whose teacher is an ONNX file."""
    world, net = World.make(), loaded(tmp_path, graph_of(CLASSES), CLASSES)
    world.teacher = Tapped(net, world.step(2).images)
    return world


@pytest.mark.parametrize("name", methods.names())
def test_a_method_reads_logits_or_says_why_it_cannot_use_an_onnx_teacher(world: World, name: str) -> None:
    def loss() -> Tensor:
        method, step = world.method(name), world.step()
        weighted = [term for phase in method.phases(world.student) for term in phase.loss(step).values()]
        return torch.stack([term.value * term.weight for term in weighted]).sum()

    if name in READ_LOGITS:
        torch.autograd.backward(loss())
    else:
        with pytest.raises(InputError, match=r"ONNX file, which gives logits alone|OnnxNet has 0") as error:
            loss()
        assert "such as kd" in str(error.value)


def test_kd_with_the_file_trains_as_kd_with_the_network(tmp_path: Path) -> None:
    def weights(teacher: Callable[[], nn.Module]) -> Tensor:
        world = World.make()
        world.teacher = Tapped(teacher().eval(), world.step(2).images)
        world.fit(world.method("kd"))
        return torch.cat([parameter.flatten() for parameter in world.student.net.parameters()])

    of_file = weights(lambda: loaded(tmp_path, graph_of(CLASSES), CLASSES))
    torch.testing.assert_close(of_file, weights(lambda: plain(CLASSES)), rtol=1e-3, atol=1e-4)
    assert (of_file - weights(lambda: plain(CLASSES).apply(halved))).abs().max() > 1e-3


def halved(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight.mul_(0.5)


def test_a_method_that_differentiates_the_logits_is_refused(world: World) -> None:
    step = world.step()
    step.images.requires_grad_()
    with pytest.raises(
        InputError, match=r"logits without gradients.*does not differentiate the teacher, such as kd"
    ):
        _ = step.teacher


def test_the_table_shows_the_logits_alone(world: World) -> None:
    step = world.step(2)
    rows = {row[0]: row[1:] for row in overview(step.student, step.teacher, [("logits", "logits")])}
    assert list(rows) == ["stem", "stage1", "stage2", "stage3", "pooled", "logits"]
    assert [rows["stage2"][1], rows["pooled"][1], rows["logits"][1]] == ["", "", "3"]
