"""The HTML page that `dvc plots` fills in.

DVC's own page loads what draws the plots from a public address; this one holds it. `plots.html_template` in
.dvc/config names the file.
"""

from pathlib import Path

from pipeline.files import atomic_file

FILE = Path(".dvc/plots/page.html")
VEGA_LITE = "5.20"  # the newest version in vl-convert that our templates are written for: v5
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
{refresh_tag}
<title>Plots</title>
<style>body {font-family: system-ui, sans-serif} table {border-spacing: 15px}</style>
<script>
(() => {
%s
})();
</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def page() -> str:
    """With two of DVC's placeholders; the third, `{scripts}`, would be those addresses."""
    from vl_convert import javascript_bundle

    return PAGE % javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)


def write_plots_page(file: Path = FILE) -> None:
    """Once, since it takes a second."""
    if not file.exists():
        with atomic_file(file) as partial:
            partial.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_plots_page()
