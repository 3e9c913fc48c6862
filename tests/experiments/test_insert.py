"""The script that puts a table into a page."""

from pathlib import Path

import pytest

from experiments import insert

PAGE = "before\n<!-- one -->\nold\n<!-- /one -->\nbetween\n<!-- two -->\n<!-- /two -->\nafter\n"


def test_the_page_that_is_named_gets_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table, page, readme = tmp_path / "table.md", tmp_path / "docs.md", tmp_path / "README.md"
    table.write_text("| a |\n|---|\n| \\1 |\n\n")
    page.write_text(PAGE)
    readme.write_text(PAGE)
    insert.main(["one", str(table), str(page)])
    assert page.read_text() == PAGE.replace("old", "| a |\n|---|\n| \\1 |")
    assert readme.read_text() == PAGE
    insert.main(["two", str(table), str(page)])
    insert.main(["two", str(table), str(page)])
    assert page.read_text().count("| \\1 |") == 2


def test_text_becomes_a_code_block(tmp_path: Path) -> None:
    table, page = tmp_path / "table.txt", tmp_path / "page.md"
    table.write_text("a  b\n")
    page.write_text(PAGE)
    insert.main(["one", str(table), str(page)])
    assert page.read_text() == PAGE.replace("old", "```\na  b\n```")


@pytest.mark.parametrize(("text", "times"), [("no markers\n", 0), (PAGE + PAGE, 2)])
def test_a_page_without_the_markers_or_with_several_is_left_as_it_is(
    text: str, times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = tmp_path / "table.md", tmp_path / "page.md"
    table.write_text("new")
    page.write_text(text)
    with pytest.raises(SystemExit):
        insert.main(["one", str(table), str(page)])
    assert f"{page}: it must have <!-- one --> ... <!-- /one --> once, but has it {times} times." in (
        capsys.readouterr().err
    )
    assert page.read_text() == text
