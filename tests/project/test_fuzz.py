"""What ``make fuzz`` drives holds on its seeds, and the same bytes draw the same values."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))

import seeds  # noqa: E402
import targets  # noqa: E402
from drawing import Draw  # noqa: E402


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds(name):
    fuzzed = targets.TARGETS[name]
    inputs = list(fuzzed.seeds())
    for seed in inputs[:: max(1, len(inputs) // 20)]:
        fuzzed.function(seed)
    for blob in (b"", b"\0" * 40, b"\xff" * 40):
        fuzzed.function(blob)


def test_most_trees_that_are_drawn_are_accepted():
    import random_trees

    from tpack import LayerDefError
    from tpack.layerdef import Program, validate

    accepted = 0
    for seed in seeds.random(100, 300):
        try:
            validate(Program.from_dict(random_trees.program(Draw(seed))))
            accepted += 1
        except LayerDefError:
            pass
    assert accepted > 10


def test_drawn_values():
    draw = Draw(bytes([1, 2, 3, 255, 7, 8, 9]))
    assert (draw.byte(), draw.below(2), draw.number(2)) == (1, 0, 3 + 255 * 256)
    assert (draw.one("abc"), draw.left, draw.some(300)) == ("b", 2, b"")
    assert (draw.byte(), draw.below(5), draw.rest(), draw.chance(3)) == (0, 0, b"", False)


def test_one_input_again(tmp_path):
    path = tmp_path / "finding"
    path.write_bytes(b'{"a":1}')
    command = [sys.executable, str(FUZZ / "run.py"), "json", str(path)]
    assert subprocess.run(command, check=False).returncode == 0
