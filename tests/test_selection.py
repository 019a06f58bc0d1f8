"""Which tensors are packed, by name, shape and dtype."""

import pytest

from tpack.errors import UnsupportedError
from tpack.selection import keep_reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fc.weight", None),
        ("weight", None),
        ("model.layers.0.self_attn.q_proj.weight", None),
        ("model.layers.0.mlp.down_proj.weight", None),
        ("blocks.3.output.dense.weight", None),
        ("layers.0.attention.output.weight", None),
        ("conv1.weight", None),
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("tok_embeddings.weight", "embedding"),
        ("pos_embedding", "embedding"),
        ("layers.0.norm.weight", "norm"),
        ("input_layernorm.weight", "norm"),
        ("lm_head.weight", "output head"),
        ("model.lm_head.weight", "output head"),
        ("classifier.weight", "output head"),
        ("attn.relative_position_bias_table", "no matrix by its name"),
        ("attn.mask", "no matrix by its name"),
    ],
)
def test_by_name(name, reason):
    assert keep_reason(name, "float32", (64, 64)) == reason


@pytest.mark.parametrize(
    ("dtype", "shape", "reason"),
    [
        ("float32", (), "0-D"),
        ("float32", (5,), "1-D"),
        ("float32", (0, 4), "empty"),
        ("float32", (4, 0), "empty"),
        ("int64", (4, 4), "integer"),
        ("int32", (4, 4), "integer"),
        ("uint8", (4, 4), "integer"),
        ("bool", (4, 4), "integer"),
        ("complex64", (4,), "1-D"),
        ("float8_e4m3fn", (4,), "1-D"),
        ("int8", (4, 4), None),
        ("float64", (4, 4), None),
        ("float16", (4, 4, 3, 3), None),
        ("bfloat16", (2, 4, 4), None),
    ],
)
def test_by_dtype_and_shape(dtype, shape, reason):
    assert keep_reason("fc.weight", dtype, shape) == reason


@pytest.mark.parametrize("dtype", ["complex64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_weights_in_dtypes_that_cannot_be_packed(dtype):
    with pytest.raises(UnsupportedError, match=f"{dtype}.*--exclude 'fc.weight'") as caught:
        keep_reason("fc.weight", dtype, (4, 4))
    assert caught.value.tensor == "fc.weight"
    assert keep_reason("fc.weight", dtype, (4, 4), exclude=["fc.*"]) == "excluded"
    assert keep_reason("embed.weight", dtype, (4, 4)) == "embedding"


def test_include_and_exclude():
    one = ("lm_head.weight", "float32", (4, 4))
    assert keep_reason(*one, include=["lm_head.*"]) is None
    assert keep_reason(*one, include=["other"]) == "not included"
    assert keep_reason(*one, include=["*"], exclude=["lm_*"]) == "excluded"
    assert keep_reason("FC.weight", "float32", (4, 4), exclude=["fc.*"]) is None
    assert keep_reason("fc.bias", "float32", (4,), include=["*"]) == "1-D"
