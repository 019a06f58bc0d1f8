"""What is built and released: metadata, workflows, the wheel, the sdist."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import tpack

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
}
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(workflow):
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


def commands(workflow):
    lines = "\n".join(step.get("run", "") for step in steps(workflow)).splitlines()
    return [shlex.split(line) for line in lines if line]


def run(*args, **options):
    done = subprocess.run(args, capture_output=True, text=True, timeout=900, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- metadata


def test_the_version_is_the_same_everywhere():
    assert PROJECT["project"]["version"] == tpack.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\d+\.\d+\.\d+)(, .+)?$", changes, re.MULTILINE)
    assert newest[1] == tpack.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == tpack.__version__


def test_every_package_is_listed():
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("tpack/**/__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"tpack.cli"}


def test_the_oldest_and_the_newest_python_are_tested():
    lines = PROJECT["project"]["classifiers"]
    minors = [int(line.rpartition("3.")[2]) for line in lines if ":: Python :: 3." in line]
    assert PROJECT["project"]["requires-python"] == f">=3.{minors[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1))
    matrix = WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]
    tested = matrix["python"] + [row["python"] for row in matrix["include"]]
    assert tested == [f"3.{minors[0]}", f"3.{minors[-1]}"]
    assert PROJECT["tool"]["cibuildwheel"]["build"] == [f"cp3{minors[0]}-*", f"cp3{minors[-1]}-*"]
    page = (ROOT / "docs" / "compatibility.md").read_text()
    assert f"| Python | 3.{minors[0]} or newer | {' and '.join(tested)} |" in page


def test_every_c_file_is_built():
    setup = (ROOT / "setup.py").read_text()
    for path in (ROOT / "tpack/kernels/csrc").glob("*.c"):
        assert f'"{path.stem}"' in setup


#: For each extra of a user: a package of it, and what needs the package.
NEED = {
    "demo": ("sklearn", "from tpack.cli.main import main; main(['demo'])"),
    "hf": ("huggingface_hub", "from tpack.cli.main import main; main(['convert', 'hf://a/b'])"),
    "hf ": ("transformers", "import tpack.hf"),
    "onnx": ("onnx", "from tpack.cli.main import main; main(['convert', 'm.onnx'])"),
    "keras": ("h5py", "from tpack.cli.main import main; main(['convert', 'm.h5'])"),
    "run": ("tokenizers", "from tpack.cli.main import main; main(['run', '.', '--prompt', 'a'])"),
    "remote": ("fsspec", "from tpack.cli.main import main; main(['convert', 's3://a/b'])"),
}


@pytest.mark.parametrize("extra", NEED)
def test_what_needs_an_extra_names_it(extra, tmp_path):
    package, code = NEED[extra]
    for suffix in ("onnx", "h5"):
        (tmp_path / f"m.{suffix}").write_bytes(b"\0")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    code = f"import sys; sys.modules[{package!r}] = None; {code}"
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode
    assert f'. Install it: pip install "tpack-ternary[{extra.strip()}]".\n' in done.stderr


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from tpack.cli.main import main

for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as ended:
        print("exit", ended.code, line, file=sys.stderr)
"""


def test_public_packages_need_no_import_of_their_own():
    code = "import tpack; tpack.layerdef.Identifier, tpack.nn.freeze, tpack.quantize.quantize"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_works_without_torch(tmp_path):
    (tmp_path / "m").mkdir()
    save_file({"up.weight": np.float32([[1, 0, -1, 1]] * 4)}, tmp_path / "m" / "model.safetensors")
    (tmp_path / "m.pt2").write_bytes(b"\0")
    codes = {
        "convert m --exact -q": "0",
        "verify m.tpack": "0",
        "verify m.tpack --against m": "0",
        "inspect m.tpack --html m.html": "0",
        "diff m.tpack m.tpack": "0",
        "codegen m.tpack": "0",
        "unpack m.tpack -o plain": "0",
        "convert m.pt2": "3",
        "bench": "3",
    }
    arguments = [sys.executable, "-c", WITHOUT_TORCH, *codes]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert {
        line: code for code, line in re.findall(r"^exit (\d) (.*)$", done.stderr, re.MULTILINE)
    } == codes
    assert done.stderr.count("this command needs torch, which is not installed. Install it") == 2


def test_every_extra_of_a_user_is_tried():
    for_developers = {"docs", "fuzz", "test"}
    extras = set(PROJECT["project"]["optional-dependencies"])
    assert {extra.strip() for extra in NEED} == extras - for_developers


