"""A method and a partner whose terms are added to its last phase: `combine: {name: crd}` in params.yaml."""

from typing import TypeVar

from torch import Tensor, nn

from pipeline import methods
from pipeline.methods.base import Loss, Method, MethodConfig, Pairs, Phase, Terms
from pipeline.taps import Step, Tapped

T = TypeVar("T")


def build(cfg: MethodConfig, partner: MethodConfig | None, probe: Step, labels: Tensor) -> Method:
    main = methods.load(cfg.name)(cfg, probe, labels)
    return Combined(main, methods.load(partner.name)(partner, probe, labels)) if partner else main


class Combined(Method):
    """Labels, KD and the last phase are the main method's; the partner brings its terms, named after it, and its earlier phases."""

    def __init__(self, main: Method, partner: Method) -> None:
        nn.Module.__init__(self)
        self.main, self.partner = main, partner

    def matched(self) -> Pairs:
        return [*self.main.matched(), *self.partner.matched()]

    def terms(self, step: Step) -> Terms:
        return self.main.terms(step) | self._named(self.partner.terms(step))

    def take_notes(self) -> dict[str, Tensor]:
        return self.main.take_notes() | self.partner.take_notes()

    def phases(self, student: Tapped) -> list[Phase]:
        *early, last = self.main.phases(student)
        *others, its_last = self.partner.phases(student)

        def loss(step: Step) -> Loss:
            if self.main.needs_image_gradients or self.partner.needs_image_gradients:
                step.images.requires_grad_()
            return last.loss(step) | self._named(its_last.loss(step))

        return [*early, *others, Phase("distill", loss, (*last.trains, *its_last.trains))]

    def after_backward(self, step: Step, student: Tapped) -> None:
        self.main.after_backward(step, student)
        self.partner.after_backward(step, student)

    def _named(self, terms: dict[str, T]) -> dict[str, T]:
        return {f"{self.partner.cfg.name} {name}": term for name, term in terms.items()}
