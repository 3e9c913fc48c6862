"""Contrastive representation distillation (Tian, Krishnan & Isola, "Contrastive Representation Distillation",
2020).

A linear map brings the pooled embedding of each network to a unit vector of 128 dimensions: s_i of the
student and t_i of the teacher for image i. For each network, a memory has one such vector of each of the M
training images (after a step: half the old vector plus half the new one, scaled to length one). The student's
vector is compared with the teacher's remembered vectors of the same image and of N = 16384 images of other
classes. The loss is that of noise-contrastive estimation, mean over the batch, with
`h_ij = exp(s_i . t_j / 0.07) / Z`:
`-log(h_ii / (h_ii + N / M)) - sum over j of log((N / M) / (h_ij + N / M))`.
The same loss, with the roles exchanged, trains the linear map of the teacher. The term is the sum of both
losses. Z is a constant for each of the two losses: M times the mean of `exp(s_i . t_j / 0.07)` over the first
batch.

Default weights of labels, KD and term: 1, 0 and 0.8, as in the tables of the CRD paper (1, 1 and 0.8 with
KD).

Our reading: N is at most the number of images of other classes. Those images, sorted by class, are cut into N
equal shares, and one negative is drawn from each. So the sum over j has the same mean as with independent
draws, and less noise. In eval mode the middle of each share is taken, so that nothing is random. The loss is
computed with log-sigmoids, so it does not need the 1e-7 that public code has in its logarithms.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.methods import Method, MethodConfig, Pairs, Terms
from pipeline.settings import InputError
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped


class Config(MethodConfig):
    term_weight: float = Field(0.8, ge=0)
    dimensions: int = Field(128, ge=2, description="length of the vectors that are compared")
    negatives: int = Field(
        16384, ge=1, description="images of other classes that each image is compared with"
    )
    contrast_temperature: float = Field(
        0.07, gt=0, description="divides the products of vectors; `temperature` is that of KD"
    )
    momentum: float = Field(
        0.5, ge=0, lt=1, description="share of the old vector in the memory when its image is seen again"
    )


class ContrastiveRepresentation(Method[Config]):
    pairs: Pairs = (("pooled", "pooled"),)
    terms_of = "labelled"

    memories: Tensor
    log_z: Tensor
    slots: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        counts = torch.bincount(labels)
        others = len(labels) - int(counts.max())
        if not others:
            raise InputError(
                "method.name: crd compares each image with images of other classes, but all training images "
                "are of one class. Add images of a second class, or choose another method, such as pkt."
            )
        self.negatives = min(cfg.negatives, others)
        self.embed_student = nn.Linear(probe.student.pooled.shape[1], cfg.dimensions)
        self.embed_teacher = nn.Linear(probe.teacher.pooled.shape[1], cfg.dimensions)
        # the student's memory and the teacher's, sorted by class: 2 x M x dimensions
        self.register_buffer("memories", F.normalize(torch.randn(2, len(labels), cfg.dimensions), dim=2))
        self.register_buffer("log_z", torch.full((2,), math.nan))  # for the student's vectors, the teacher's
        self.register_buffer("slots", labels.argsort(stable=True).argsort())  # place of an image in a memory
        self.register_buffer("starts", counts.cumsum(0) - counts)  # first slot of each class
        self.register_buffer("counts", counts)
        self.z_is_known = False  # once True, `log_z` is not tested again, which would make the device wait
        self.pending: list[tuple[Tensor, Tensor]] = []  # slots and vectors, for the memories after the step

    def terms(self, step: Step) -> Terms:
        slots = self.slots[step.index]
        within = step.noise(self.negatives) if self.training else 0.5
        columns = torch.cat([slots[:, None], self.draw(step.labels, within)], dim=1)
        student = F.normalize(self.embed_student(step.student.pooled))
        teacher = F.normalize(self.embed_teacher(step.teacher.pooled))
        self.z_is_known = self.z_is_known or bool(self.log_z.isfinite().all())
        if self.training:
            vectors = [step.of_all(each.detach()) for each in (student, teacher)]
            self.pending.append((step.of_all(slots), torch.stack(vectors)))
        of_student, of_teacher = (
            self.contrast(step, side, vectors, columns) for side, vectors in enumerate((student, teacher))
        )
        return {"contrast": of_student + of_teacher}

    def draw(self, labels: Tensor, within: Tensor | float) -> Tensor:
        """For each label, slots of images of other classes: B x N.

        `within`, from 0 to 1, says where in each of the N shares.
        """
        start, count = self.starts[labels, None], self.counts[labels, None]
        others = len(self.slots) - count
        shares = torch.arange(self.negatives, device=labels.device)
        place = torch.minimum(((shares + within) * (others / self.negatives)).long(), others - 1)
        return place + count * (place >= start)

    def contrast(self, step: Step, side: int, vectors: Tensor, columns: Tensor) -> Tensor:
        """The loss of one network's vectors, B x dimensions, with the other network's memory.

        `columns` are slots, B x (1 + N): the image itself, then its negatives. `side` is 0 for the student.
        """
        images = len(self.slots)
        # one product with the whole memory is much cheaper than to gather the vectors of all columns
        scores = (vectors / self.cfg.contrast_temperature @ self.memories[1 - side].T).gather(1, columns)
        if self.z_is_known:
            log_z = self.log_z[side]
        else:
            everyones = step.of_all(scores.detach())
            log_z = everyones.flatten().logsumexp(0) - math.log(everyones.numel() / images)
            if self.training:
                self.log_z[side] = log_z
        logits = scores - (log_z + math.log(self.negatives / images))
        return (F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1:]).sum(1)).mean()

    @torch.no_grad()
    def after_backward(self, step: Step, student: Tapped) -> None:
        """Update the memories. Not earlier, because the backward pass needs them unchanged."""
        momentum = self.cfg.momentum
        for slots, vectors in self.pending:
            mixed = momentum * self.memories[:, slots] + (1 - momentum) * vectors
            self.memories[:, slots] = F.normalize(mixed, dim=2)
        self.pending.clear()