# ---- workflows


def test_workflows_are_there():
    assert set(WORKFLOWS) == {"ci", "wheels"}


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_commands_of_a_workflow_exist(workflow):
    for program, *args in commands(workflow):
        if program == "make":
            assert args[0] in TARGETS
        for argument in args:
            if argument.startswith(("tests/", "examples/")):
                assert (ROOT / argument).exists(), argument


def test_every_step_does_one_thing():
    for workflow in WORKFLOWS:
        for step in steps(workflow):
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"[\w./-]+@[\w./]+", step.get("uses", "a@v1"))


def test_ci_runs_what_the_readme_says():
    readme = (ROOT / "README.md").read_text()
    assert "$ make test\n" in readme
    ran = [" ".join(command[:2]) for command in commands("ci")]
    assert {"make test", "make test-slow"} <= set(ran)


def test_contributing_names_commands_and_files_that_exist():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"\bmake ([\w-]+)`", page)) <= TARGETS
    lines = re.findall(r"^ *\$ (.*)$", page, re.MULTILINE)
    programs = {shlex.split(line)[0] for line in lines}
    assert programs == {"make", ".venv/bin/python"}
    paths = re.findall(r"\b((?:tests|tpack|docs|cli)/[\w./-]+|\.ci/run)", page)
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.yml")), ids=lambda path: path.stem)
def test_templates_of_issues_ask_for_the_version_or_a_file(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        return
    fields = {field["id"]: field for field in form["body"]}
    assert form["name"]
    assert form["description"]
    assert {"version", "file"} & set(fields)
    assert all(field["attributes"]["label"] for field in fields.values())


def test_wheels_are_tested_with_files_that_exist():
    settings = PROJECT["tool"]["cibuildwheel"]
    for command in settings["test-command"]:
        for argument in shlex.split(command):
            if argument.startswith("{project}/"):
                assert (ROOT / argument.removeprefix("{project}/")).exists()
    assert "--exclude libgomp.so.1" in settings["linux"]["repair-wheel-command"]
    systems = WORKFLOWS["wheels"]["jobs"]["wheel"]["strategy"]["matrix"]["os"]
    assert len(systems) == 4  # Linux and macOS, x86-64 and arm64


def release_script():
    return next(step["run"] for step in steps("wheels") if "CHANGELOG.md" in step.get("run", ""))


@pytest.mark.parametrize("heading", ["## 1.2.3", "## 1.2.3, 2030-01-01"])
def test_release_notes_are_the_section_of_the_version(heading, tmp_path):
    sections = ["# Changes", "## 1.2.30", "- later", heading, "- one\n  more", "- two"]
    (tmp_path / "CHANGELOG.md").write_text("\n\n".join([*sections, "## 1.2", "- earlier", ""]))
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "tpack_ternary-1.2.3.tar.gz").touch()
    environment = {**os.environ, "GITHUB_REF_NAME": "v1.2.3"}
    run("bash", "-euc", release_script(), cwd=tmp_path, env=environment)
    assert (tmp_path / "notes.md").read_text().strip() == "- one\n  more\n\n- two"


def test_release_notes_of_this_changelog(tmp_path):
    text = (ROOT / "CHANGELOG.md").read_text()
    (tmp_path / "CHANGELOG.md").write_text(text)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / f"tpack_ternary-{tpack.__version__}.tar.gz").touch()
    environment = {**os.environ, "GITHUB_REF_NAME": f"v{tpack.__version__}"}
    run("bash", "-euc", release_script(), cwd=tmp_path, env=environment)
    notes = (tmp_path / "notes.md").read_text()
    assert notes.strip() in text
    assert notes.startswith("\nThe first version.")
    assert "\n## " not in notes


# ---- what is built


UNTRACKED = (".*", "dist", "*.egg-info", "__pycache__", "*.so")


