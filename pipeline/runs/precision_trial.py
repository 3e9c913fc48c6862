"""How long a training step takes in each precision and layout, and which one to take."""

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.device import autocast, computing, has_bf16, laid_out, synchronise
from pipeline.taps.tapped import Tapped

WARM_UP = {"cpu": 1}  # rounds that do not count, by kind of device; elsewhere 3
MOST, FEWEST, SECONDS = 9, 3, 10.0  # rounds that count: until so many seconds are over
FASTER = 0.95  # of the time of fp32, in three rounds of four: less than that may be chance
HOPELESS = 2.0  # times the time of fp32: no further round


@dataclass(frozen=True)
class Setting:
    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return self.precision + " channels_last" * self.channels_last


PLAIN = Setting("fp32", channels_last=False)
Parts = tuple[float, ...]  # seconds of a student's step, and of the teacher's answer if there is a teacher


def choose(seconds: Mapping[Setting, Sequence[Parts]]) -> tuple[Setting, dict[str, float]]:
    """The fastest setting, and for each the median ratio of its time to that of fp32.

    It must be surely faster than fp32, and no part of a step may be slower. So it is right for methods that
    read little of the teacher, too. `seconds`: of the parts of a step in each round; a setting that fell
    behind has none.
    """
    plain, best, ratios = seconds[PLAIN], PLAIN, {str(PLAIN): 1.0}
    for setting, own in seconds.items():
        if setting == PLAIN or not own:
            continue
        totals = [sum(parts) / sum(others) for parts, others in zip(own, plain, strict=True)]
        ratios[str(setting)] = round(statistics.median(totals), 3)
        surely = statistics.quantiles(totals, n=4, method="inclusive")[2] <= FASTER
        if surely and _slowest_part(own, plain) <= 1 and ratios[str(setting)] < ratios[str(best)]:
            best = setting
    return best, ratios


def _slowest_part(own: Sequence[Parts], plain: Sequence[Parts]) -> float:
    """Of the parts of a step, the largest ratio to the same part in fp32."""
    ratios = ([a / b for a, b in zip(*both, strict=True)] for both in zip(own, plain, strict=True))
    slowest: float = max(statistics.median(of_part) for of_part in zip(*ratios, strict=True))
    return slowest


def measure(
    student: Tapped, teacher: Tapped | None, *, channels: int, batch: int, device: torch.device
) -> dict[Setting, list[Parts]]:
    """Seconds of the parts of a step in each round. The settings take turns, with copies of the networks."""
    with torch.random.fork_rng():
        trials = _trials(student, teacher, channels, batch, device)
        found: dict[Setting, list[Parts]] = {setting: [] for setting in trials}
        begun, left = time.perf_counter(), list(trials)
        for n in range(-WARM_UP.get(device.type, 3), MOST):
            spent = {setting: trials[setting].parts() for setting in left}
            if n >= -1:
                left = [each for each in left if sum(spent[each]) <= HOPELESS * sum(spent[PLAIN])]
            if n >= 0:
                for setting in left:
                    found[setting].append(spent[setting])
            if n + 1 >= FEWEST and time.perf_counter() - begun > SECONDS:
                break
    return {setting: found[setting] if setting in left else [] for setting in trials}


def settings_on(device: torch.device) -> list[Setting]:
    """What to compare; fp32 comes first."""
    others = (("tf32", device.type == "cuda"), ("bf16", has_bf16(device)))
    precisions = ["fp32", *(name for name, is_there in others if is_there)]
    return [Setting(each, channels_last) for each in precisions for channels_last in (False, True)]


class _Trial:
    """The parts of a step in one setting."""

    def __init__(self, setting: Setting, networks: Sequence[tuple[nn.Module, Tensor]]) -> None:
        self.setting, self.networks = setting, networks

    def parts(self) -> Parts:
        with computing([], self.setting.precision):
            return tuple(self._seconds(net, images) for net, images in self.networks)

    def _seconds(self, net: nn.Module, images: Tensor) -> float:
        synchronise()
        start = time.perf_counter()
        net.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(net.training), autocast(images.device.type, self.setting.precision):
            logits = net(images)
        if net.training:
            torch.autograd.backward(logits.float().square().mean())
        synchronise()
        return time.perf_counter() - start


def _trials(
    student: Tapped, teacher: Tapped | None, channels: int, batch: int, device: torch.device
) -> dict[Setting, _Trial]:
    networks = {
        channels_last: [
            _copied(each, channels, batch, device, channels_last=channels_last, learns=each is student)
            for each in (student, teacher)
            if each is not None
        ]
        for channels_last in (False, True)
    }
    return {each: _Trial(each, networks[each.channels_last]) for each in settings_on(device)}


def _copied(
    network: Tapped, channels: int, batch: int, device: torch.device, *, channels_last: bool, learns: bool
) -> tuple[nn.Module, Tensor]:
    """A copy of the network in this layout, and a batch of noise."""
    net = copy.deepcopy(network.net).train(learns).requires_grad_(learns)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    images = torch.randn(batch, channels, network.input.size, network.input.size, device=device)
    return net, laid_out(images, channels_last=channels_last)
