"""A page as a browser shows it. Tests that need one are skipped if there is no Chromium."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
OFFLINE = "--host-resolver-rules=MAP * 127.0.0.1:1"


def dom(url: str, profile: Path, *options: str, patience: int = 15) -> str:
    """The page's HTML after `patience` seconds of the page's own time."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("there is no Chromium")
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]
    command += [f"--virtual-time-budget={1000 * patience}", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=180).stdout
