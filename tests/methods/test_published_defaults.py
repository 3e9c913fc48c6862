"""The defaults of all methods beside the values that their papers give.

`PUBLISHED` has the value and where it stands. `OURS` has the defaults that stand nowhere, or that differ from
what stands there, each with the reason. Together they have every number of every method.
"""

import pytest
from torch import nn
from world import maps, method_on_maps

from pipeline import methods
from pipeline.methods import MethodConfig
from pipeline.methods.semckd import SemanticCalibration

CRD = "the CRD paper's tables: the weights of all methods that it compares"
SEMCKD = "SemCKD, training details of section 4.1 (beta 400, T 4) and its tables"
REVIEWED = "authors' script for CIFAR-100, resnet32x4 -> resnet8x4"
OF_FIRST_20 = 20 / 240  # epochs
COMMON = ("ce_weight", "kd_weight", "term_weight", "temperature")

Published = dict[str, tuple[float | tuple[float, ...], str]]


def weights(ce: float, kd: float, term: float, source: str) -> Published:
    return {"ce_weight": (ce, source), "kd_weight": (kd, source), "term_weight": (term, source)}


def both(ce: float, kd: float, source: str) -> Published:
    return {"ce_weight": (ce, source), "kd_weight": (kd, source)}


PUBLISHED: dict[str, Published] = {
    "at": weights(1, 0, 1000, CRD),
    "cc": weights(1, 0, 0.02, CRD)
    | {"dimensions": (128, CRD), "order": (2, "Correlation congruence: P = 2")},
    "crd": weights(1, 0, 0.8, CRD)
    | {
        "dimensions": (128, "CRD paper: length of its vectors"),
        "negatives": (16384, "CRD paper: N of its tables"),
        "contrast_temperature": (0.07, "CRD paper: tau of its tables"),
        "momentum": (0.5, "CRD paper: momentum of the memory"),
    },
    "dkd": weights(1, 0, 1, "DKD, authors' configuration for CIFAR-100")
    | {
        "target_weight": (1, "DKD, tables: alpha"),
        "others_weight": (8, "DKD, tables: beta of resnet32x4 -> resnet8x4"),
        "temperature": (4, "DKD, authors' configuration: T"),
        "warm_up": (OF_FIRST_20, "DKD, authors' configuration: 20 of 240 epochs"),
    },
    "dist": weights(1, 0, 2, "DIST, experiments: alpha 1, beta = gamma = 2, which is 2 x 1 here")
    | {
        "inter_weight": (1, "DIST, as above"),
        "intra_weight": (1, "DIST, as above"),
        "temperature": (4, "DIST, CIFAR-100 (ImageNet: 1)"),
    },
    "eskd": {"stop": (150 / 240, "first drop of the learning rate in the CRD paper's recipe")},
    "fitnet": both(0.1, 0.9, "KD in the CRD paper's tables") | {"term_weight": (100, CRD)},
    "fsp": weights(1, 0, 50, CRD),
    "hkd": weights(1, 1, 1, SEMCKD)
    | {
        "auxiliary_weight": (30000, CRD),
        "early_weight": (100, "information flow paper: weights of the critical epochs"),
        "decay": (0.7, "information flow paper: weights of the critical epochs"),
    },
    "irg": weights(1, 1, 0.005, SEMCKD),
    "kd": both(0.1, 0.9, CRD) | {"temperature": (4, CRD)},
    "knowledge_representing": {"layers": (3, "Knowledge Representing, 4.2.1 and 4.2.2: c (ImageNet: 4)")},
    "mgd": weights(1, 0, 1e-4, "authors' runs on ImageNet")
    | {"solve_every": (2, "authors' runs on ImageNet")},
    "mlkd": weights(0.1, 0, 0.9, "authors' configuration: CE 0.1, each level 0.9")
    | {"temperatures": ((2, 3, 4, 5, 6), "MLKD: temperatures of its prediction augmentation")},
    "nst": weights(1, 0, 50, CRD),
    "ofd": weights(1, 0, 0.001, "authors' setting for CIFAR, as in mdistiller"),
    "pkt": weights(1, 0, 30000, CRD),
    "refilled": {
        "ce_weight": (1, "REFILLED, Eq. 9"),
        "kd_weight": (0, "REFILLED never reads the teacher's logits"),
        "term_weight": (2, "REFILLED, supplement, figure 2: best lambda"),
        "temperature": (2, "authors' program: tau2"),
        "tuple_temperature": (4, "authors' program: tau1"),
        "margin": (0.2, "authors' program: margin of semi-hard negatives"),
    },
    "reviewkd": weights(1, 0, 5, REVIEWED) | {"warm_up": (OF_FIRST_20, "authors' program: 20 of 240 epochs")},
    "rkd": weights(1, 0, 1, CRD)
    | {
        "distance_weight": (25, "RKD: lambda of RKD-DA, 25 and 50"),
        "angle_weight": (50, "RKD: lambda of RKD-DA, 25 and 50"),
    },
    "semckd": weights(1, 1, 400, SEMCKD)
    | {"temperature": (4, SEMCKD), "attention_temperature": (1, "SemCKD, section 4.5: 1; 2 or 4 softened")},
    "sp": weights(1, 0, 3000, CRD),
    "srm": both(0.25, 0.75, "SRM, appendix on CIFAR100: alpha of KL in {.25, .5, .75}, labels 1 - alpha")
    | {
        "temperature": (4, "SRM, appendix: tau in {2, 4, 8}, 4 for ImageNet"),
        "mu": (2, "SRM, table 3 and the transfer tables"),
        "sparsity": (0.02, "SRM, table 3 and the transfer tables: lambda"),
    },
    "ttm": weights(1, 0, 45, "authors' page: vgg13 -> vgg8") | {"temperature": (10, "the same: gamma 0.1")},
    "vid": weights(1, 0, 1, CRD) | {"initial_variance": (5, "CRD paper's code")},
    "wttm": weights(1, 0, 4, "authors' page: vgg13 -> vgg8, beside CRD")
    | {"temperature": (5, "the same: gamma 0.2")},
}
NOT_SET = "the paper has no such number for labels and KD beside it: 1 and 0, or 1 and 1"
NO_TEXT = "the paper gives no value"
OF_KD = "not read unless there is a kd_weight; then KD's tau, 4"
OURS: dict[str, dict[str, str]] = {
    "aml": dict.fromkeys(("ce_weight", "kd_weight", "term_weight"), NOT_SET)
    | dict.fromkeys(("contrastive_margin", "triplet_margin"), "common in image retrieval; " + NO_TEXT),
    "cc": {"gamma": "that of the public code with this kernel; " + NO_TEXT},
    "ce": dict.fromkeys(("ce_weight", "kd_weight", "term_weight"), "no method, but the baseline"),
    "eskd": dict.fromkeys(("ce_weight", "kd_weight"), NOT_SET)
    | {"term_weight": "that of at, in the CRD paper's tables"},
    "jacobian": dict.fromkeys(("ce_weight", "kd_weight", "term_weight"), NOT_SET),
    "kd": {"term_weight": "kd has no terms"},
    "kdgan": dict.fromkeys(("ce_weight", "kd_weight", "term_weight"), NOT_SET)
    | dict.fromkeys(("share", "sample_temperature", "hidden"), "another one for each data set in the paper"),
    "knowledge_representing": dict.fromkeys(("ce_weight", "kd_weight"), "those of kd; " + NO_TEXT)
    | dict.fromkeys(("term_weight", "gamma", "sparse_weight", "weight_penalty_strength"), NO_TEXT)
    | {"aggregate_rate": "1: the rate of the phase; the paper alternates with ten times the student's"},
    "refilled": {
        "negatives": "0: all of them; the paper compares 1, 5 and all",
        "embed_weight": "1: with adamw it does not matter; the authors' program has 1000, with sgd",
    },
    "srm": {
        "term_weight": "the terms of phase match count 1 each: the paper adds them",
        "reseed": "0: never, as in the paper",
    },
}


