"""A decoder as an ONNX model: keys and values are inputs and outputs."""

import hf_folders
import numpy as np
import onnxruntime
import pytest
import torch

import tpack
from tpack.nn import KeyValueCache

pytestmark = pytest.mark.slow  # a capture and an export


def test_a_llama_decodes_with_its_cache(tmp_path):
    packed = hf_folders.packed_folder(hf_folders.llama(), tmp_path, capture=True)
    report = tpack.export(packed, "onnx", tmp_path / "model.onnx")
    run = onnxruntime.InferenceSession(report.output, providers=["CPUExecutionProvider"])
    model, past = tpack.load(packed), {}
    (ids, *held), (logits, *kept) = run.get_inputs(), run.get_outputs()
    assert [one.name for one in held[:2]] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [one.name for one in kept[:2]] == ["present.0.key", "present.0.value"]
    for batch in (1, 4):
        cache = KeyValueCache()
        past = {
            one.name: np.zeros((batch, one.shape[1], 0, one.shape[3]), np.float32) for one in held
        }
        for length in (7, 1, 1, 3):
            tokens = torch.randint(32, (batch, length))
            with torch.no_grad():
                expected = model(tokens, cache)
            expected = expected["logits"] if isinstance(expected, dict) else expected
            found, *new = run.run(
                [logits.name, *(one.name for one in kept)], {ids.name: tokens.numpy()} | past
            )
            assert np.abs(found - expected.numpy()).max() <= 1e-5 * max(1, np.abs(found).max())
            past = dict(zip(past, new, strict=True))
        assert {each.shape[2] for each in new} == {12}
