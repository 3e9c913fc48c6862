"""A first impression of the formats' speed, for the model card and the budgets; the benchmark stage measures properly."""

import time
from collections.abc import Mapping

import numpy as np
import torch

from pipeline.export.parity import Predict

SECONDS = 0.2  # for each format
FEWEST, MOST = 5, 200


def measure(runs: Mapping[str, Predict], image: np.ndarray) -> dict[str, float]:
    """Median milliseconds of one image on one thread. The formats take turns, so that a busy moment hits all of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {form: [] for form in runs}
    try:
        for run in runs.values():
            run(image), run(image)  # TorchScript optimises in its second call
        while waiting := [form for form, taken in times.items() if len(taken) < FEWEST or (sum(taken) < SECONDS and len(taken) < MOST)]:
            for form in waiting:
                start = time.perf_counter()
                runs[form](image)
                times[form].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {form: round(1000 * float(np.median(taken)), 4) for form, taken in times.items()}
