"""Contrastive representation distillation (Tian, Krishnan & Isola, "Contrastive Representation Distillation", 2020).

Both pooled embeddings go through a linear map to unit vectors of 128 dimensions. A memory keeps such a vector of every training image for
each network (new = .5 old + .5 seen, scaled to length one). The student's vector s_i must tell the remembered teacher's vector of its own
image from N = 16384 of images of other classes, by noise-contrastive estimation: with `h_ij = exp(s_i . t_j / .07) / Z` and M images,
`-log(h_ii / (h_ii + N / M)) - sum over j of log((N / M) / (h_ij + N / M))`, mean over the batch. Likewise the teacher's vector among the
student's memory, which trains the teacher's map alone; the term is the sum of both. Z is a constant, one each way: M times the mean of
`exp(s_i . t_j / .07)` over the first batch. Weights 1, 0 and .8 are those of the CRD paper's tables (1, 1 and .8 with KD).

Our reading: N is at most the number of images there are of other classes. Negatives are drawn one from each of N equal shares of those
images, sorted by class: the mean of independent draws with less noise; at rest the middle of each share, so that nothing is random.
Written with log-sigmoids, hence without public code's 1e-7 in the logarithms. The product with the whole memory is taken once and the
scores are gathered from it, which is far cheaper than to gather the vectors; the memories are therefore kept sorted by class.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.inputs import InputError
from pipeline.methods.base import Method, MethodConfig, Pairs, Terms
from pipeline.taps import Step, Tapped


class ContrastiveRepresentation(Method):
    pairs: Pairs = (("pooled", "pooled"),)

    class Config(MethodConfig):
        term_weight: float = Field(0.8, ge=0)
        dimensions: int = Field(128, ge=2, description="of the space the embeddings are compared in")
        negatives: int = Field(16384, ge=1, description="images of other classes each image is told from")
        contrast_temperature: float = Field(0.07, gt=0, description="of the contrast; `temperature` is that of KD")
        momentum: float = Field(0.5, ge=0, lt=1, description="share of a remembered vector that stays when its image is seen again")

    memories: Tensor
    log_z: Tensor
    slots: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: ContrastiveRepresentation.Config = cfg
        counts = torch.bincount(labels)
        others = len(labels) - int(counts.max())
        if not others:
            raise InputError(
                "method.name: crd tells each image from images of other classes, but all training images are of one class. "
                "Give it images of a second class, or choose another method, such as pkt."
            )
        self.negatives = min(cfg.negatives, others)
        self.embed_student = nn.Linear(probe.student.pooled.shape[1], cfg.dimensions)
        self.embed_teacher = nn.Linear(probe.teacher.pooled.shape[1], cfg.dimensions)
        self.register_buffer("memories", F.normalize(torch.randn(2, len(labels), cfg.dimensions), dim=2))  # the student's, the teacher's
        self.register_buffer("log_z", torch.full((2,), math.nan))  # of the student's vector, of the teacher's
        self.register_buffer("slots", labels.argsort(stable=True).argsort())  # where in the memories an image is
        self.register_buffer("starts", counts.cumsum(0) - counts)  # of the classes, there
        self.register_buffer("counts", counts)
        self.z_is_known = False  # asked of `log_z` only until it's so: a device is slow to answer
        self.seen: list[tuple[Tensor, Tensor]] = []  # slots and vectors, to be remembered once the gradients are there

    def terms(self, step: Step) -> Terms:
        slots = self.slots[step.index]
        columns = torch.cat([slots[:, None], self.draw(step.labels)], dim=1)
        student = F.normalize(self.embed_student(step.student.pooled))
        teacher = F.normalize(self.embed_teacher(step.teacher.pooled))
        self.z_is_known = self.z_is_known or bool(self.log_z.isfinite().all())
        if self.training:
            self.seen.append((slots, torch.stack([student, teacher]).detach()))
        return {"contrast": self.contrast(0, student, columns) + self.contrast(1, teacher, columns)}

    def draw(self, labels: Tensor) -> Tensor:
        """Slots of images of other classes than the labels: B x negatives."""
        start, count = self.starts[labels, None], self.counts[labels, None]
        others = len(self.slots) - count
        shares = torch.arange(self.negatives, device=labels.device)
        within = torch.rand(len(labels), self.negatives, device=labels.device) if self.training else 0.5
        place = torch.minimum(((shares + within) * (others / self.negatives)).long(), others - 1)
        return place + count * (place >= start)

    def contrast(self, side: int, vectors: Tensor, columns: Tensor) -> Tensor:
        """What it costs to find one's own image, the first of the columns, in the other network's memory."""
        images = len(self.slots)
        scores = (vectors / self.cfg.contrast_temperature @ self.memories[1 - side].T).gather(1, columns)
        if self.z_is_known:
            log_z = self.log_z[side]
        else:
            log_z = scores.detach().flatten().logsumexp(0) - math.log(scores.numel() / images)
            if self.training:
                self.log_z[side] = log_z
        logits = scores - (log_z + math.log(self.negatives / images))
        return (F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1:]).sum(1)).mean()

    @torch.no_grad()
    def after_backward(self, step: Step, student: Tapped) -> None:
        """The memories change here: the backward pass needs them as they were."""
        kept = self.cfg.momentum
        for slots, vectors in self.seen:
            self.memories[:, slots] = F.normalize(kept * self.memories[:, slots] + (1 - kept) * vectors, dim=2)
        self.seen.clear()
