"""The examples run, and print figures that are as good as they say."""

import re
import subprocess
import sys

import pytest
import torch
from example_scripts import EXAMPLES, example


@pytest.fixture
def one_thread():
    """For layers so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def figure(pattern, text):
    return float(re.search(pattern, text)[1])


def test_the_table_names_every_example():
    table = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"\((\w+\.py)\)", table)) == {path.name for path in EXAMPLES.glob("*.py")}
    for path in EXAMPLES.glob("*.py"):
        assert f"python examples/{path.name}" in path.read_text()


@pytest.mark.usefixtures("one_thread")
def test_a_layer_of_ones_own(tmp_path, capsys):
    example("own_layerdef").main(tmp_path)
    output = capsys.readouterr().out
    assert "class GatedBlock(PackedModule):" in output
    assert figure(r"accuracy ([\d.]+)%", output) >= 95
    assert "predictions changed: 0 loaded, 0 printed as source" in output


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_groups_are_found_and_exported(tmp_path, capsys):
    example("groups_to_gguf").main(tmp_path)
    found, *written = capsys.readouterr().out.splitlines()
    assert found == "scales found: group:256 ×6, row ×6, tensor ×2"
    assert [line.partition(":")[0] for line in written] == ["TQ2_0", "TQ1_0"]
    assert all("14 of 14 weights equal, bit for bit" in line for line in written)


@pytest.mark.usefixtures("one_thread")
def test_deployment_with_torch_only(tmp_path, capfd):
    example("deploy_torch_only").main(tmp_path)
    output = capfd.readouterr().out
    for name in ("tpack", "safetensors", "numpy"):
        assert f"{name}: not there" in output
    assert "packed weights: torch.uint8, (256, 16)" in output
    assert figure(r"accuracy: ([\d.]+)%", output) >= 90
    assert "predictions changed: 0 of 360" in output


def run(name):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_digits():
    lines = run("digits.py").splitlines()
    for line, least in zip(lines[-2:], (95, 97), strict=True):
        assert figure(r"([\d.]+)% packed", line) >= least
        assert " 0 of 360 predictions changed, lossless" in line


@pytest.mark.slow
def test_a_language_model():
    output = run("bitnet_lm.py")
    assert "packed: 14 of 14 matrices have the trits of the trained model" in output
    frequency = figure(r"([\d.]+) by frequency", output)
    trained, packed = (figure(rf"([\d.]+) {state}", output) for state in ("trained", "packed"))
    assert trained < 0.6 * frequency
    assert abs(packed - trained) < 0.01
    assert figure(r"predictions: ([\d.]+)% the same", output) > 99
    assert figure(r"written, (\d+)% of it words", output) >= 60
    assert len(output.partition("\n\n")[2]) > 200
