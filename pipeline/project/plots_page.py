"""The HTML page that `dvc plots` fills in.

DVC's own page loads what draws the plots from a public address; this one holds it.

    python -m pipeline.project.plots_page OUT.html

`make setup` writes it once; `plots.html_template` in .dvc/config names the file.
"""

import sys
from pathlib import Path

from pipeline.files import atomic_file

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


if __name__ == "__main__":
    with atomic_file(Path(sys.argv[1])) as file:
        file.write_text(page(), encoding="utf-8")
