"""The command line, and a headless Chromium, for the tests of pages.

Those in Chromium are skipped where it or its driver is missing (Debian: chromium, chromium-driver).
"""

import json
import shutil

import pytest
from report_files import FLAGS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, pages):
    """Open a page; afterwards nothing may have been requested or complained about."""

    def call(name, *, width=1240, dark=False, mobile=False):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": mobile},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get((pages / f"{name}.html").as_uri())
        assert browser.execute_script("return document.documentElement.dataset.ready") == ""
        return browser

    browser.get_log("browser")
    browser.get_log("performance")
    yield call
    assert browser.get_log("browser") == []
    found = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"])
    # what else is in the log are parts of the browser's own start page
    ours = [one["request"]["url"] for one in found if one["documentURL"].startswith(pages.as_uri())]
    assert any(url.startswith(pages.as_uri()) for url in ours)
    assert [url for url in ours if not url.startswith((pages.as_uri(), "data:"))] == []
