"""The script that writes docs/methods.md."""

from pathlib import Path

import pytest

from experiments import method_docs
from pipeline import methods

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page() -> str:
    return method_docs.page()


def test_the_page_in_docs_is_the_one_that_the_script_writes(page: str) -> None:
    assert (ROOT / "docs/methods.md").read_text() == page, "run `make docs`"


def test_the_page_has_every_method_with_its_docstring_and_its_settings(page: str) -> None:
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    common = sections.pop("Settings of every method")
    sections.pop("What newer methods reach in their papers")
    assert list(sections) == list(methods.names())
    for name, text in sections.items():
        assert method_docs.markdown(method_docs.docstring(name)) in text
        lines = (text + common).splitlines()
        for setting, field in methods.load(name).Config.model_fields.items():
            if setting != "name":
                row = next(line for line in lines if line.startswith(f"| `{setting}` |"))
                assert not isinstance(field.default, float) or f"| `{field.default}` |" in row, name


def test_the_overview_names_phases_and_what_is_matched(page: str) -> None:
    rows = {
        line.split("](")[0].removeprefix("| ["): line.split(" | ")
        for line in page.splitlines()
        if "](#" in line
    }
    assert list(rows) == list(methods.names())
    assert rows["fitnet"][1:3] == ["hint, distill", "maps, logits"]
    assert rows["srm"][1] == r"dictionary\*, match, distill"
    assert rows["refilled"][2] == "pooled, logits with the teacher's pooled"
    assert rows["ce"][1:3] == ["distill", ""]


def test_a_legal_range_and_legal_choices_are_shown(page: str) -> None:
    assert "| `decay` | number | `0.7` | > 0, ≤ 1 |" in page
    assert "| `ablation` | choice | empty | empty, `equal`, `shared`," in page
    assert "| `kernel` | choice | `sigmoid` | `sigmoid`, `rbf`, `linear` |" in page


def test_a_sign_outside_of_code_is_no_tag() -> None:
    assert method_docs.markdown("a <b> in `a <b>`") == "a &lt;b> in `a <b>`"


def test_check_fails_if_the_page_is_another_one(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "methods.md"
    monkeypatch.setattr(method_docs, "PAGE", file)
    monkeypatch.setattr(method_docs, "page", lambda: page)
    with pytest.raises(SystemExit, match="make docs"):
        method_docs.main(["--check"])
    method_docs.main(["--write", str(file)])
    method_docs.main(["--check"])
    file.write_text(page.replace("fitnet", "fitnets", 1))
    with pytest.raises(SystemExit, match="make docs"):
        method_docs.main(["--check"])
