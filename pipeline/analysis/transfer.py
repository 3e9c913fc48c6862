"""How well a network's embedding serves for other images: a linear classifier on it, as in SRM and SemCKD.

The other images are decoded in the same way as the network's own, into a temporary store. The classifier
learns from their training split, its strength is chosen on their validation split, and their test split is
read once. The network's own images are not used.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.analysis.linear_probe import ProbeScores, embeddings, linear_probe
from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.store import SPLITS, Store
from pipeline.taps.tapped import Tapped

Facts = dict[str, Any]


def transfer_scores(cfg: DataConfig, nets: Mapping[str, Tapped]) -> tuple[dict[str, ProbeScores], Facts]:
    """The scores of each network, and what the other images are."""
    with TemporaryDirectory() as folder:
        manifest = prepare(cfg, Path(folder))
        other = Store.open(folder)
        scores = {name: _scores(net, other) for name, net in nets.items()}
    facts = {
        "source": cfg.source,
        "root": cfg.root,
        "content": manifest["content"],
        "splits": manifest["splits"],
    }
    return scores, facts


def _scores(net: Tapped, other: Store) -> ProbeScores:
    rows = [other.indices(split) for split in SPLITS]
    train, val, test = ((embeddings(net, other.images, split), other.labels[split]) for split in rows)
    return linear_probe(*train, *val, *test)
