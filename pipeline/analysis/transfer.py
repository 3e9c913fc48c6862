"""How far a network's representation carries over to another data set: a linear classifier on its frozen embedding (SRM and SemCKD do so).

The other pictures are decoded as the network's own were, into a store of their own that is gone afterwards. The classifier learns on their
training split, its strength is chosen on their validation split and their test split is read once; the network's own images aren't touched.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.analysis.probe import ProbeScores, embeddings, linear_probe
from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.store import SPLITS, Store
from pipeline.taps import Tapped

Facts = dict[str, Any]


def transfer(cfg: DataConfig, nets: Mapping[str, Tapped], own: Store) -> tuple[dict[str, ProbeScores], Facts]:
    """The scores of each network, and what the other data are; `own` are the data the networks were trained with."""
    with TemporaryDirectory() as folder:
        manifest = prepare(cfg, Path(folder))
        other = Store.open(folder)
        rows = [other.indices(split) for split in SPLITS]
        scores = {}
        for name, net in nets.items():
            features = [embeddings(net, other.images, split, mean=own.mean, std=own.std) for split in rows]
            scores[name] = linear_probe(*(part for x, split in zip(features, rows, strict=True) for part in (x, other.labels[split])))
    return scores, {"source": cfg.source, "root": cfg.root, "content": manifest["content"], "splits": manifest["splits"]}