def numbers(name: str) -> dict[str, float | tuple[float, ...]]:
    """The defaults of a method that are numbers."""
    defaults = {key: field.default for key, field in methods.load(name).Config.model_fields.items()}
    return {
        key: value for key, value in defaults.items() if type(value) in (int, float, tuple) and value != ()
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_defaults_are_those_of_the_paper(name: str) -> None:
    defaults = numbers(name)
    for setting, (value, source) in PUBLISHED[name].items():
        assert defaults[setting] == pytest.approx(value, rel=0.01), f"{name}.{setting}: {source}"


@pytest.mark.parametrize("name", methods.names())
def test_every_number_is_published_or_ours_for_a_reason(name: str) -> None:
    published, ours = PUBLISHED.get(name, {}), OURS.get(name, {})
    assert not published.keys() & ours.keys()
    unnamed = numbers(name).keys() - published.keys() - ours.keys()
    assert unnamed <= {"temperature"}, f"{name}: {unnamed}: say where it stands, or why it is ours"
    if "temperature" in unnamed:
        assert numbers(name)["temperature"] == 4, f"{name}: {OF_KD}"


def test_the_400_of_semckd_is_for_a_mean_over_the_students_maps() -> None:
    """Maps of zeros give projections of zeros, so each map of the student costs the same."""
    teacher, values = maps((2, 3, 4, 4), (2, 4, 4, 4)), []
    for count in (1, 2):
        student = {name: 0 * shown for name, shown in list(teacher.items())[:count]}
        method, step = method_on_maps(SemanticCalibration, student, teacher, ablation="equal")
        for layer in method.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        values += [term.item() for term in method.terms(step).values()]
    assert values[1] == pytest.approx(values[0])


def test_no_table_has_a_setting_that_is_gone() -> None:
    for table in (PUBLISHED, OURS):
        for name, settings in table.items():
            assert settings.keys() <= numbers(name).keys(), name
    assert {"temperature", *COMMON} <= MethodConfig.model_fields.keys()
