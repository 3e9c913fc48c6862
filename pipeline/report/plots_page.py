"""The page that `dvc plots` fills in, with what draws the plots inside it: DVC's own loads that from a public address.

    python -m pipeline.report.plots_page OUT.html

`make setup` does so once; `plots.html_template` in .dvc/config names the file.
"""

import sys
from pathlib import Path

from pipeline.checkpoint import atomic_file

VEGA_LITE = "5.20"  # of the versions that vl-convert brings, the newest for which our templates are written: v5
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
    """With DVC's two placeholders; no `{scripts}`, which would be those addresses."""
    from vl_convert import javascript_bundle

    return PAGE % javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)


if __name__ == "__main__":
    with atomic_file(Path(sys.argv[1])) as file:
        file.write_text(page(), encoding="utf-8")
