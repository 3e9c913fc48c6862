"""What a network answers to a batch: logits, pooled embedding and maps. The only hook code."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.functional import Input, weighted_cross_entropy
from pipeline.settings import InputError, unknown

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
STEM = "stem"  # name of the first tap of our networks
AS_THEY_ARE = Input(0, (0.0,), (1.0,))  # of a network that is given its images ready


@dataclass(frozen=True)
class Answer:
    """The answer of one network to one batch, in float32."""

    logits: Tensor  # B x classes
    maps: Mapping[str, Tensor]  # name of a tap -> B x C x H x W, from shallow to deep
    pooled: Tensor  # B x D, the input of the classifier
    preactivations: Mapping[str, Tensor]  # of each map that ends in an activation: its input

    @property
    def everything(self) -> Mapping[str, Tensor]:
        """Maps, pooled embedding and logits by name."""
        return {**self.maps, "pooled": self.pooled, "logits": self.logits}

    def part(self, name: str) -> Tensor:
        """One of: `logits`, `pooled`, `map <name>`, `preactivation <name>`."""
        match name.split(" ", 1):
            case ["map", tap]:
                return self.maps[tap]
            case ["preactivation", tap]:
                return self.preactivations[tap]
        return self.pooled if name == "pooled" else self.logits

    def of(self, places: Tensor) -> "Answer":
        """The answer to some images of the batch."""
        maps, preactivations = (
            {name: value[places] for name, value in each.items()} for each in (self.maps, self.preactivations)
        )
        return Answer(self.logits[places], maps, self.pooled[places], preactivations)

    @property
    def body(self) -> list[str]:
        """Names of all maps except the stem's, which most methods leave out."""
        return [name for name in self.maps if name != STEM]

    def named_map(self, name: str, field: str) -> Tensor:
        """The map that a person named in the setting `field`."""
        if name not in self.maps:
            raise unknown(field, name, self.maps)
        return self.maps[name]


class LogitsOnly(Answer):
    """The answer of a network that gives nothing else. To read its maps or pooled embedding is refused."""

    def __init__(self, logits: Tensor) -> None:
        object.__setattr__(self, "logits", logits)  # answers are frozen

    @property
    def everything(self) -> dict[str, Tensor]:
        return {"logits": self.logits}

    def of(self, places: Tensor) -> "LogitsOnly":
        return LogitsOnly(self.logits[places])

    def __getattr__(self, name: str) -> NoReturn:
        if name not in ("maps", "pooled", "preactivations"):
            raise AttributeError(name)
        raise InputError(
            "The teacher is an ONNX file, which gives logits alone, without maps and gradients. Choose a "
            "method that reads logits, such as kd, or a teacher with weights."
        )


class InParts(Answer):
    """An answer whose parts come one by one, each when it is first read.

    `give` returns a part by its name (see Answer.part). `maps` and `preactivations` are the names that exist.
    """

    _give: Callable[[str], Tensor]
    _all: Mapping[str, Tensor]

    def __init__(
        self, give: Callable[[str], Tensor], maps: Iterable[str], preactivations: Iterable[str]
    ) -> None:
        give = cache(give)
        maps = {name: f"map {name}" for name in maps}
        before = {name: f"preactivation {name}" for name in preactivations}
        for field, value in {
            "_give": give,
            "maps": _OnDemand(maps, give),
            "preactivations": _OnDemand(before, give),
            "_all": _OnDemand({**maps, "pooled": "pooled", "logits": "logits"}, give),
        }.items():
            object.__setattr__(self, field, value)  # answers are frozen

    @classmethod
    def like(cls, answer: Answer, give: Callable[[str], Tensor]) -> "InParts":
        """With the parts that `answer` has."""
        if isinstance(answer, LogitsOnly):
            return cls(give, (), ())
        return cls(give, answer.maps, answer.preactivations)

    def part(self, name: str) -> Tensor:
        return self._give(name)

    @property
    def logits(self) -> Tensor:
        return self._give("logits")

    @property
    def pooled(self) -> Tensor:
        return self._give("pooled")

    @property
    def everything(self) -> Mapping[str, Tensor]:
        return self._all

    def of(self, places: Tensor) -> "InParts":
        return InParts(lambda name: self._give(name)[places], self.maps, self.preactivations)


