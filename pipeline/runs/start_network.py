"""A network's first weights, loaded, and what a person should know about them."""

from collections.abc import Collection

from torch import nn

from pipeline.nets.start import StartConfig, load_start
from pipeline.runs.context import Context
from pipeline.training.monitor import print_once


def start_network(
    context: Context, net: nn.Module, name: str, start: StartConfig, field: str
) -> Collection[str]:
    """Load the weights that `field`.start names; returns the names of the parameters that come from them."""
    new = load_start(net, start, name=name, field=f"{field}.start")
    if start.source == "random":
        return ()
    if new and context.is_main:
        print_once(
            f"{field}: the loaded weights are for other classes or channels, so these start at random: "
            f"{', '.join(new)}."
        )
    return [name for name, _ in net.named_parameters() if name not in new]
