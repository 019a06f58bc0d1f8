"""Weights in blocks of GGUF: which are exact, and what becomes of the others."""

import re

import numpy as np
import pytest
import torch
from gguf_exports import contents, export, folder, hf_weights, packed, read, ternary
from gguf_files import HEADS, container, interleave

import tpack
from tpack import codec
from tpack.dialects import gguf_blocks
from tpack.errors import UnsupportedError


@pytest.mark.parametrize(
    ("columns", "scales", "kind"),
    [
        (256, 0.5, "TQ2_0"),
        (3200, 0.5, "Q2_0"),
        (8640, 0.5, "Q2_0"),
        (512, [[0.5], [0.25], [1], [2]], "TQ2_0"),
        (512, np.repeat([[1, 2], [3, 4], [1, 1], [2, 2]], 256, 1), "TQ2_0"),
        (512, np.repeat([[1, 2, 3, 4]] * 4, 128, 1), "Q2_0"),
        (512, np.repeat([[1, 2, 3, 4, 1, 2, 3, 4]] * 4, 64, 1), "Q2_0"),
    ],
)
def test_auto_takes_the_first_type_that_is_exact(tmp_path, columns, scales, kind):
    path = packed(tmp_path, ternary((4, columns), scales))
    before = contents(path)
    report = export(path, tmp_path / "m.gguf")
    assert report.tensors[0].type == kind
    assert report.tensors[0].error == 0
    tpack.convert(tmp_path / "m.gguf", tmp_path / "again.safetensors")
    after = contents(tmp_path / "again.safetensors")
    for name in before:
        assert after[name] == before[name]


