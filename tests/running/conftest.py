"""A small Llama with a tokenizer: plain, packed, and packed with its forward."""

import shutil

import pytest
import torch
from hf_folders import llama
from prompts import PROMPT
from small_tokenizers import byte_level

import tpack


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder with all three, and the model itself."""
    folder = tmp_path_factory.mktemp("running")
    model = llama(vocab_size=300, max_position_embeddings=64, eos_token_id=None)
    model.save_pretrained(folder / "plain")
    byte_level().save(str(folder / "plain" / "tokenizer.json"))
    tpack.convert(folder / "plain", folder / "packed")
    whole = folder / "whole"
    whole.mkdir()
    model.config.use_cache = False
    ids = torch.arange(20).reshape(2, 10)
    tpack.convert(model, whole / "llama.safetensors", example_args=(ids,))
    model.config.use_cache = True
    shutil.copy(folder / "plain" / "tokenizer.json", whole)
    return folder, model


@pytest.fixture(scope="session")
def plain(made):
    """The folder of floats."""
    return made[0] / "plain"


@pytest.fixture(scope="session")
def packed(made):
    """The folder packed from it."""
    return made[0] / "packed"


@pytest.fixture(scope="session")
def whole(made):
    """A file with the forward in its LayerDefs, and the tokenizer beside it."""
    return made[0] / "whole" / "llama.safetensors"


@pytest.fixture
def copied(plain, tmp_path):
    """A copy of the plain folder, to change."""
    return shutil.copytree(plain, tmp_path / "copied")


@pytest.fixture(scope="session")
def expected(made):
    """What transformers writes: the new tokens, and their text."""
    from transformers import AutoTokenizer

    folder, model = made
    tokenizer = AutoTokenizer.from_pretrained(folder / "plain")
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    found = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)[0].tolist()
    start, whole = (tokenizer.decode(each, skip_special_tokens=True) for each in (ids[0], found))
    return found[ids.shape[1] :], whole[len(start) :]
