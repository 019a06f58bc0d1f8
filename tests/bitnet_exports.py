"""Small models for the export to Hugging Face's bitnet packing."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack.container import Checkpoint
from tpack.errors import UnsupportedError
from tpack.exporting.hf_bitnet import export_hf_bitnet


def save_plain(model, folder):
    """A folder of floats, as save_pretrained makes it."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("as you like")


def folder_of(path, weights, config=None, **options):
    """A packed folder of a few layers."""
    source = path / "source"
    source.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        source / "model.safetensors",
    )
    (source / "config.json").write_text(json.dumps({"dtype": "float32"} | (config or {})))
    tpack.convert(source, path / "packed", **{"capture": False} | options)
    return path / "packed"


def ternary(rows, columns, scale):
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(-1, 2, (rows, columns), generator=generator) * scale


def refused(path, error=UnsupportedError, **options):
    with Checkpoint(path) as file, pytest.raises(error) as caught:
        export_hf_bitnet(file, path.parent / "out", **options)
    assert not (path.parent / "out").exists()
    assert caught.value.file
    return str(caught.value)
