"""Fixtures of the tests of convert."""

import pytest
from shards import model, write_shards


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.safetensors"


@pytest.fixture
def source(tmp_path):
    return write_shards(tmp_path / "src", model())


@pytest.fixture
def target(tmp_path):
    return tmp_path / "dst"
