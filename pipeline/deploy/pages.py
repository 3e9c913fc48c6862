"""The pages that a browser shows, from their files in this folder."""

import re
from importlib.resources import files


def filled(name: str, **parts: str) -> str:
    """The page `name`, with every {{part}} replaced. `style` is what all pages share."""
    folder = files("pipeline.deploy")
    parts["style"] = folder.joinpath("pages.css").read_text(encoding="utf-8").rstrip()
    page = folder.joinpath(name).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)
