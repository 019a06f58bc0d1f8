"""The form of findings/: what each script must have, and who must name it. None is run here."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))
FIELDS = ("Package", "Expected", "Happens", "Met by")
PAGES = {page.stem: page.read_text() for page in (ROOT / "docs").glob("*.md")}
README = (ROOT / "findings" / "README.md").read_text()
ROWS = dict(re.findall(r"^\| \[[\w-]+\]\(([\w-]+\.sh)\) \| (.+) \|$", README, re.MULTILINE))

finding = pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)


def header(path):
    """The sentence that a script begins with, and its fields."""
    lines = path.read_text().split("set -euo pipefail")[0].splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    text = " ".join(line.removeprefix("#").strip() for line in lines[1:])
    title, *parts = re.split(rf"\s+({'|'.join(FIELDS)}): ", text)
    return title.strip(), dict(zip(parts[::2], parts[1::2], strict=True))


def test_findings_are_what_the_readme_lists():
    assert len(FINDINGS) >= 8
    assert list(ROWS) == [path.name for path in FINDINGS]


@finding
def test_a_script_says_what_it_shows(path):
    title, fields = header(path)
    assert title.endswith(".")
    assert tuple(fields) == FIELDS
    assert all(text.strip() for text in fields.values())


@finding
def test_a_script_stands_alone_and_is_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100
    assert {"set -euo pipefail", "folder=$(mktemp -d)"} <= set(lines)
    assert """trap 'rm -rf "$folder"' EXIT""" in lines
    assert '"${PYTHON:-python3.11}" -m venv "$folder/venv"' in lines
    assert "tpack" not in "\n".join(line.split("#")[0] for line in lines)
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)


@finding
def test_packages_are_pinned_and_named_in_the_header_and_the_row(path):
    installs = re.findall(r"-m pip install -qq (.*)$", path.read_text(), re.MULTILINE)
    words = [word.strip('"') for line in installs for word in line.split()]
    packages = {re.sub(r"\[\w+\]", "", word) for word in words if not word.startswith("--")}
    assert packages
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", package) for package in packages)
    named = set(header(path)[1]["Package"].split(", "))
    assert named <= packages
    shown = {package.replace(" ", "==") for package in ROWS[path.name].split(" | ")[0].split(", ")}
    assert shown <= named


@finding
def test_the_page_that_the_row_names_links_the_finding(path):
    pages = re.findall(r"\(\.\./docs/([\w-]+)\.md\)", ROWS[path.name])
    assert pages
    for page in pages:
        assert f"](../findings/{path.name})" in PAGES[page]


def test_what_pages_link_exists():
    linked = {
        name for text in PAGES.values() for name in re.findall(r"\.\./findings/([\w.-]+)", text)
    }
    assert linked - {"README.md"} == {path.name for path in FINDINGS}
