"""The comparison with other formats in the README is what their libraries give."""

from pathlib import Path

import formats

README = Path(__file__).parents[2] / "README.md"


def test_the_comparison_is_up_to_date():
    assert formats.table() in README.read_text()
