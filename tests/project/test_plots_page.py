from pathlib import Path

import browser
import pytest
from dvc_render import VegaRenderer, render_html

from pipeline.project.plots_page import __file__ as script
from pipeline.project.plots_page import page

TEMPLATES = Path(script).parents[2] / ".dvc/plots"
CURVE = [
    {"run": "kd", "phase": "distill", "seed": str(seed), "epoch": n, "loss": 1 / n, "rev": "workspace"}
    for seed in (0, 1)
    for n in (1, 2, 3)
]
CONFUSED = [
    {"actual": a, "predicted": p, "images": 3, "share": 0.5, "rev": "workspace"} for a in "xy" for p in "xy"
]
DRAWN = [
    ("loss", CURVE, {"template": "curves", "x": "epoch", "y": "loss"}),
    ("kd.csv", CONFUSED, {"template": "confusion_shares", "x": "predicted", "y": "actual"}),
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our templates as `dvc plots show` fills them in."""
    place = tmp_path_factory.mktemp("plots")
    (place / "page.html").write_text(page())
    renderers = [
        VegaRenderer(points, name, **named, template_dir=str(TEMPLATES)) for name, points, named in DRAWN
    ]
    return Path(render_html(renderers, place / "index.html", place / "page.html"))


def test_the_page_loads_nothing(drawn: Path) -> None:
    text = drawn.read_text()
    assert text.count("<script") == 1 + len(DRAWN)
    assert "<script src" not in text
    assert "<link" not in text
    assert "{plot_divs}" not in text


def test_it_draws_without_a_network(drawn: Path, tmp_path: Path) -> None:
    dom = browser.dom(drawn.as_uri(), tmp_path / "profile", browser.OFFLINE)
    assert dom.count('class="marks"') == len(DRAWN), dom[-2000:]
    assert dom.count('aria-roledescription="line mark"') == 3  # two seeds and their mean
    assert dom.count('aria-roledescription="rect mark"') == len(CONFUSED)
