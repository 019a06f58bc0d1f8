"""What the card of a packed folder says to do works."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import transformers
from commands import run
from hf_folders import SIZES, close, llama, logits, make, packed_folder
from safetensors.torch import save_file

import tpack

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def steps(folder):
    """The blocks of tpack's part of a card: to install, to load, to check."""
    (_, install), (language, load), (_, check) = BLOCK.findall((folder / "README.md").read_text())
    assert language == "python"
    return install.strip(), load, check.splitlines()


@pytest.mark.parametrize(
    ("config", "cls"),
    [
        (transformers.LlamaConfig(**SIZES), "AutoModelForCausalLM"),
        (transformers.BertConfig(**SIZES), "BertModel"),
    ],
    ids=lambda each: each if isinstance(each, str) else each.model_type,
)
def test_a_model_of_transformers_loads_there(config, cls, tmp_path, monkeypatch):
    auto = transformers.AutoModel if cls == "BertModel" else transformers.AutoModelForCausalLM
    model = make(config, auto)
    folder = packed_folder(model, tmp_path)
    install, load, check = steps(folder)
    assert install == "pip install 'tpack-ternary[hf]'"
    assert f"import {cls}\n" in load
    monkeypatch.chdir(folder)
    found = {}
    exec(load, found)
    close(logits(found["model"].eval()), logits(model))
    for command in check:
        program, *arguments = shlex.split(command)
        assert (program, run(arguments)[0]) == ("tpack", 0)
    assert (tmp_path / "plain-model" / "config.json").exists()


@pytest.mark.parametrize("config", [{}, {"model_type": "llama", "auto_map": {"AutoModel": "a.B"}}])
def test_another_model_loads_with_tpack(config, tmp_path, monkeypatch):
    folder = tmp_path / "plain"
    folder.mkdir()
    save_file({"fc.weight": torch.randint(-1, 2, (8, 8)) * 0.5}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("# Mine\n\n    pip install mine\n")
    packed = Path(tpack.convert(folder).output)
    install, load, _ = steps(packed)
    assert install == "pip install tpack-ternary"
    monkeypatch.chdir(packed)
    found = {}
    exec(load, found)
    assert type(found["model"].fc).__name__ == "TernaryLinear"
    assert (packed / "README.md").read_text().endswith("---\n\n# Mine\n\n    pip install mine\n")


def test_what_is_installed_is_this_project():
    assert PROJECT["name"] == "tpack-ternary"
    assert "hf" in PROJECT["optional-dependencies"]


@pytest.mark.parametrize("classes", ["Llama", [], ["a b"], ["`x`"], [None], ["None"], None])
def test_a_config_writes_nothing_odd_into_the_card(classes, tmp_path):
    folder = packed_folder(llama(), tmp_path, {"architectures": classes})
    assert "import AutoModel\n" in steps(folder)[1]
