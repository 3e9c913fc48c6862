"""A first measurement of the formats' speed, for the model card and the budgets.

Stage `benchmark` measures it properly.
"""

import time
from collections.abc import Mapping

import numpy as np
import torch

from pipeline.export.deployable import Predict

SECONDS = 0.2  # for each format
FEWEST, MOST = 5, 200


def measure(runs: Mapping[str, Predict], image: np.ndarray) -> dict[str, float]:
    """Median milliseconds of one image on one thread, by format.

    The formats take turns, so that a busy moment of the machine affects all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {format: [] for format in runs}
    try:
        for run in runs.values():
            run(image), run(image)  # TorchScript optimizes in its second call
        while unfinished := [format for format, taken in times.items() if not _is_enough(taken)]:
            for format in unfinished:
                start = time.perf_counter()
                runs[format](image)
                times[format].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {format: round(1000 * float(np.median(taken)), 4) for format, taken in times.items()}


def _is_enough(taken: list[float]) -> bool:
    return len(taken) >= FEWEST and (sum(taken) >= SECONDS or len(taken) >= MOST)
