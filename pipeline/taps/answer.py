"""What a network answers to a batch: logits, pooled embedding and maps."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from torch import Tensor, nn

from pipeline.settings import InputError, unknown

STEM = "stem"  # name of the first tap of our networks


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

    def made_by(self, frozen: "Frozen") -> Tensor:
        """What a frozen function makes of this answer."""
        return frozen.compute(self)

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


@dataclass(frozen=True)
class Frozen:
    """A function of an answer that stays as it is while a phase is trained.

    What it makes may be stored in place of the parts of the answer that it reads.
    """

    name: str
    compute: Callable[[Answer], Tensor]  # B x anything; without gradients
    weights: nn.Module  # what it computes with, which the phase does not train
    settings: tuple[float, ...] = ()  # all else that decides what it makes


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
    `make` returns what a frozen function makes of the answer, if that takes less than to call it.
    """

    _give: Callable[[str], Tensor]
    _make: Callable[[Frozen], Tensor] | None
    _all: Mapping[str, Tensor]

    def __init__(
        self,
        give: Callable[[str], Tensor],
        maps: Iterable[str],
        preactivations: Iterable[str],
        make: Callable[[Frozen], Tensor] | None = None,
    ) -> None:
        give = cache(give)
        maps = {name: f"map {name}" for name in maps}
        before = {name: f"preactivation {name}" for name in preactivations}
        for field, value in {
            "_give": give,
            "_make": make,
            "maps": _OnDemand(maps, give),
            "preactivations": _OnDemand(before, give),
            "_all": _OnDemand({**maps, "pooled": "pooled", "logits": "logits"}, give),
        }.items():
            object.__setattr__(self, field, value)  # answers are frozen

    @classmethod
    def like(
        cls,
        answer: Answer,
        give: Callable[[str], Tensor],
        make: Callable[[Frozen], Tensor] | None = None,
    ) -> "InParts":
        """With the parts that `answer` has."""
        if isinstance(answer, LogitsOnly):
            return cls(give, (), (), make)
        return cls(give, answer.maps, answer.preactivations, make)

    def part(self, name: str) -> Tensor:
        return self._give(name)

    def made_by(self, frozen: Frozen) -> Tensor:
        return super().made_by(frozen) if self._make is None else self._make(frozen)

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
        return InParts(
            lambda name: self._give(name)[places],
            self.maps,
            self.preactivations,
            lambda frozen: self.made_by(frozen)[places],
        )


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