class _OnDemand(Mapping[str, Tensor]):
    """Tensors by name, each fetched when it is read."""

    def __init__(self, parts: Mapping[str, str], give: Callable[[str], Tensor]) -> None:
        self.parts, self.give = parts, give

    def __getitem__(self, name: str) -> Tensor:
        return self.give(self.parts[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


Live = Callable[[], Answer]  # asks the network


class Tapped:
    """A network with hooks at its taps: `tapped(images) -> Answer`.

    A tap is the path of a module, such as `layer1.2.relu`. If the module is called several times,
    `layer1.2.relu#2` is its second call; without a number it is the last one. The taps are those of the
    argument `taps` (name -> tap), or else the network's own: `net.taps`, and `net.classifier` for the layer
    that classifies. If the network names none, one pass over `probe` finds them: the last map of each spatial
    size, and the last linear layer. A network that says `gives_logits_alone` has no taps.

    `input` is how the network takes its images. `loaded` holds the names of the parameters that come from
    pretrained weights.
    """

    def __init__(
        self,
        net: nn.Module,
        probe: Tensor,
        *,
        taps: dict[str, str] | None = None,
        input: Input = AS_THEY_ARE,
        loaded: Collection[str] = (),
    ) -> None:
        self.net = net
        self.input, self.loaded = input, frozenset(loaded)
        self._probe = probe
        self._calls = _module_calls(net, probe)
        self.taps: dict[str, str] = taps or getattr(net, "taps", None) or _find_taps(self._calls)
        _check_taps(self.taps, self._calls)
        self._gives_logits_alone: bool = getattr(net, "gives_logits_alone", False)
        self.classifier: str = "" if self._gives_logits_alone else _classifier_of(net, self._calls)
        self._caught: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._catching = False  # a call of the network itself must not fill the memory with maps
        paths = dict.fromkeys(filter(None, (*map(_path, self.taps.values()), self.classifier)))
        self._hooks = [
            net.get_submodule(path).register_forward_hook(partial(self._catch, path)) for path in paths
        ]

    def _catch(self, path: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self._catching:
            self._caught[path].append((args[0], output))

    def __call__(self, images: Tensor) -> Answer:
        self._caught.clear()
        self._catching = True
        try:
            logits = self.net(images).float()
        finally:
            self._catching = False
        if self._gives_logits_alone:
            return LogitsOnly(logits)
        caught = {name: self._caught[_path(tap)][_call_number(tap)] for name, tap in self.taps.items()}
        maps = {name: after.float() for name, (_, after) in caught.items()}
        preactivations = {
            name: before.float() for name, (before, _) in caught.items() if self._ends_in_activation(name)
        }
        read = self._caught[self.classifier][-1][0].float()
        pooled = read.flatten(2).mean(2) if read.ndim == 4 else read.flatten(1)  # a convolution may classify
        self._caught.clear()
        return Answer(logits, maps, pooled, preactivations)

    def _ends_in_activation(self, name: str) -> bool:
        return isinstance(self.net.get_submodule(_path(self.taps[name])), ACTIVATIONS)

    def upto(self, name: str) -> tuple[nn.Module, ...]:
        """All that the map `name` is computed with: modules that ran before its tap, and parameters.

        A parameter belongs to it if a gradient of the map reaches it. Parameters of modules that the map uses
        only in part, such as a network's position embedding, are in an `nn.ParameterList` at the end.
        """
        tap = self.taps[name]
        end = [n for n, call in enumerate(self._calls) if call.path == _path(tap)][_call_number(tap)]
        used = self._parameters_of(name)
        ran = dict.fromkeys(call.module for call in self._calls[: end + 1])
        whole = [module for module in ran if all(id(each) in used for each in module.parameters())]
        return _with_others(whole, used.values())

    def all_but_classifier(self) -> tuple[nn.Module, ...]:
        """All of the network but the layer that classifies.

        Parameters of the modules around that layer are in an `nn.ParameterList` at the end.
        """
        around, whole = self.net, list[nn.Module]()
        own = list(around.parameters(recurse=False))
        for inner in self.classifier.split("."):
            whole += [child for name, child in around.named_children() if name != inner]
            around = around.get_submodule(inner)
            own += around.parameters(recurse=False)
        classifier = {id(each) for each in around.parameters()}
        return _with_others(whole, [each for each in own if id(each) not in classifier])

    def _parameters_of(self, name: str) -> dict[int, nn.Parameter]:
        """The parameters that the map `name` depends on, by their id."""
        everything = list(self.net.parameters())
        frozen = [each for each in everything if not each.requires_grad]
        self.net.requires_grad_(True)
        with in_eval_mode(self.net), torch.enable_grad():
            value = self(self._probe).maps[name].sum()
            gradients = torch.autograd.grad(value, everything, allow_unused=True)
        for each in frozen:
            each.requires_grad_(False)
        used = zip(everything, gradients, strict=True)
        return {id(each): each for each, gradient in used if gradient is not None}

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


@dataclass(frozen=True)
class Labelled:
    """Which images of a batch have labels."""

    places: Tensor
    share: float  # of the images of the whole batch, of which this may be a part


@dataclass
class Step:
    """One batch, with the answers of student and teacher. A network runs only when its answer is read."""

    images: Tensor  # as the student takes them
    labels: Tensor  # of a mixed image: the class of its larger part
    index: Tensor  # positions in the train subset
    student_net: Tapped | None = None
    teacher_net: Tapped | None = None
    epoch: int = 0
    progress: float = 0.0  # share of the phase that is done, from 0 to 1
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    # the student's images and their `index` -> the same views as the teacher takes them; None: no difference
    for_teacher: Callable[[Tensor, Tensor], Tensor] | None = None
    targets: Tensor | None = None  # B x classes, the share of each class in mixed images; None: the labels
    label_smoothing: float = 0.0
    labelled: Labelled | None = None  # None: all images have labels
    class_weights: Tensor | None = None  # of cross-entropy; None: all 1
    starts_epoch: bool = False  # whether it is the first step of the epoch, or the first part of it
    stored: Callable[[Live], Answer] | None = None  # stands in for the teacher; it may ask the network, too

    @classmethod
    def of(
        cls, *, student: Answer, teacher: Answer, labels: Tensor, index: Tensor, images: Tensor | None = None
    ) -> "Step":
        """A step whose answers are given: no network runs."""
        step = cls(torch.empty(0) if images is None else images, labels, index)
        step.__dict__.update(student=student, teacher=teacher)  # fills the cached properties
        return step

    @cached_property
    def student(self) -> Answer:
        """The student's answer."""
        assert self.student_net is not None, "this step has no student"
        with self.autocast():
            return self.student_net(self.images)

    @cached_property
    def teacher(self) -> Answer:
        """The teacher's answer, without gradients unless the images require them."""
        assert self.teacher_net is not None, "this step has no teacher"
        if self.stored is None:
            return _ask(self.teacher_net, self.images, lambda: self.teacher_images, self.autocast)
        # a reference to the step itself would keep its memory until Python looks for circles
        images = partial(_for_teacher, self.images, self.index, self.for_teacher)
        return self.stored(partial(_ask, self.teacher_net, self.images, images, self.autocast))

    @cached_property
    def teacher_images(self) -> Tensor:
        """The same views as the teacher takes them."""
        return _for_teacher(self.images, self.index, self.for_teacher)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """With the labels, smoothed, mixed and weighted as asked; mean over the images that have labels."""
        if self.labelled is not None:
            places, wanted = self.labelled.places, len(logits) * self.labelled.share
            return self.labelled_part.cross_entropy(logits[places]) * (len(places) / wanted)
        if self.class_weights is not None:
            shares = self.targets
            if shares is None:
                shares = F.one_hot(self.labels, len(self.class_weights)).float()
            return weighted_cross_entropy(logits, shares, self.class_weights, self.label_smoothing)
        targets = self.labels if self.targets is None else self.targets
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    @cached_property
    def labelled_part(self) -> "Step":
        """The images that have labels, and what both networks answered to them."""
        return self if self.labelled is None else _LabelledPart.of_step(self, self.labelled.places)


def _ask(
    teacher: Tapped,
    images: Tensor,
    teacher_images: Callable[[], Tensor],
    autocast: Callable[[], AbstractContextManager[object]],
) -> Answer:
    assert not teacher.net.training, "the teacher must be in eval mode"
    # a method that needs gradients of the images (jacobian) sets requires_grad before it reads an answer
    with torch.set_grad_enabled(images.requires_grad), autocast():
        return teacher(teacher_images())


def _for_teacher(
    images: Tensor, index: Tensor, for_teacher: Callable[[Tensor, Tensor], Tensor] | None
) -> Tensor:
    return images if for_teacher is None else for_teacher(images, index)


class _LabelledPart(Step):
    """Some images of another step, with that step's answers. An answer is read only if a term asks for it."""

    whole: Step
    places: Tensor

    @classmethod
    def of_step(cls, whole: Step, places: Tensor) -> "_LabelledPart":
        part = cls(
            whole.images[places],
            whole.labels[places],
            whole.index[places],
            epoch=whole.epoch,
            progress=whole.progress,
            starts_epoch=whole.starts_epoch,
            autocast=whole.autocast,
            targets=None if whole.targets is None else whole.targets[places],
            label_smoothing=whole.label_smoothing,
            class_weights=whole.class_weights,
        )
        part.whole, part.places = whole, places
        return part

    @cached_property
    def student(self) -> Answer:
        return self.whole.student.of(self.places)

    @cached_property
    def teacher(self) -> Answer:
        return self.whole.teacher.of(self.places)


def _with_others(modules: list[nn.Module], wanted: Iterable[nn.Parameter]) -> tuple[nn.Module, ...]:
    """The modules, and a list of the wanted parameters that are in none of them."""
    inside = {id(each) for module in modules for each in module.parameters()}
    others = [each for each in wanted if id(each) not in inside]
    return (*modules, nn.ParameterList(others)) if others else tuple(modules)


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """The network in eval mode and without gradients. Afterwards every module is in the mode it was in."""
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
    """One call of a module."""

    path: str
    module: nn.Module
    leaf: bool
    output: int  # id of the output
    shape: tuple[int, ...]  # of the output


def _module_calls(net: nn.Module, probe: Tensor) -> list[_Call]:
    """Every call of a module in one pass in eval mode, in the order in which the calls end."""
    calls: list[_Call] = []
    alive: list[object] = []  # so that no id is used twice

    def note(path: str, module: nn.Module, args: object, output: object) -> None:
        alive.append(output)
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        calls.append(_Call(path, module, not any(module.children()), id(output), shape))

    hooks = [
        module.register_forward_hook(partial(note, path)) for path, module in net.named_modules() if path
    ]
    try:
        with in_eval_mode(net):
            net(probe)
    except InputError:  # it says what to do
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise InputError(
            f"{type(net).__name__} cannot take images of {' x '.join(map(str, probe.shape[1:]))} (channels, "
            f"height, width): {error}. "
            "Change input.size of this network, or data.size or data.channels, or choose another net."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _path(tap: str) -> str:
    return tap.partition("#")[0]


def _call_number(tap: str) -> int:
    """Index among the calls of the tap's module: the number after `#` minus one, or -1 for the last call."""
    number = tap.partition("#")[2]
    return int(number) - 1 if number else -1


def _check_taps(taps: dict[str, str], calls: list[_Call]) -> None:
    legal: set[str] = set()
    for path, count in Counter(call.path for call in calls).items():
        legal |= {path} | ({f"{path}#{n}" for n in range(1, count + 1)} if count > 1 else set())
    for name, tap in taps.items():
        if tap.removesuffix("#1") not in legal:
            raise unknown(f"taps.{name}", tap, legal)


def _find_taps(calls: list[_Call]) -> dict[str, str]:
    maps = [call for call in calls if len(call.shape) == 4 and call.shape[2] * call.shape[3] > 1]
    last = {call.shape[2:]: call.output for call in maps}
    taps = {}
    for n, output in enumerate(last.values(), start=1):
        maker = next(call for call in maps if call.output == output)  # the innermost module ends first
        number = 1 + [call.output for call in calls if call.path == maker.path].index(output)
        taps[f"stage{n}"] = f"{maker.path}#{number}"
    return taps


def _classifier_of(net: nn.Module, calls: list[_Call]) -> str:
    named = getattr(net, "classifier", None)
    return named if isinstance(named, str) else _find_classifier(calls)


def _find_classifier(calls: list[_Call]) -> str:
    for kind in (nn.Linear, nn.Conv2d):
        found = [call.path for call in calls if isinstance(call.module, kind)]
        if found:
            return found[-1]
    raise InputError(
        "The network has neither a linear nor a convolutional layer, so nothing in it classifies. "
        "Choose another net."
    )
