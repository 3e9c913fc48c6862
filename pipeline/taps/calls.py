"""Which modules a network calls, with which maps, and which of them are its taps if it names none."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.settings import InputError, unknown


@dataclass(frozen=True)
class Call:
    """One call of a module."""

    path: str
    module: nn.Module
    leaf: bool
    output: int  # id of the output
    shape: tuple[int, ...]  # of the output


def module_calls(net: nn.Module, probe: Tensor) -> list[Call]:
    """Every call of a module in one pass in eval mode, in the order in which the calls end."""
    calls: list[Call] = []
    alive: list[object] = []  # so that no id is used twice

    def note(path: str, module: nn.Module, args: object, output: object) -> None:
        alive.append(output)
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        calls.append(Call(path, module, not any(module.children()), id(output), shape))

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


def path_of(tap: str) -> str:
    return tap.partition("#")[0]


def call_number(tap: str) -> int:
    """Index among the calls of the tap's module: the number after `#` minus one, or -1 for the last call."""
    number = tap.partition("#")[2]
    return int(number) - 1 if number else -1


def check_taps(taps: dict[str, str], calls: list[Call]) -> None:
    legal: set[str] = set()
    for path, count in Counter(call.path for call in calls).items():
        legal |= {path} | ({f"{path}#{n}" for n in range(1, count + 1)} if count > 1 else set())
    for name, tap in taps.items():
        if tap.removesuffix("#1") not in legal:
            raise unknown(f"taps.{name}", tap, legal)


def find_taps(calls: list[Call]) -> dict[str, str]:
    maps = [call for call in calls if len(call.shape) == 4 and call.shape[2] * call.shape[3] > 1]
    last = {call.shape[2:]: call.output for call in maps}
    taps = {}
    for n, output in enumerate(last.values(), start=1):
        maker = next(call for call in maps if call.output == output)  # the innermost module ends first
        number = 1 + [call.output for call in calls if call.path == maker.path].index(output)
        taps[f"stage{n}"] = f"{maker.path}#{number}"
    return taps


def classifier_of(net: nn.Module, calls: list[Call]) -> str:
    named = getattr(net, "classifier", None)
    return named if isinstance(named, str) else _find_classifier(calls)


def _find_classifier(calls: list[Call]) -> str:
    for kind in (nn.Linear, nn.Conv2d):
        found = [call.path for call in calls if isinstance(call.module, kind)]
        if found:
            return found[-1]
    raise InputError(
        "The network has neither a linear nor a convolutional layer, so nothing in it classifies. "
        "Choose another net."
    )


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
