"""The comparison with other quantizers has a row for each mode that its script runs.

The script itself installs gigabytes, so no test runs it; what it says of tpack is computed here.
"""

import re
import runpy

import numpy as np
import pytest
from other_quantizers import run

from tpack.exporting import TARGETS

NUMBER = r"-?\d[\d./e-]*"
LEVELS = rf"(≈ )?{NUMBER}( (or|…) (≈ )?{NUMBER})*"
MEASURED = (
    rf" \| {LEVELS} \| {LEVELS} \| {LEVELS} \| \d+ % \| ({NUMBER} s|\*\*0\*\*) \| {NUMBER} \|"
)


def rows(page, name):
    return run.marked(name).search(page.read_text())[2].splitlines()


def test_the_page_has_a_row_for_each_mode_in_the_version_that_the_script_pins():
    table = "\n".join(rows(run.PAGE, "other quantizers"))
    assert table.startswith(run.HEAD)
    lines = table.removeprefix(run.HEAD).strip().splitlines()
    own = run.own_lines()
    assert lines[: len(own)] == own
    begins = [s.begins(words) for s in run.SYSTEMS for words in s.modes.values()]
    assert len(lines) == len(own) + len(begins)
    for line, begin in zip(lines[len(own) :], begins, strict=True):
        assert line.startswith(begin)
        assert re.fullmatch(MEASURED, line.removeprefix(begin)), line


def test_the_page_says_what_each_format_holds_and_which_targets_exist():
    systems = [system for system in run.SYSTEMS if system.by_hand]
    expected = [run.hand_line(system, "exact") for system in systems]
    assert rows(run.PAGE, "by hand") == [*run.HAND_HEAD.splitlines(), *expected]
    assert {system.target for system in systems} - {""} <= set(TARGETS)


def test_the_readme_shows_rows_of_the_page():
    found = run.marked("other quantizers").search(run.README.read_text())
    table = "\n".join(rows(run.PAGE, "other quantizers"))
    assert found[2] == run.short(table)
    assert run.short(table).count("\n") == len(run.SHORT) + 1


def test_every_snippet_is_run():
    files = {path.stem for path in (run.HERE / "snippets").glob("*.py")}
    assert files == {system.snippet for system in run.SYSTEMS}


def test_versions_are_pinned():
    assert all("==" in text for system in run.SYSTEMS for text in system.requirements)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.37, 0.37], "1"),
        ([0.3701, 0.3701], "≈ 1"),
        ([0.37 / 2, 0.37, 0.37], "1 or 1/2"),
        ([0.1, 0.2, 0.3, 0.4], "0.27 … 1.08"),
    ],
)
def test_levels_are_what_came_back(values, words):
    assert run.levels(1, np.array(values, np.float32), np.float32(0.37)) == words


def test_a_snippet_is_called_and_its_numbers_are_computed_outside(tmp_path):
    snippet, source, result = (tmp_path / name for name in ("s.py", "in.npz", "out.npz"))
    snippet.write_text("def quantize(weight, mode):\n    return weight / 2, [weight]\n")
    trits, scale = run.matrix("float32")
    np.savez(source, weight=trits * scale, trits=trits, scale=scale)
    call = runpy.run_path(str(run.HERE / "call.py"))
    call["call"](*map(str, (snippet, source, result)), "")
    found = np.load(result)
    line = run.line("| x | y | float32", "float32", found["returned"], int(found["bytes"]))
    assert line == "| x | y | float32 | -1/2 | 0 | 1/2 | 33 % | 0.5 s | 32.00 |"
