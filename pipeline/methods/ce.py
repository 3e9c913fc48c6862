"""Cross-entropy on the labels: the baseline, and how teachers are fine-tuned. The teacher never runs."""

from pipeline.methods import Method, MethodConfig, Terms
from pipeline.taps.step import Step


class CrossEntropy(Method[MethodConfig]):
    terms_of = "none"

    def terms(self, step: Step) -> Terms:
        return {}