def _untracked(folder, names):
    """Return what of a folder is not in the repository; tpack/build is."""
    found = shutil.ignore_patterns(*UNTRACKED)(folder, names)
    return found | {"build"} if Path(folder) == ROOT else found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, made from the sdist, the sdist, and the tree that this was made from."""
    folder = tmp_path_factory.mktemp("packaging")
    # in a copy: an earlier list of files in an egg-info would be added to the sdist
    shutil.copytree(ROOT, folder / "tree", ignore=_untracked)
    for hidden in (".ci", ".github"):
        shutil.copytree(ROOT / hidden, folder / "tree" / hidden)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "tree")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist, folder / "tree"


def files_of(tree, *folders):
    paths = [path for folder in folders for path in (tree / folder).rglob("*")]
    return {str(path.relative_to(tree)) for path in paths if path.is_file()}


@pytest.mark.slow
def test_contents_of_the_wheel(built):
    name = f"tpack_ternary-{tpack.__version__}"
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"{name}.dist-info/METADATA").decode()
        top = wheel.read(f"{name}.dist-info/top_level.txt").decode()
    assert top.split() == ["tpack"]
    assert {entry.split("/")[0] for entry in names} == {"tpack", f"{name}.dist-info"}
    assert {"tpack/py.typed", "tpack/cli/main.py"} <= names
    for_building = (".c", ".h", "ruff.toml")
    sources = {path for path in files_of(built[2], "tpack") if not path.endswith(for_building)}
    sources |= {f"tpack/{path}" for path in files_of(built[2], "cli")}
    assert {entry for entry in names if entry.startswith("tpack/")} == {
        *sources,
        "tpack/kernels/_native.abi3.so",
    }
    licences = {entry for entry in names if "/licenses/" in entry}
    assert {entry.partition("/licenses/")[2] for entry in licences} == {
        "LICENSE",
        "tpack/html_report/d3/LICENSE",
    }
    assert "License-Expression: Apache-2.0" in metadata
    assert "Classifier: Typing :: Typed" in metadata
    assert built[0].name.startswith(f"{name}-cp311-abi3-")
    assert built[0].stat().st_size < 1_000_000


@pytest.mark.slow
def test_contents_of_the_sdist(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    folders = ("tests", "examples", "findings", "docs", ".ci", ".github", "tpack", "cli")
    needed = files_of(built[2], *folders)
    assert needed <= names
    others = {
        "CITATION.cff",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "Makefile",
        "constraints.txt",
        "pyproject.toml",
        "setup.py",
        "LICENSE",
    }
    assert others | {"README.md", "CHANGELOG.md", "MANIFEST.in"} <= names


USE = """
import hashlib, json, sys, warnings
import torch
import tpack
from tpack import kernels

weight = torch.tensor([[1.0, 0, -1, 1, 0], [0, 1, 1, -1, -1]]).repeat(64, 50) * 0.5
torch.save({"weight": weight}, "a.pt")
report = tpack.convert("a.pt", exact=True)
assert tpack.verify(report.output, "a.pt").ok
with warnings.catch_warnings(record=True) as told, torch.no_grad():
    warnings.simplefilter("always")
    x = torch.linspace(-1, 1, weight.shape[1])
    y = tpack.load(report.output)(x)
torch.testing.assert_close(y, weight @ x)
print(json.dumps({
    "where": tpack.__file__,
    "kernels": kernels.available(),
    "told": [str(warning.message) for warning in told],
    "digest": hashlib.sha256(open(report.output, "rb").read()).hexdigest(),
}))
"""
INSTALL = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target")


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """What the package did here, with whatever kernels it has."""
    folder = tmp_path_factory.mktemp("used")
    return json.loads(run(sys.executable, "-c", USE, cwd=folder))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel without a compiler", "sdist", "sdist without a compiler"])
def test_what_is_built_installs_and_converts(built, used, kind, tmp_path):
    target, source = tmp_path / "site", built[kind.startswith("sdist")]
    environment = {key: value for key, value in os.environ.items() if key != "CC"}
    if kind.endswith("compiler"):
        environment["PATH"] = str(target / "bin")  # no cc, gcc or clang; no other program either
    run(sys.executable, *INSTALL, target, source, env=environment)
    environment["PYTHONPATH"] = str(target)
    assert run(target / "bin" / "tpack", "--version", env=environment).split()[-1] == (
        tpack.__version__
    )
    found = json.loads(run(sys.executable, "-P", "-c", USE, cwd=tmp_path, env=environment))
    assert Path(found["where"]).is_relative_to(target)
    assert found["digest"] == used["digest"]
    if kind == "sdist without a compiler":
        assert found["kernels"] == ["numpy"]
        (told,) = found["told"]
        assert told.startswith("tpack has no compiled kernels: they could not be built when it was")
    else:
        assert len(found["kernels"]) > 1
        assert not found["told"]
