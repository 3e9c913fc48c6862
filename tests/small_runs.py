"""A small folder of pictures and its params, whose runs are trained through the library."""

import json
from pathlib import Path
from typing import Any

import yaml
from world import save_pictures

from pipeline.data.prepare import prepare
from pipeline.params import Params, load_params
from pipeline.records.record import Curves, Result
from pipeline.runs.knowledge import learn_knowledge
from pipeline.runs.student import distill, pretrain
from pipeline.runs.teacher import train_teacher

COMMON: dict[str, Any] = {
    "launcher": "python",
    "augment": {},
    "knowledge": {},
    "students": {"small": {"net": "wrn_10_1"}},
    "export": {},
    "benchmark": {},
}


def silent(name: str, curves: Curves) -> None:
    """The callback of a training that nobody follows."""


class SmallRuns:
    def __init__(self, place: Path, settings: dict[str, Any], *, images: int, classes: int = 3) -> None:
        self.place, self.data, self.settings = place, place / "data", COMMON | settings
        save_pictures(place / "images", images, classes=classes)
        self.data.mkdir()
        prepare(self.params().data, self.data)

    def params(self, **sections: Any) -> Params:
        """The settings, with these sections instead."""
        settings = json.loads(json.dumps(self.settings | sections))
        settings["data"]["root"] = str(self.place / "images")
        (self.place / "params.yaml").write_text(yaml.safe_dump(settings))
        return load_params(self.place / "params.yaml")

    def train_teacher(self, name: str) -> Result:
        return train_teacher(self.params().teacher_run(name), out=self.place / name, **self._common())

    def learn_knowledge(self, name: str, params: Params | None = None) -> Result:
        run = (params or self.params()).knowledge_run(name)
        teacher = self.place / run.teacher
        return learn_knowledge(run, teacher=teacher, out=self.place / name, **self._common())

    def pretrain(self, name: str, params: Params | None = None) -> Result:
        run = (params or self.params()).run(name)
        teacher, out = self.place / run.teacher, self.place / "initial" / name
        return pretrain(run, teacher=teacher, out=out, **self._common())

    def distill(self, name: str, params: Params | None = None) -> Result:
        run = (params or self.params()).run(name)
        teacher, initial = self.place / run.teacher, self.place / "initial" / name
        out = self.place / "students" / name
        return distill(run, teacher=teacher, initial=initial, out=out, **self._common())

    def _common(self) -> dict[str, Any]:
        return {"data": self.data, "work": self.place / "work", "code": "c" * 64, "on_point": silent}
