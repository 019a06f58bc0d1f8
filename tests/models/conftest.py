"""Fixtures of the tests of built and loaded modules."""

import importlib.util
import sys

import pytest
from loaded_models import mlp
from running import randomize
from trees import network

import tpack
from tpack.build import build_module
from tpack.codegen import generate_pytorch_code


@pytest.fixture(params=["build", "source", "standalone"])
def module(request, tmp_path, monkeypatch):
    tree = network()
    built = build_module(tree)
    randomize(built)
    if request.param == "build":
        return built
    path = tmp_path / "generated_net.py"
    path.write_text(generate_pytorch_code(tree, standalone=request.param == "standalone"))
    spec = importlib.util.spec_from_file_location("generated_net", path)
    source = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generated_net", source)
    spec.loader.exec_module(source)
    made = source.Net().eval()
    made.load_state_dict(built.state_dict())
    return made


@pytest.fixture
def file(tmp_path):
    program, state = mlp()
    tpack.convert(state, tmp_path / "m", layerdef=program)
    return tmp_path / "m"
