"""Jacobian matching (Srinivas & Fleuret, "Knowledge Transfer with Jacobian Matching", 2018).

The term is `mean over the batch of ||n(dT/dx) - n(dS/dx)||^2`, where n scales the whole gradient of one image
x to length one. T and S are one number for each image:

- `of: logit`: the teacher's largest logit, and the student's logit of the same class
- `of: attention`: the teacher's attention (mean over channels of the squared last map) at the place where it
  is largest, and the student's at the same place

One output is enough in the paper, since a gradient for each would cost too much. The paper derives the
squared distance from distillation with noise on the images. The term is between 0 (the student is the
teacher) and 4.

Our reading: the teacher chooses the logit or the place for both networks. If each network chose its own,
outputs that mean different things would be compared. In training mode, the images of a batch share the
statistics of the student's batch norms, so the student's gradient is that of the sum over the batch. Maps of
different size are pooled to the smaller size. No public table has a weight. Ours is 1 for labels, KD and the
term, since the paper always matches Jacobians together with labels and activations.

Both answers must have a graph back to the images. A stored answer has none.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.functional import match_size
from pipeline.methods import Method, MethodConfig, Terms
from pipeline.settings import InputError
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step


class Config(MethodConfig):
    kd_weight: float = Field(1.0, ge=0)
    of: Literal["logit", "attention"] = Field(
        "logit", description="which output; its gradient with respect to the image is matched"
    )


class JacobianMatching(Method[Config]):
    needs_image_gradients = True

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        if probe.teacher_images.shape != probe.images.shape:
            raise InputError(
                "method jacobian compares gradients with respect to the images, but teacher and student take "
                "images of different sizes. Give both the same input.size, or choose another method."
            )
        classes, teacher_classes = probe.student.logits.shape[1], probe.teacher.logits.shape[1]
        if cfg.of == "logit" and teacher_classes != classes:
            raise InputError(
                f"method.of is 'logit', but the teacher has {teacher_classes} classes and the student "
                f"{classes}, so their logits cannot be matched. Set method.of to attention."
            )
        last = (list(probe.student.maps)[-1:], list(probe.teacher.maps)[-1:])
        self.pairs = list(zip(*last, strict=True)) if cfg.of == "attention" else [("logits", "logits")]

    def terms(self, step: Step) -> Terms:
        student, teacher = (
            _attentions(step) if self.cfg.of == "attention" else (step.student.logits, step.teacher.logits)
        )
        for network, outputs in (("student", student), ("teacher", teacher)):
            assert outputs.requires_grad, f"the {network}'s answer has no graph back to the images"
        strongest = teacher.argmax(1, keepdim=True)
        return {
            "jacobian": gradient_distance(
                student.gather(1, strongest), teacher.gather(1, strongest), step.images
            )
        }


def gradient_distance(student: Tensor, teacher: Tensor, images: Tensor) -> Tensor:
    """Mean squared distance of the normalised gradients with respect to the images; only the student's is
    differentiable. Both outputs have one number for each image."""
    # the teacher's graph must stay, since plain KD reads the same logits
    (of_teacher,) = torch.autograd.grad(teacher.sum(), images, retain_graph=True)
    (of_student,) = torch.autograd.grad(student.sum(), images, create_graph=True)
    of_student, of_teacher = (
        F.normalize(gradient.flatten(1), dim=1) for gradient in (of_student, of_teacher)
    )
    return (of_student - of_teacher).pow(2).sum(1).mean()


def _attentions(step: Step) -> tuple[Tensor, Tensor]:
    """The attention of both networks in their last maps, pooled to one size: B x HW each."""
    student, teacher = match_size(_attention(step.student), _attention(step.teacher))
    return student.flatten(1), teacher.flatten(1)


def _attention(answer: Answer) -> Tensor:
    return list(answer.maps.values())[-1].pow(2).mean(1, keepdim=True)
