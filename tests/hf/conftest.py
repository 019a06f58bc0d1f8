"""Fixtures of the tests with transformers: no network, and a packed Llama."""

import huggingface_hub
import pytest
from hf_folders import llama, packed_folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return packed_folder(llama(), tmp_path_factory.mktemp("llama"))