@pytest.mark.parametrize(
    ("columns", "scales", "kind", "words"),
    [
        (5460, 0.5, "auto", "has 5460 columns, expected a multiple of 64 in Q2_0"),
        (3200, 0.5, "tq2_0", "has 3200 columns, expected a multiple of 256 in TQ2_0"),
        (8640, 0.5, "tq1_0", "has 8640 columns, expected a multiple of 256 in TQ1_0"),
        (512, np.repeat([[1, 2, 3, 4]] * 4, 128, 1), "tq2_0", "scales per group:128, expected one"),
        (256, np.repeat([[1, 2, 3, 4, 5, 6, 7, 8]] * 4, 32, 1), "auto", "scales per group:32"),
    ],
)
def test_weights_that_fit_no_blocks(tmp_path, columns, scales, kind, words):
    weight = ternary((4, columns), scales)
    path = packed(tmp_path, weight)
    with pytest.raises(UnsupportedError, match=words) as caught:
        export(path, tmp_path / "m.gguf", type=kind)
    assert "allow_inexact=True would write the weight unpacked, in float16" in str(caught.value)
    assert caught.value.tensor == "model.layers.0.mlp.up_proj.weight"
    assert caught.value.file == str(path)
    assert not (tmp_path / "m.gguf").exists()
    report = export(path, tmp_path / "m.gguf", type=kind, allow_inexact=True)
    assert (report.tensors[0].type, report.tensors[0].error) == ("float16", 0)
    assert re.search(words, report.tensors[0].reason)
    assert np.array_equal(read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"], weight)


def test_scales_of_columns_go_into_blocks_that_share_one(tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    for scales, wanted in (
        (np.repeat([1, 2, 4, 8], 64), ("Q2_0", 0)),
        (np.arange(1, 257) / 512, ("float16", 0)),
    ):
        weight = ternary((256, 256), scales)  # square: the scale has a value for each row, too
        path = packed(tmp_path, weight)
        assert tpack.inspect(path).tensors[0].scale == "column"
        if wanted[0] == "float16":
            with pytest.raises(UnsupportedError, match="has scales per column, expected one for"):
                export(path, tmp_path / "other.gguf")
        report = export(path, tmp_path / "m.gguf", allow_inexact=True, force=True)
        assert (report.tensors[0].type, report.tensors[0].error) == wanted
        tpack.convert(tmp_path / "m.gguf", tmp_path / "again", force=True, include=[name])
        assert np.array_equal(tpack.unpack(tmp_path / "again")[name].numpy(), weight)


def test_unpacked_in_float32_where_float16_would_round(tmp_path):
    weight = ternary((4, 60), np.float32(0.0123))
    path = packed(tmp_path, weight)
    with pytest.raises(UnsupportedError, match="unpacked, in float32"):
        export(path, tmp_path / "m.gguf")
    export(path, tmp_path / "m.gguf", allow_inexact=True)
    assert np.array_equal(read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"], weight)


def test_unpacked_rows_are_permuted_too(tmp_path):
    weights = hf_weights()
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = torch.from_numpy(
        ternary((256, 256), np.repeat([[1, 2, 3, 4, 5, 6, 7, 8]] * 256, 32, 1))
    )
    report = export(folder(tmp_path, weights), tmp_path / "m.gguf", allow_inexact=True)
    assert "float16" in {t.type for t in report.tensors if t.source == name}
    found = read(tmp_path / "m.gguf")["blk.0.attn_q.weight"]
    assert np.array_equal(found, interleave(weights[name].numpy(), HEADS))


@pytest.mark.parametrize("granularity", ["row", "group:256"])
def test_scales_are_permuted_with_their_rows(tmp_path, granularity):
    rng = np.random.default_rng(0)
    width = 1 if granularity == "row" else 2
    scales = rng.uniform(0.1, 2, (256, width)).astype(np.float16).astype(np.float32)
    weight = ternary((256, 512), np.repeat(scales, 512 // width, 1))
    weights = hf_weights()
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.from_numpy(weight)
    path = folder(tmp_path, weights)
    export(path, tmp_path / "m.gguf")
    found = read(tmp_path / "m.gguf")["blk.0.attn_q.weight"]
    assert np.array_equal(found, interleave(weight, HEADS))
    tpack.convert(tmp_path / "m.gguf", tmp_path / "again.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert contents(tmp_path / "again.safetensors")[name] == contents(path)[name]
    assert contents(path)[name][1] == granularity


@pytest.mark.parametrize("scale", [1e6, 1e-12])
def test_scales_beyond_float16(tmp_path, scale):
    path = packed(tmp_path, ternary((4, 256), np.float32(scale)))
    for allow in (False, True):
        with pytest.raises(UnsupportedError, match="which is beyond float16"):
            export(path, tmp_path / "m.gguf", allow_inexact=allow)


def test_the_worst_scale_is_reported(tmp_path):
    scales = np.float32([[0.5], [0.1], [0.3], [2]])
    path = packed(tmp_path, ternary((4, 256), scales))
    with pytest.raises(UnsupportedError, match=r"relative error"):
        export(path, tmp_path / "m.gguf")
    report = export(path, tmp_path / "m.gguf", allow_inexact=True)
    off = np.abs(scales.astype(np.float16).astype(np.float32) - scales) / scales
    assert report.tensors[0].error == pytest.approx(off.max(), rel=1e-3)


def test_convolutions_have_no_blocks(tmp_path):
    weight = ternary((4, 256), 0.5).reshape(4, 4, 8, 8)
    path = packed(tmp_path, weight)
    with pytest.raises(UnsupportedError, match=r"shape \(4, 4, 8, 8\), of which 1 dimensions"):
        export(path, tmp_path / "m.gguf")


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(tmp_path, rank):
    shape = (256,) if rank == 1 else (3, 5, 256)
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (int(np.prod(shape[:-1])), 256)).astype(np.int8)
    scales = np.full((len(trits), 1), 0.5, np.float16)
    data = gguf_blocks.pack_blocks(gguf_blocks.TQ2_0, codec.pack(trits), scales).tobytes()
    (tmp_path / "a.gguf").write_bytes(container((), [("w", shape, 35, data)]))
    tpack.convert(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, dtype=torch.uint8), "is uint8, expected"),
        (torch.zeros(3, 1, 1, 1, 1, dtype=torch.int32), "at most 4 dimensions"),
    ],
)
def test_tensors_that_gguf_has_no_room_for(tmp_path, tensor, words):
    weights = hf_weights() | {"model.norm.weight": tensor}
    with pytest.raises(UnsupportedError, match=words):
        export(folder(tmp_path, weights), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_names_that_gguf_has_no_room_for(tmp_path):
    path = packed(tmp_path, ternary((4, 256), 0.5), name="x" * 64)
    with pytest.raises(UnsupportedError, match="a name of 64 bytes"):
        export(path, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
