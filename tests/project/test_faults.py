"""System calls that fail and processes that are killed: no output is ever broken or lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
PAGE = HERE.parent / "docs" / "faults.md"
MARKS = "<!-- generated: faults -->\n", "<!-- end -->"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or not shutil.which("gcc"), reason="needs Linux and a C compiler"
    ),
]


def lines(folder, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, str(HERE / "fault_runs.py"), arguments[0], str(folder), *arguments[1:]],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=1500,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    shim = folder / "faults.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", str(HERE / "native/faults.c"), "-o", str(shim), "-ldl"],
        check=True,
    )
    return lines(folder, "calls", LD_PRELOAD=str(shim))


def test_every_call_is_tried(calls):
    tried = {(call, error) for _, _, call, error, *_ in calls}
    assert len(tried) == 21
    assert len({kind for kind, *_ in calls}) == 7
    assert len(calls) > 1000


def test_no_fault_breaks_an_output(calls):
    for row in calls:
        *_, code, state, _ = row
        assert state != "broken", row
        assert code in (0, 7), row
        if code == 0:
            assert state == "new", row


def test_no_fault_leaves_a_file_behind(calls):
    for row in calls:
        *_, tidy = row  # what a conversion of a folder has done so far waits for --resume
        assert tidy, row


def test_what_can_be_tried_again_succeeds(calls):
    for row in calls:
        _, _, _, error, _, code, _, _ = row
        if error in ("EINTR", "short"):
            assert code == 0, row


def table(rows):
    """What became of each fault, as the manual shows it."""
    found = {}
    for _, _, call, error, _, code, state, _ in rows:
        found.setdefault((call, error), set()).add((code, state))
    outcomes = [(0, "new"), (7, "old"), (7, "new")]
    text = "| call | error | exit 0, whole | exit 7, as before | exit 7, whole |\n"
    text += "|---|---|---|---|---|\n"
    for (call, error), seen in found.items():
        marks = " | ".join("yes" if outcome in seen else "" for outcome in outcomes)
        text += f"| `{call}` | {error} | {marks} |\n"
    return text


def test_the_table_of_the_manual_is_up_to_date(calls):
    page = PAGE.read_text()
    before, rest = page.split(MARKS[0])
    made = before + MARKS[0] + "\n" + table(calls) + "\n" + MARKS[1] + rest.split(MARKS[1])[1]
    if os.environ.get("UPDATE_GOLDEN") == "1":
        PAGE.write_text(made)
    assert made == page


def test_five_hundred_kills(tmp_path):
    rows = lines(tmp_path, "kills", "500")
    assert len(rows) == 7 * 73
    for row in rows:
        _, _, how, _, _, code, state, hidden = row
        assert state in ("old", "new"), row
        assert len(hidden) <= 1, row
        if code == 0:
            assert state == "new", row
        if how == "run again":
            assert (code, state, hidden) == (0, "new", []), row
    assert {row[5] for row in rows} == {0, -9}
