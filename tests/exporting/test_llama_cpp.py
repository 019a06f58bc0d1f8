"""Exported GGUF files in llama.cpp itself; skipped where llama-cpp-python is not installed.

llama.cpp rounds activations to eight bits, in blocks of 256: its logits are near those of the
original in float32, not equal.
"""

import ctypes

import numpy as np
import pytest
import torch
from gguf_exports import export
from hf_models import make

import tpack

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

IDS = [1, 5, 17, 33, 60, 2, 99, 41, 8, 23]
SIZES = {"hidden_size": 256, "intermediate_size": 512}
ROPE = {"rope_theta": 10000.0}
MODELS = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, other heads": ("Llama", {"head_dim": 128}),
    "llama, other base": (
        "Llama",
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ),
    "llama, stretched": (
        "Llama",
        {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}},
    ),
    "bitnet": ("BitNet", {"hidden_act": "silu", "tie_word_embeddings": True}),
}


@llama_cpp.llama_log_callback
def silent(*_):
    """llama.cpp writes to stderr by itself otherwise."""


def logits(path):
    """What llama.cpp computes for ten tokens."""
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers, options.check_tensors = 0, True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    assert model, "llama.cpp refuses the file"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 64
    settings.n_threads = settings.n_threads_batch = 2
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(IDS), 0, 1)
    batch.n_tokens = len(IDS)
    for i, token in enumerate(IDS):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert llama_cpp.llama_decode(context, batch) == 0
    rows = [llama_cpp.llama_get_logits_ith(context, i) for i in range(len(IDS))]
    found = np.stack([np.ctypeslib.as_array(row, (100,)).copy() for row in rows])
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


@pytest.mark.parametrize("kind", ["tq2_0", "tq1_0"])
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_the_original_does(tmp_path, name, kind):
    family, config = MODELS[name]
    model = make(family, **SIZES | config)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    model.save_pretrained(tmp_path / "model")
    tpack.convert(tmp_path / "model", tmp_path / "packed")
    export(tmp_path / "packed", tmp_path / "model.gguf", type=kind, allow_inexact=True)
    found = logits(tmp_path / "model.gguf")
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.995
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.8
