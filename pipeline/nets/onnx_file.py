"""`onnx:FILE`: a teacher that only answers. Nothing in it can be trained, matched or differentiated.

The file takes normalised float32 images N x C x H x W, with N free, and gives logits N x classes first. It is
checked as the files of bundles are: known operators only, and no data in other files.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.settings import InputError

if TYPE_CHECKING:  # what reads and runs ONNX is loaded for a network of this kind only
    from pipeline.deploy.onnx_graph import Value

PREFIX = "onnx:"
NAMES = ("onnx:<file>",)
FLOAT = 1  # float32 in ONNX


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if not name.startswith(PREFIX):
        return None
    if name == PREFIX:
        raise InputError("net: 'onnx:' names no file. Write its path behind it: onnx:weights/teacher.onnx.")
    return OnnxNet(name.removeprefix(PREFIX), classes, channels)


class OnnxNet(nn.Module):
    """Empty until a file or a state dict is loaded. Two buffers hold all that it is."""

    gives_logits_alone = True
    content: Tensor  # the bytes of the file
    outputs: Tensor  # which of the file's outputs are the classes, in this order

    def __init__(self, file: str, classes: int, channels: int) -> None:
        super().__init__()
        self.file, self.channels = file, channels
        self.register_buffer("content", torch.empty(0, dtype=torch.uint8))
        self.register_buffer("outputs", torch.arange(classes))
        self._graph: _Graph | None = None

    def forward(self, images: Tensor) -> Tensor:
        assert self._graph is not None, "load a file or a state dict first"
        if images.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"{self.file} is an ONNX file, which gives logits without gradients. Choose a method that "
                "does not differentiate the teacher, such as kd, or a teacher with weights."
            )
        logits = self._graph(images.detach().float().cpu())
        return logits.to(images.device)[:, self.outputs]

    def take(self, content: bytes) -> None:
        """Become the network in a file, which must have an output for each class."""
        graph = _Graph(content, self.file, self.channels)
        if graph.face.classes != len(self.outputs):
            raise InputError(
                f"{self.file} gives {graph.face.classes} numbers for each image, but there are "
                f"{len(self.outputs)} classes. Name a class for each number, in their order."
            )
        self._graph, self.content = graph, torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        content: Tensor | None = state_dict.get(f"{prefix}content")
        if content is not None:
            self._graph = _Graph(content.cpu().numpy().tobytes(), self.file, self.channels)
            self.content = self.content.new_empty(content.shape)  # files differ in their length
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Face(NamedTuple):
    """What a file takes and gives."""

    image: str
    shape: tuple[int | str, ...]  # of the image
    logits: str
    classes: int


class _Graph:
    """A checked file, ready to run on the CPU."""

    def __init__(self, content: bytes, file: str, channels: int) -> None:
        self.file, self.face = file, _face(content, file, channels)
        self.session = _session(content, file)

    def __call__(self, images: Tensor) -> Tensor:
        try:
            [logits] = self.session.run([self.face.logits], {self.face.image: images.numpy()})
        except Exception as error:  # onnxruntime's own types
            raise InputError(
                f"{self.file} takes images of {_shown(self.face.shape)}, and was given "
                f"{_shown(images.shape)} ({_reason(error)}). Give the network the side that it takes: "
                "input: {size: ...}."
            ) from error
        return torch.from_numpy(logits)


def _face(content: bytes, file: str, channels: int) -> _Face:
    from pipeline.deploy import onnx_graph
    from pipeline.deploy.read_bundle import BundleError

    try:
        graph = onnx_graph.read(content, name=file)
    except BundleError as error:
        raise InputError(
            f"{error} Export the network as one file of plain operators: "
            "torch.onnx.export(..., external_data=False)."
        ) from error
    for (image, given), (logits, answer) in zip(graph.inputs.items(), graph.outputs.items(), strict=False):
        is_image = len(graph.inputs) == 1 and _is_batch(given, 4) and given.shape[1] == channels
        if is_image and _is_batch(answer, 2) and isinstance(classes := answer.shape[1], int):
            return _Face(image, given.shape, logits, classes)
    raise InputError(
        f"{file} takes {_declared(graph.inputs)}, and gives {_declared(graph.outputs)}. It must take float32 "
        f"N x {channels} x height x width alone, and first give float32 N x classes, both with a free N. "
        "Export it again in this form: torch.onnx.export(..., dynamic_shapes=({0: 'batch'},))."
    )


def _session(content: bytes, file: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch needs the cores
    options.log_severity_level = 4  # exceptions say the same
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types
        raise InputError(f"{file} cannot be run ({_reason(error)}). Export the network again.") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _is_batch(value: "Value", dimensions: int) -> bool:
    is_free = len(value.shape) == dimensions and isinstance(value.shape[0], str)
    return is_free and value.elem_type == FLOAT


def _declared(values: "Mapping[str, Value]") -> str:
    return " and ".join(
        f"{name!r} ({'float32' if value.elem_type == FLOAT else 'not float32'}, {_shown(value.shape)})"
        for name, value in values.items()
    )


def _shown(shape: Iterable[int | str]) -> str:
    return " x ".join(str(side or "?") for side in shape)
