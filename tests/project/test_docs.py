"""Every code block of the README and of docs/ runs, and generated pages are up to date."""

import doctest
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from commands import run
from example_scripts import example

from tpack.cli.main import COMMANDS, cli
from tpack.cli.reference import (
    architectures_reference,
    cli_reference,
    errors_reference,
    kinds_reference,
    layerdef_reference,
)
from tpack.demo import run as run_demo

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+(?: slow)?)\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: Console lines that a test cannot run: they install, or run the tests themselves.
SET_UP = ("make", "pip", "git", "cd", "python", "python3.11", "source")


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    outcomes = run_demo(folder, say=lambda _: None)
    return folder, outcomes


def test_demo_reaches_its_accuracy_without_changing_a_prediction(demo_folder):
    mlp, cnn = demo_folder[1]
    assert mlp.accuracy >= 0.95
    assert cnn.accuracy >= 0.97
    for outcome in (mlp, cnn):
        assert outcome.lossless
        assert outcome.changed == 0
        assert outcome.packed_accuracy == outcome.accuracy
        assert outcome.packed_bytes * 8 < outcome.float_bytes


def blocks(page, *languages):
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


@pytest.fixture
def folder(tmp_path, monkeypatch, demo_folder):
    """The current folder of a page: it holds what `tpack demo` trains."""
    for file in demo_folder[0].glob("*"):
        if not file.name.endswith(".tpack.safetensors"):
            shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)


def run_blocks(page, *languages):
    """Run the blocks of a page in their order: each finds the variables and files before it."""
    namespace = {}
    for language, text in BLOCK.findall(page.read_text()):
        if language == "console":
            run_session(text)
        elif language in languages:
            exec(compile(text, page.name, "exec"), namespace)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page):
    run_blocks(page, "python")
    sessions = "".join(blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(sessions, {}, page.name, str(page), 0)
    result = doctest.DocTestRunner(verbose=False).run(test)
    assert result.failed == 0


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python slow")], ids=lambda page: page.name
)
def test_slow_blocks_run(page):
    """Those that take a compiler, between the others of their page."""
    run_blocks(page, "python", "python slow")


def run_session(text):
    """Run the tpack commands of a console block, and compare what they print, where it is shown."""
    failed, output = 0, ""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        if command == "echo $?":
            assert expected.strip() == str(failed)
            failed = 0
            continue
        assert not failed, output
        program, *args = shlex.split(command, comments=True)
        if args[:1] == ["examples/bitnet_lm.py"]:
            train_shortly(args[1])
            continue
        if program in SET_UP:
            continue
        assert program == "tpack", command
        failed, output = run(args)
        if expected.strip():
            assert shown(output) == shown(expected), command
    assert not failed, output


def train_shortly(folder):
    """Leave what the example of a language model leaves, after two steps of its training."""
    module = example("bitnet_lm")
    module.teach(Path(folder), module.read_text(), steps=2)


def shown(text):
    """What is printed, without shares: training ends a little elsewhere on other threads."""
    return re.sub(r"\d+\.\d%", "%", text.strip())


def test_cli_reference_is_up_to_date():
    assert (ROOT / "docs" / "cli.md").read_text() == cli_reference()


def test_layerdef_reference_is_up_to_date():
    page = (ROOT / "docs" / "layerdef.md").read_text()
    assert layerdef_reference() in page


def test_exit_codes_and_exceptions_are_up_to_date():
    assert errors_reference() in (ROOT / "docs" / "errors.md").read_text()


def test_architectures_reference_is_up_to_date():
    assert architectures_reference() in (ROOT / "docs" / "dialects.md").read_text()


def test_kinds_of_files_are_up_to_date():
    assert kinds_reference() in (ROOT / "docs" / "checkpoints.md").read_text()


def test_every_command_is_documented_with_an_example():
    page = (ROOT / "docs" / "cli.md").read_text()
    for name in COMMANDS:
        assert f"## tpack {name}" in page
        assert "Example:" in cli.get_command(None, name).help


def test_quick_start_example_runs(capsys):
    runpy.run_path(str(ROOT / "examples" / "quick_start.py"))
    losses = re.findall(r"loss ([\d.]+)", capsys.readouterr().out)
    assert float(losses[-1]) < float(losses[0])


@pytest.fixture
def one_thread():
    """For layers so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_fine_tuning_brings_damaged_models_back(demo_folder, tmp_path, capsys):
    for name in ("mlp", "cnn"):
        shutil.copy(demo_folder[0] / f"{name}.tpack.safetensors", tmp_path)
    example("fine_tune").main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        before, damaged, after = (float(figure) for figure in re.findall(r"([\d.]+)%", line))
        assert damaged < before - 20
        assert after >= before - 1
        assert line.endswith("verified")


def figures(line):
    return [float(figure) for figure in re.findall(r"\b(\d+\.\d+)\b", line)]


def same_table(made, page, tolerance):
    """Whether tables have the same words, and figures that differ by no more than that."""
    assert len(made) == len(page)
    for first, second in zip(made, page, strict=True):
        assert re.sub(r"[\d.]+", "", first) == re.sub(r"[\d.]+", "", second)
        for one, other in zip(figures(first), figures(second), strict=True):
            assert abs(one - other) <= tolerance * (100 if one > 1 else 1), (first, second)


def test_errors_of_a_gaussian_are_up_to_date():
    page = (ROOT / "docs" / "quantization.md").read_text()
    module = example("quantization_errors")
    sample = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    made = module.rows("Gaussian, 512×1024", sample)
    same_table(made, [line for line in page.splitlines() if line.startswith("|")][-3:], 0.001)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_errors_of_trained_models_are_up_to_date():
    module = example("quantization_errors")
    page = (ROOT / "docs" / "quantization.md").read_text()
    block = page[page.index(module.BEGIN) : page.index(module.END)]
    # training ends a little elsewhere on another processor
    same_table(module.table().splitlines(), block.splitlines()[2:-1], 0.06)
