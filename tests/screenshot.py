"""Take the pictures of the manual: ``python tests/screenshot.py`` writes docs/*.png."""

from __future__ import annotations

import shutil
import tempfile
from base64 import b64decode
from pathlib import Path

from report_files import FLAGS, transformer, tuned
from selenium import webdriver

from tpack.difference import diff
from tpack.html_report import html_report, render_comparison

DOCS = Path(__file__).parent.parent / "docs"


def take(page: str, target: Path, *, height: int, width: int = 1240) -> None:
    """Show a page in headless Chromium, and save what is seen."""
    with tempfile.TemporaryDirectory() as profile:
        path = Path(profile, "page.html")
        path.write_text(page)
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, "--hide-scrollbars", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        with webdriver.Chrome(options=options, service=service) as browser:
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            browser.get(path.as_uri())
            shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            target.write_bytes(b64decode(shot["data"]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "transformer-30.pt")
        model = transformer(Path(folder, "transformer-30.tpack.safetensors"), source=source)
        later = tuned(model, Path(folder, "tuned.tpack.safetensors"))
        take(html_report(model, source), DOCS / "report.png", height=1310)
        take(render_comparison(diff(model, later)), DOCS / "diff.png", width=1040, height=1440)
