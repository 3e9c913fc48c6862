"""A network whose maps are caught. All other hooks are in calls.py, for one pass."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.functional import Input
from pipeline.taps.answer import Answer, LogitsOnly
from pipeline.taps.calls import (
    call_number,
    check_taps,
    classifier_of,
    find_taps,
    in_eval_mode,
    module_calls,
    path_of,
)

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
AS_THEY_ARE = Input(0, (0.0,), (1.0,))  # of a network that is given its images ready


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
        self._calls = module_calls(net, probe)
        self.taps: dict[str, str] = taps or getattr(net, "taps", None) or find_taps(self._calls)
        check_taps(self.taps, self._calls)
        self._gives_logits_alone: bool = getattr(net, "gives_logits_alone", False)
        self.classifier: str = "" if self._gives_logits_alone else classifier_of(net, self._calls)
        self._caught: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._catching = False  # a call of the network itself must not fill the memory with maps
        paths = dict.fromkeys(filter(None, (*map(path_of, self.taps.values()), self.classifier)))
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
        caught = {name: self._caught[path_of(tap)][call_number(tap)] for name, tap in self.taps.items()}
        maps = {name: after.float() for name, (_, after) in caught.items()}
        preactivations = {
            name: before.float() for name, (before, _) in caught.items() if self._ends_in_activation(name)
        }
        read = self._caught[self.classifier][-1][0].float()
        pooled = read.flatten(2).mean(2) if read.ndim == 4 else read.flatten(1)  # a convolution may classify
        self._caught.clear()
        return Answer(logits, maps, pooled, preactivations)

    def _ends_in_activation(self, name: str) -> bool:
        return isinstance(self.net.get_submodule(path_of(self.taps[name])), ACTIVATIONS)

    def upto(self, name: str) -> tuple[nn.Module, ...]:
        """All that the map `name` is computed with: modules that ran before its tap, and parameters.

        A parameter belongs to it if a gradient of the map reaches it. Parameters of modules that the map uses
        only in part, such as a network's position embedding, are in an `nn.ParameterList` at the end.
        """
        tap = self.taps[name]
        end = [n for n, call in enumerate(self._calls) if call.path == path_of(tap)][call_number(tap)]
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


def _with_others(modules: list[nn.Module], wanted: Iterable[nn.Parameter]) -> tuple[nn.Module, ...]:
    """The modules, and a list of the wanted parameters that are in none of them."""
    inside = {id(each) for module in modules for each in module.parameters()}
    others = [each for each in wanted if id(each) not in inside]
    return (*modules, nn.ParameterList(others)) if others else tuple(modules)
