"""Two methods at once: a method, and a partner whose terms are added to its last phase.

In params.yaml: `combine: {name: crd}` among the settings of the method.
"""

from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from pipeline import methods
from pipeline.methods import Loss, Method, MethodConfig, Pairs, Phase, Terms
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

T = TypeVar("T")


def build_method(cfg: MethodConfig, partner: MethodConfig | None, probe: Step, labels: Tensor) -> Method[Any]:
    """The method of `cfg`, combined with its partner if it has one."""
    main = methods.load(cfg.name)(cfg, probe, labels)
    if partner is None:
        return main
    return Combined(main, methods.load(partner.name)(partner, probe, labels), probe, labels)


class Combined(Method[MethodConfig]):
    """The labels, KD, terms and phases of the main method, with the terms and earlier phases of the partner.

    The names of the partner's terms start with the name of its method. Its `ce_weight` and `kd_weight` are 0,
    so only its own terms are added.
    """

    def __init__(self, main: Method[Any], partner: Method[Any], probe: Step, labels: Tensor) -> None:
        super().__init__(main.cfg, probe, labels)
        self.main, self.partner = main, partner
        self.needs_image_gradients = main.needs_image_gradients or partner.needs_image_gradients

    @property
    def needs_labels(self) -> bool:
        return self.main.needs_labels and self.partner.needs_labels

    def matched(self) -> Pairs:
        return [*self.main.matched(), *self.partner.matched()]

    def terms(self, step: Step) -> Terms:
        return self.main.terms(step) | self._prefixed(self.partner.terms(step))

    def loss(self, step: Step) -> Loss:
        if self.needs_image_gradients:
            step.images.requires_grad_()
        return self.main.loss(step) | self._prefixed(self.partner.loss(step))

    def take_notes(self) -> dict[str, Tensor]:
        return self.main.take_notes() | self.partner.take_notes()

    def phases(self, student: Tapped) -> list[Phase]:
        *early, last = self.main.phases(student)
        *early_of_partner, last_of_partner = self.partner.phases(student)
        both = (*last.trains, *last_of_partner.trains)
        rates = (*last.rates, *last_of_partner.rates)
        return [*early, *early_of_partner, replace(self.last_phase(*both), rates=rates)]

    def image_weights(self, step: Step) -> Tensor | None:
        return self.main.image_weights(step)

    def synchronise(self) -> None:
        self.main.synchronise()
        self.partner.synchronise()

    def after_backward(self, step: Step, student: Tapped) -> None:
        self.main.after_backward(step, student)
        self.partner.after_backward(step, student)

    def _prefixed(self, terms: dict[str, T]) -> dict[str, T]:
        return {f"{self.partner.cfg.name} {name}": term for name, term in terms.items()}
