"""Jacobian matching (Srinivas & Fleuret, "Knowledge Transfer with Jacobian Matching", 2018).

`mean over the batch of ||n(dT/dx) - n(dS/dx)||^2`, where n brings one image's whole gradient to length one and T, S are one number an
image: `of: logit` the teacher's strongest logit and the same logit of the student; `of: attention` the place where the teacher's attention
map (mean over channels of the squared last map) is strongest, and the same place of the student's. The paper takes one output, since a
gradient for each is too dear, and derives the squared distance from distillation under noise on the input. 0 if the student is the
teacher; at most 4.

Our reading: both networks are asked about the teacher's choice of logit or place; each one's own may differ, and then nothing comparable is
matched. Images in a training-mode student share batch statistics, so its gradient is that of the sum over the batch. Maps of different
size are pooled to the smaller one. No public table gives a weight: ours are 1 for the term, the labels and KD, since the paper matches
Jacobians together with labels and activations, never alone.

The step needs its networks, or views whose graph leads back to the images: a stored view has no gradient.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.functional import match_size
from pipeline.inputs import InputError
from pipeline.methods.base import Method, MethodConfig, Terms
from pipeline.taps import Step, View


class JacobianMatching(Method):
    needs_image_gradients = True

    class Config(MethodConfig):
        kd_weight: float = Field(1.0, ge=0)
        of: Literal["logit", "attention"] = Field("logit", description="the output whose gradient with respect to the image is matched")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: JacobianMatching.Config = cfg
        if cfg.of == "logit" and probe.teacher.logits.shape[1] != probe.student.logits.shape[1]:
            raise InputError(
                f"method.of is 'logit', but the teacher tells {probe.teacher.logits.shape[1]} classes apart and the student "
                f"{probe.student.logits.shape[1]}: no logit of one is a logit of the other. Set method.of to attention."
            )
        last = (list(probe.student.stages)[-1:], list(probe.teacher.stages)[-1:])
        self.pairs = list(zip(*last, strict=True)) if cfg.of == "attention" else [("logits", "logits")]

    def terms(self, step: Step) -> Terms:
        student, teacher = _attentions(step) if self.cfg.of == "attention" else (step.student.logits, step.teacher.logits)
        for view, outputs in (("student", student), ("teacher", teacher)):
            assert outputs.requires_grad, f"the {view}'s view doesn't lead back to the images"
        strongest = teacher.argmax(1, keepdim=True)
        return {"jacobian": gradient_distance(student.gather(1, strongest), teacher.gather(1, strongest), step.images)}


def gradient_distance(student: Tensor, teacher: Tensor, images: Tensor) -> Tensor:
    """Mean squared distance of the images' normalised gradients; only the student's can be trained through."""
    # the teacher's graph is kept, since plain KD reads the same logits
    (of_teacher,) = torch.autograd.grad(teacher.sum(), images, retain_graph=True)
    (of_student,) = torch.autograd.grad(student.sum(), images, create_graph=True)
    of_student, of_teacher = (F.normalize(gradient.flatten(1), dim=1) for gradient in (of_student, of_teacher))
    return (of_student - of_teacher).pow(2).sum(1).mean()


def _attentions(step: Step) -> tuple[Tensor, Tensor]:
    """B x HW, of the last stages."""
    student, teacher = match_size(_attention(step.student), _attention(step.teacher))
    return student.flatten(1), teacher.flatten(1)


def _attention(view: View) -> Tensor:
    return list(view.stages.values())[-1].pow(2).mean(1, keepdim=True)
