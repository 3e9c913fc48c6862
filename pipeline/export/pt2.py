"""torch.export's own file, for work that goes on in torch (AOTInductor, ExecuTorch).

Its bytes differ from process to process.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.export.deployable import Deployable, Predict
from pipeline.export.quiet import quiet

# these hold absolute paths of this machine
TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


def write(model: Deployable, path: Path, *, size: int, channels: int, metadata: Mapping[str, Any]) -> None:
    """Save `model` for any number of images.

    Export to ONNX first: its messages say better what cannot be exported.
    """
    example = torch.zeros((2, size, size, channels), dtype=torch.uint8)
    with quiet():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                for trace in TRACES:
                    node.meta.pop(trace, None)
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata, sort_keys=True)})


def load(path: Path) -> Predict:
    """The file as a callable, on the CPU."""
    with quiet():
        module = torch.export.load(path).module()

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits, probabilities = module(torch.tensor(images))
        return logits.numpy(), probabilities.numpy()

    return run
