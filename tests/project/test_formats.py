"""The comparison with other formats in the manual is what their libraries give."""

from pathlib import Path

from formats import BEGIN, END, table

PAGE = Path(__file__).parents[2] / "docs" / "why.md"


def test_the_comparison_is_up_to_date():
    assert f"{BEGIN}{table()}{END}" in PAGE.read_text()
