"""A message names options as its reader writes them, and only through ``tpack.wording``."""

import ast
import inspect
import re
from pathlib import Path

import click
import pytest
import torch
from corpus import make
from safetensors.torch import save_file

import tpack
from tpack.cli.main import COMMANDS, cli, main
from tpack.wording import command_line, spell, spell_again, spell_call, spell_exclude, spell_name

ROOT = Path(tpack.__file__).parent
#: Options of other programs, which have one spelling only.
FOREIGN = {
    *("--token-embedding-type", "--output-tensor-type", "--merge"),
    *("--force-reinstall", "--no-deps", "--no-cache-dir"),
}
OPTION = re.compile(r"(?<![\w-])--[a-z…][\w-]*|(?<!\S)-[a-z]\b")
#: A whole command, as pages show it to whoever opens them.
COMMAND = re.compile(r"<code>tpack .*?</code>|^tpack (?:(?!\w\. ).)*$")
SPELLING = {"spell", "spell_again", "spell_call", "spell_name"}


def literals(tree):
    """Every string but docstrings, with … for what is filled in."""
    silent = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
            silent |= {id(part) for part in node.values}
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and id(node) not in silent:
            yield str(node.value)


def spelled(tree):
    """The options that a module spells, by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in SPELLING:
            yield from (each.arg for each in node.keywords if each.arg)
            if node.func.id == "spell_name":
                yield from (a.value for a in node.args if isinstance(a, ast.Constant))


#: Options of calls in Python that no command has.
IN_PYTHON = ("example_args",)


def options(*commands):
    for name in commands:
        command = cli.get_command(click.Context(cli), name)
        yield from (param.name for param in command.params)
        yield from (each.name for each in getattr(command, "described", tuple)())


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_no_text_names_an_option_by_itself(file):
    if file.name == "wording.py":
        return
    tree = ast.parse(file.read_text())
    found = {
        word
        for text in literals(tree)
        if " " in text
        for word in OPTION.findall(COMMAND.sub("", text))
    }
    assert found <= FOREIGN
    assert set(spelled(tree)) <= {*options(*COMMANDS), *IN_PYTHON}


def test_options_of_the_command_line_are_arguments_of_convert():
    known = set(inspect.signature(tpack.convert).parameters)
    assert set(options("convert")) - {"output", "as_json", "quiet", "verbose"} <= known


def test_values_are_quoted_as_the_caller_would():
    assert spell(exclude=["it's"]) == 'exclude=["it\'s"]'
    assert spell_exclude("a[0].weight") == "exclude=['a[[]0].weight']"
    assert spell_call("convert", Path("a b"), force=True) == "tpack.convert('a b', force=True)"
    assert spell(include=[...]) == "include=[…]"
    assert spell(layerdef=...) == "layerdef=…"
    assert spell_name("keep_dtype") == "keep_dtype"
    assert spell_again(resume=True) == "Call it again with resume=True"
    with command_line(["convert", "a b", "--quiet"]):
        assert spell(exclude=["it's", "b"]) == """--exclude 'it'"'"'s' --exclude b"""
        assert spell_exclude("a[0].weight") == "--exclude 'a[[]0].weight'"
        assert spell_call("convert", Path("a b"), force=True) == "tpack convert 'a b' --force"
        assert spell(include=[...]) == "--include"
        assert spell(scale_means=("multiply", "divide")) == "--scale-means multiply or divide"
        assert spell_name("keep_dtype") == "--keep-dtype"
        assert spell_again(resume=True) == "Run tpack convert --resume 'a b' --quiet"
    with command_line(["convert", "a", "--resume"]):
        assert spell_again(resume=True) == "Run tpack convert --resume a"
    assert spell(force=True) == "force=True"


def test_a_name_that_looks_like_an_option_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {
        "force=True.weight": make.trits(8, 8),
        "--force.weight": torch.arange(64.0).reshape(8, 8),
    }
    save_file(state, "exclude=[].safetensors")
    (warning,) = tpack.convert("exclude=[].safetensors").warnings
    assert "1 of 2 weights is not ternary and kept bit for bit: --force." in warning
    assert "quantize='absmean', 'twn' or 'mse' rounds it" in warning
    assert "exclude=['--force.weight'] keeps" in warning
    with pytest.raises(SystemExit):
        main(["convert", "exclude=[].safetensors"])
    assert capsys.readouterr().err == (
        "tpack: exclude=[].tpack.safetensors: exists already. Use --force to replace it.\n"
    )
    with pytest.raises(SystemExit):
        main(["convert", "exclude=[].safetensors", "--force", "-q"])
    error = capsys.readouterr().err
    assert "--quantize absmean, twn or mse rounds it" in error
    assert "--exclude --force.weight keeps" in error
    with pytest.raises(tpack.TpackError, match=r"Use force=True to replace it\.$"):
        tpack.convert("exclude=[].safetensors")
