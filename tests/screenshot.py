"""Take the picture of the README: ``python tests/screenshot.py`` writes docs/report.png."""

from __future__ import annotations

import shutil
import tempfile
from base64 import b64decode
from pathlib import Path

from report_files import FLAGS, transformer
from selenium import webdriver

from tpack.html_report import html_report

TARGET = Path(__file__).parent.parent / "docs" / "report.png"


def take(page: Path, target: Path, *, width: int = 1240, height: int = 1310) -> None:
    """Show a page in headless Chromium, and save what is seen."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, "--hide-scrollbars", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        with webdriver.Chrome(options=options, service=service) as browser:
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            browser.get(page.as_uri())
            shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            target.write_bytes(b64decode(shot["data"]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = transformer(Path(folder, "transformer-30.tpack.safetensors"), lossless=True)
        page = Path(folder, "report.html")
        page.write_text(html_report(path))
        take(page, TARGET)
