"""Probabilistic knowledge transfer (Passalis & Tefas, "Learning Deep Representations with Probabilistic
Knowledge Transfer", 2018).

The cosine kernel `K(x, y) = (cos(x, y) + 1) / 2` of pooled embeddings x (B x D) gives the probability that
image i picks image j as its neighbour:
`p_ij = K(x_i, x_j) / sum over k != i of K(x_i, x_k)`.
The term is `mean over i != j of p^T_ij * log(p^T_ij / p^S_ij)`.

Default weights of labels, KD and term: 1, 0 and 30000, as in the tables of the CRD paper. They are meant for
the mean over all pairs, not for the sum over a row.

Our reading: an image is not its own neighbour. Public code counts it as one, which adds the same constant to
every row before scaling. Kernels below 1e-7 count as 1e-7, so that opposite embeddings have a logarithm.
"""

from pydantic import Field

from pipeline.methods import Method, MethodConfig, Pairs, Terms
from pipeline.methods._neighbours import transfer
from pipeline.taps.step import Step


class Config(MethodConfig):
    term_weight: float = Field(30000.0, ge=0)


class ProbabilisticTransfer(Method[Config]):
    pairs: Pairs = (("pooled", "pooled"),)

    def terms(self, step: Step) -> Terms:
        student, teacher = step.of_all(step.student.pooled), step.of_all(step.teacher.pooled)
        return {"neighbours": transfer(student, teacher)}
