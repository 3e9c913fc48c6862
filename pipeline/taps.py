"""What a network shows of itself: its logits, its pooled embedding and the maps of its stages. The only hook code."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from pipeline.inputs import InputError, unknown

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)


@dataclass(frozen=True)
class View:
    """One network's answer to one batch, in float32."""

    logits: Tensor  # B x classes
    stages: dict[str, Tensor]  # stage name -> B x C x H x W, shallow to deep
    pooled: Tensor  # B x D, what the classifier reads
    preactivations: dict[str, Tensor]  # the same maps before their activation, for the stages that end in one

    @property
    def shown(self) -> dict[str, Tensor]:
        """Everything by its name."""
        return self.stages | {"pooled": self.pooled, "logits": self.logits}

    def stage(self, name: str, field: str) -> Tensor:
        """The map of a stage a person named in `field`."""
        if name not in self.stages:
            raise unknown(field, name, self.stages)
        return self.stages[name]


class Tapped:
    """A network with hooks on its stages: `tapped(images) -> View`.

    A tap is the path of a module, `layer1.2.relu`, or `layer1.2.relu#2` for its second call where it is called several times.
    The taps are those given or the net's own (`net.taps`, `net.classifier`); where there are none, one pass over `probe` finds them:
    the last map of every spatial size, and the last linear layer.
    """

    def __init__(self, net: nn.Module, probe: Tensor, *, taps: dict[str, str] | None = None) -> None:
        self.net = net
        self._calls = _watch(net, probe)
        self.taps: dict[str, str] = taps or getattr(net, "taps", None) or _find_taps(self._calls)
        classifier = getattr(net, "classifier", None)
        self.classifier = classifier if isinstance(classifier, str) else _find_classifier(self._calls)
        times = Counter(call.path for call in self._calls)
        legal = {*times, *(f"{path}#{n}" for path, count in times.items() if count > 1 for n in range(1, count + 1))}
        for stage, tap in self.taps.items():
            if tap.removesuffix("#1") not in legal:
                raise unknown(f"taps.{stage}", tap, legal)
        self._caught: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._watching = False  # whoever calls the network itself wants no maps kept
        watched = dict.fromkeys([*map(_path, self.taps.values()), self.classifier])
        self._hooks = [net.get_submodule(path).register_forward_hook(partial(self._catch, path)) for path in watched]

    def _catch(self, path: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self._watching:
            self._caught[path].append((args[0], output))

    def __call__(self, images: Tensor) -> View:
        self._caught.clear()
        self._watching = True
        try:
            logits = self.net(images).float()
        finally:
            self._watching = False
        caught = {stage: self._caught[_path(tap)][_call_number(tap)] for stage, tap in self.taps.items()}
        stages = {stage: after.float() for stage, (_, after) in caught.items()}
        ends_in_activation = {stage for stage, tap in self.taps.items() if isinstance(self.net.get_submodule(_path(tap)), ACTIVATIONS)}
        preactivations = {stage: before.float() for stage, (before, _) in caught.items() if stage in ends_in_activation}
        read = self._caught[self.classifier][-1][0].float()
        pooled = read.flatten(2).mean(2) if read.ndim == 4 else read.flatten(1)  # a convolution may classify
        self._caught.clear()
        return View(logits, stages, pooled, preactivations)

    def upto(self, stage: str) -> tuple[nn.Module, ...]:
        """The layers a stage's map depends on: every leaf that runs before the stage's tap has answered."""
        tap = self.taps[stage]
        end = [n for n, call in enumerate(self._calls) if call.path == _path(tap)][_call_number(tap)]
        return tuple(dict.fromkeys(call.module for call in self._calls[: end + 1] if call.leaf))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


@dataclass
class Step:
    """One batch and what the two networks say of it; a network runs only if somebody reads its view."""

    images: Tensor
    labels: Tensor
    index: Tensor  # positions in the training set
    student_net: Tapped | None = None
    teacher_net: Tapped | None = None
    epoch: int = 0
    progress: float = 0.0  # share of the phase that is done, 0..1
    autocast: Callable[[], AbstractContextManager] = nullcontext

    @classmethod
    def of(cls, *, student: View, teacher: View, labels: Tensor, index: Tensor, images: Tensor | None = None) -> "Step":
        """A step whose views are ready: no network runs."""
        step = cls(torch.empty(0) if images is None else images, labels, index)
        step.__dict__.update(student=student, teacher=teacher)  # fills the cached properties
        return step

    @cached_property
    def student(self) -> View:
        assert self.student_net is not None, "this step has no student"
        with self.autocast():
            return self.student_net(self.images)

    @cached_property
    def teacher(self) -> View:
        assert self.teacher_net is not None, "this step has no teacher"
        assert not self.teacher_net.net.training, "the teacher must be in eval mode"
        # a method that asks for gradients of the input (jacobian) sets requires_grad on the images before it reads a view
        with torch.set_grad_enabled(self.images.requires_grad), self.autocast():
            return self.teacher_net(self.images)


@contextmanager
def resting(net: nn.Module) -> Iterator[None]:
    """The network in eval mode and without gradients; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class _Call:
    path: str
    module: nn.Module
    leaf: bool
    output: int  # the id of what it returned, and its shape
    shape: tuple[int, ...]


def _watch(net: nn.Module, probe: Tensor) -> list[_Call]:
    """Every module call of one eval-mode pass, in the order in which they finish."""
    calls: list[_Call] = []
    alive: list[object] = []  # so that no id is used twice

    def note(path: str, module: nn.Module, args: object, output: object) -> None:
        alive.append(output)
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        calls.append(_Call(path, module, not any(module.children()), id(output), shape))

    hooks = [module.register_forward_hook(partial(note, path)) for path, module in net.named_modules() if path]
    try:
        with resting(net):
            net(probe)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise InputError(
            f"{type(net).__name__} can't take images of {' x '.join(map(str, probe.shape[1:]))} (channels, height, width): {error}. "
            "Change data.size or data.channels in params.yaml, or choose another net."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _path(tap: str) -> str:
    return tap.partition("#")[0]


def _call_number(tap: str) -> int:
    """Index among the calls of its module: as written after `#`, else the last."""
    number = tap.partition("#")[2]
    return int(number) - 1 if number else -1


def _find_taps(calls: list[_Call]) -> dict[str, str]:
    maps = [call for call in calls if len(call.shape) == 4 and call.shape[2] * call.shape[3] > 1]
    last = {call.shape[2:]: call.output for call in maps}
    taps = {}
    for n, output in enumerate(last.values(), start=1):
        maker = next(call for call in maps if call.output == output)  # the innermost module finishes first
        number = 1 + [call.output for call in calls if call.path == maker.path].index(output)
        taps[f"stage{n}"] = f"{maker.path}#{number}"
    return taps


def _find_classifier(calls: list[_Call]) -> str:
    for kind in (nn.Linear, nn.Conv2d):
        found = [call.path for call in calls if isinstance(call.module, kind)]
        if found:
            return found[-1]
    raise InputError("The network has neither a linear nor a convolutional layer, so there's nothing that classifies. Choose another net.")
