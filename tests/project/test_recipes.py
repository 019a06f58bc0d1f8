"""The recipes of docs/architecture.md run, and name files that exist."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
BLOCK = re.compile(r"^```(\w+) recipe\n(.*?)^```", re.DOTALL | re.MULTILINE)
RECIPES = {
    text.partition("\n")[0]: BLOCK.findall(text)
    for text in PAGE.partition("\n## Recipes\n")[2].split("\n### ")[1:]
}
PATCHED = [title for title, blocks in RECIPES.items() if blocks[0][0] == "diff"]
#: Takes a compiler, and its time.
COMPILED = pytest.param("A kernel", marks=pytest.mark.slow)


def run(*command, cwd, **environment):
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`([\w/-]+(?:/|\.(?:py|pyi|c|h|md)))`", PAGE))
    assert len(named) > 30
    folders = (ROOT, ROOT / "tpack", ROOT / "tpack" / "kernels" / "csrc")
    assert not [path for path in sorted(named) if not any((f / path).exists() for f in folders)]


def test_every_recipe_names_its_files_and_ends_in_what_it_does():
    assert len(RECIPES) == PAGE.count("| file | what |") == 8
    assert all(blocks and blocks[-1][0] == "python" for blocks in RECIPES.values())


@pytest.mark.parametrize("title", sorted(set(RECIPES) - set(PATCHED)))
def test_recipes_that_add_a_row(title, tmp_path):
    ((_, text),) = RECIPES[title]
    run(sys.executable, "-c", text, cwd=tmp_path)


@pytest.mark.skipif(shutil.which("patch") is None, reason="there is no patch program")
@pytest.mark.parametrize("title", [*sorted(set(PATCHED) - {"A kernel"}), COMPILED])
def test_recipes_that_change_the_tree(title, tmp_path):
    (_, change), (_, text) = RECIPES[title]
    for folder in ("tpack", "cli"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "tpack" / "cli").symlink_to(tmp_path / "cli")
    (tmp_path / "change.diff").write_text(change)
    run("patch", "--strip=1", "--fuzz=0", "--input=change.diff", cwd=tmp_path)
    if title == "A kernel":
        run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tmp_path)
    run(sys.executable, "-c", text, cwd=tmp_path, PYTHONPATH=str(tmp_path))
