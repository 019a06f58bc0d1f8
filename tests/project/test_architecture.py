"""The folders are the architecture: imports go down, torch stays where it belongs."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import tpack

ROOT = Path(tpack.__file__).parent
CLI = Path(__file__).parents[2] / "cli"

#: From the bottom up; the parts of one row know nothing of each other unless listed in BESIDE.
LAYERS = (
    {"text", "wording"},
    {"choices", "dtypes", "errors", "grouping", "modelcard", "report"},
    {"codec"},
    {"layerdef", "kernels"},
    {"quantize", "container"},
    {"codegen", "describing", "dialects", "hfconfig", "options", "selection"},
    {"sources"},
    {"nn"},
    {"build", "pack", "parallel"},
    {"capturing"},
    {"architectures", "readback"},
    {"conversion", "difference", "verification", "inspection", "unpacking"},
    {"html_report"},
    {"checkpoint", "generation"},
    {"demo", "exporting", "hf"},
    {"running"},
    {"cli"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
TORCH = {
    "nn",
    "build",
    "pack",
    "architectures",
    "readback",
    "parallel",
    "checkpoint",
    "generation",
    "demo",
    "hf",
    "running",
    "exporting.onnx.forms",
    "exporting.onnx.running",
    "exporting.onnx.signature",
    "exporting.onnx.tracing",
    "exporting.onnx.widening",
    "exporting.onnx.writing",
    "sources.exported",
    "sources.packed_modules",
    "sources.torch_source",
    "sources.dcp_source",
    "capturing",
}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
} | {f"cli.{path.stem}".removesuffix(".__init__"): path for path in CLI.glob("*.py")}
#: The facade names everything lazily, and ``python -m tpack`` is the command.
FACADE = {"__init__", "__main__"}


def imports(path, *, top_level=False):
    """Modules that a file imports, and whether only at its top level."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module):
    """``tpack.codec.t2`` → ``codec``; None for what is not a part of tpack."""
    names = module.split(".")
    return names[1] if names[0] == "tpack" and len(names) > 1 and names[1] in RANK else None


def test_every_module_has_its_place():
    assert {name.split(".")[0] for name in MODULES} - FACADE == set(RANK)


def test_no_rule_of_gitignore_hides_a_module():
    """A folder named as a rule names it would be left out of commits, and work only here."""
    repository = Path(__file__).parents[2]
    if not (repository / ".git").exists():
        pytest.skip("not a clone: an archive has no ignored files")
    listing = ["git", "ls-files", "--others", "--ignored", "--exclude-standard"]
    done = subprocess.run(
        [*listing, "--", "tpack/*.py", "cli/*.py", "tests/*.py"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == []


def test_the_manual_has_these_floors():
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(LAYERS) + 1))
    assert [set(re.findall(r"`(\w+)`", parts)) for _, parts in rows] == list(LAYERS)


@pytest.mark.parametrize("name", sorted(set(MODULES) - FACADE))
def test_imports_only_go_down(name):
    own = name.split(".")[0]
    for module in imports(MODULES[name]):
        below = part(module)
        if below is not None and below != own:
            assert RANK[below] < RANK[own], f"{name} imports {module}"


@pytest.mark.parametrize("name", sorted(set(MODULES) - FACADE))
def test_torch_is_imported_only_where_it_belongs(name):
    if name in TORCH or name.split(".")[0] in TORCH:
        return
    found = {module.split(".")[0] for module in imports(MODULES[name], top_level=True)}
    assert "torch" not in found
    heavy = {module for module in imports(MODULES[name], top_level=True) if part(module) in TORCH}
    assert not heavy
    assert "tpack.sources.torch_source" not in set(imports(MODULES[name], top_level=True))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_are_short_and_begin_with_what_they_are(name):
    text = MODULES[name].read_text()
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text))


def test_nothing_installs_a_top_level_cli():
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import importlib.util as u; print(u.find_spec('cli'))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
        timeout=60,
    )
    assert done.stdout.strip() == "None"
    assert find_spec("tpack.cli") is not None


@pytest.mark.parametrize(
    "module", ["errors", "dtypes", "codec", "layerdef", "quantize", "container"]
)
def test_the_lower_half_needs_no_torch(module):
    code = f"import sys, tpack.{module}; print('torch' in sys.modules, 'click' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(TESTS))
)
def test_files_of_tests_are_short_and_import_from_no_other(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 500
    assert ast.get_docstring(tree)
    assert not [name for name in imports(path) if name.startswith("test_")]
    # nor does the code that a test hands to another process
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    assert not [t for t in texts if isinstance(t, str) and re.search(r"^\s*(from|import) test_", t)]


def test_no_two_files_of_tests_have_one_name():
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
