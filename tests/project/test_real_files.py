"""The table of real files in the manual has a row for each file that `make real` tries."""

from __future__ import annotations

from pathlib import Path

from real_files import BEGIN, END, FILES

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def test_each_file_has_a_row() -> None:
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [[cell.strip(" `") for cell in row.split("|")[1:3]] for row in table]
    assert cells == [[file.package.replace("==", " "), file.path] for file in FILES]
