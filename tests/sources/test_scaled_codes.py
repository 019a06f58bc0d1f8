"""int8 and uint8 trits with a scale are one rule; what cannot be known is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack.errors import InputError, NotTernaryError, UnsupportedError, UsageError
from tpack.sources import open_source
from tpack.sources.packed_layouts import packed_groups
from tpack.sources.scaled_codes import read_group

GENERATOR = torch.Generator().manual_seed(3)


def trits(*shape):
    found = torch.randint(-1, 2, shape, generator=GENERATOR, dtype=torch.int8)
    found.view(-1)[:3] = torch.tensor([-1, 0, 1])
    return found


def scale(*shape):
    return torch.rand(shape, generator=GENERATOR) + 0.5


def spread(factor, shape):
    """A scale at every weight, by numpy: blocks share theirs."""
    found = factor.float().numpy()
    if found.size == 1:
        return np.full(shape, found.reshape(-1)[0])
    if found.ndim < len(shape):
        found = found.reshape(*found.shape, *(1,) * (len(shape) - found.ndim))
    for dim, size in enumerate(shape):
        found = np.repeat(found, size // found.shape[dim], axis=dim)
    return found


def unpacked(state, tmp_path, name, **options):
    """What a converted weight unpacks to, after the output was compared with its source."""
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    save_file(state, source)
    report = tpack.convert(source, out, **options)
    (row,) = [t for t in report.tensors if t.name == name]
    assert (row.action, row.relative_error) == ("packed", 0.0)
    assert tpack.verify(out, source).ok
    return tpack.unpack(out)[name].numpy(), report


#: Names of a weight and its scale.
NAMES = {
    "up.weight": "up.weight_scale",
    "a.weight": "a.scale",
    "b.weight": "b.scales",
    "c.weight": "c.weight_scales",
    "weight": "weight_scale",
    "w": "w_scale",
    "x.gate_up_proj": "x.gate_up_proj_scale",
    "d.weight_q": "d.weight_scale",
    "e.int8_weights": "e.scales",
    "f.weight": "f.weight.scale",
    "g.qdata": "g.wscale",
}
#: Shapes of a scale beside a weight of shape (6, 64).
SHAPES = ((), (1,), (1, 1), (6,), (6, 1), (6, 2), (6, 4), (1, 64), (64,), (2, 2))
#: What holds trits: their codes, and what lies beside them.
CODES = {
    "int8": lambda q: (q, {}),
    "int8 times 127": lambda q: (q * 127, {}),
    "uint8 plus one": lambda q: ((q + 1).to(torch.uint8), {}),
    "bytes of int8": lambda q: (q.view(torch.uint8), {}),
    "int8 with a zero point": lambda q: (q, {"zero_point": torch.zeros(6, 1, dtype=torch.int8)}),
    "uint8 with a zero point": lambda q: (
        (q + 1).to(torch.uint8),
        {"zero_point": torch.ones(1, dtype=torch.int32)},
    ),
    "uint8 around 128": lambda q: (
        (q.int() * 127 + 128).to(torch.uint8),
        {"zero_point": torch.tensor(128, dtype=torch.uint8)},
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name, tmp_path):
    q, s = trits(6, 64), scale(6, 1)
    found, report = unpacked({name: q, NAMES[name]: s}, tmp_path, name)
    assert np.array_equal(found, spread(s, q.shape) * q.numpy())
    assert any(NAMES[name] in note for note in report.notes)
    assert report.warnings == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, dtype, tmp_path):
    q, s = trits(6, 64), scale(*shape).to(dtype)
    found, _ = unpacked({"up.weight": q, "up.weight_scale": s}, tmp_path, "up.weight")
    columns = s.reshape(1, 64) if shape == (64,) else s
    assert np.array_equal(found, spread(columns, q.shape) * q.numpy())


@pytest.mark.parametrize("shape", [(6, 4), (6, 64), (1, 64), (64,), (3, 1)])
def test_values_of_finer_scales(shape):
    """Whether or not there is a granularity for them."""
    q, s = trits(6, 64), scale(*shape)
    source = open_source({"up.weight": q, "up.weight_scale": s})
    (group,) = packed_groups(source.tensors)
    found = read_group(group, source.tensors).weight.weight(1)
    wanted = spread(s.reshape(1, 64) if shape == (64,) else s, q.shape) * q.numpy()
    assert np.array_equal(found.read(0, q.numel()).reshape(q.shape), wanted)
    assert np.array_equal(found.read(70, 133), wanted.reshape(-1)[70:133])


@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
def test_codes(codes, tmp_path):
    q, s = trits(6, 64), scale(6, 1)
    stored, beside = codes(q)
    state = {"up.weight": stored, "up.scale": s} | {f"up.{n}": t for n, t in beside.items()}
    found, report = unpacked(state, tmp_path, "up.weight")
    times = 127 if int(stored.max()) == 127 or (int(stored.max()) == 255 and beside) else 1
    wanted = (s.numpy() * np.float32(times)) * q.numpy()
    assert np.array_equal(found, wanted)
    assert bool(report.warnings) == (stored.dtype == torch.uint8 and not beside and 2 in stored)


@pytest.mark.parametrize(
    ("weight", "shape"),
    [
        ((3, 4, 32), (3, 4, 1)),
        ((3, 4, 32), (3, 1, 1)),
        ((3, 4, 32), (3, 4)),
        ((3, 4, 32), (3,)),
        ((3, 4, 64), (3, 4, 2)),
        ((6, 4, 3, 3), (6,)),
        ((6, 4, 3, 3), (6, 1, 1, 1)),
    ],
)
def test_more_dims(weight, shape, tmp_path):
    q, s = trits(*weight), scale(*shape)
    found, _ = unpacked({"x.weight": q, "x.weight_scale": s}, tmp_path, "x.weight")
    assert np.array_equal(found, spread(s, weight) * q.numpy())


def test_a_float64_scale_that_float32_holds(tmp_path):
    q, s = trits(6, 64), scale(6, 1).double()
    found, _ = unpacked({"up.weight": q, "up.scale": s}, tmp_path, "up.weight")
    assert np.array_equal(found, spread(s, q.shape) * q.numpy())
    with pytest.raises(NotTernaryError, match="float64 of shape"):
        tpack.convert({"up.weight": q, "up.scale": s / 3}, tmp_path / "o.safetensors")


def test_a_scale_of_a_square_weight_is_of_its_rows_and_says_so(tmp_path):
    q, s = trits(32, 32), scale(32)
    found, report = unpacked({"up.weight": q, "up.scale": s}, tmp_path, "up.weight")
    assert np.array_equal(found, s.numpy()[:, None] * q.numpy())
    assert "as one scale per row" in report.warnings[0]


# ---- multiply or divide


@pytest.mark.parametrize(
    "name", ["weight_scale_inv", "scale_inv", "inv_scale", "weight_divisor", "scale_reciprocal"]
)
def test_where_the_direction_cannot_be_known(name, tmp_path):
    q, s = trits(6, 64), scale(6, 1)
    state = {"up.weight": q, f"up.{name}": s}
    with pytest.raises(UnsupportedError, match=r"holds trits.*scale_means='multiply' or 'divide'"):
        tpack.convert(state, tmp_path / "x.safetensors")
    found, _ = unpacked(state, tmp_path, "up.weight", scale_means="multiply")
    assert np.array_equal(found, s.numpy() * q.numpy())
    found, _ = unpacked(state, tmp_path, "up.weight", scale_means="divide", force=True)
    assert np.array_equal(found, (1 / s.double().numpy()).astype(np.float32) * q.numpy())


def test_the_user_knows_better_than_a_name(tmp_path):
    q, s = trits(6, 64), scale(1)
    state = {"up.weight": q, "up.weight_scale": s}
    found, _ = unpacked(state, tmp_path, "up.weight", scale_means="divide")
    assert np.array_equal(found, (1 / s.double().numpy()).astype(np.float32) * q.numpy())


@pytest.mark.parametrize("means", ["multiply", "divide"])
def test_the_packing_of_transformers_without_its_config(means, tmp_path):
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    q = trits(8, 16)
    state = {
        "up.weight": bitnet.pack_weights((q + 1).float() - 1),
        "up.weight_scale": torch.tensor([0.25]),
    }
    with pytest.raises(NotTernaryError, match=r"bitnet.*scale_means="):
        tpack.convert(state, tmp_path / "x.safetensors")
    found, _ = unpacked(state, tmp_path, "up.weight", scale_means=means)
    assert np.array_equal(found, q.numpy() * (4.0 if means == "divide" else 0.25))


def test_nothing_can_be_divided_by_zero(tmp_path):
    state = {"up.weight": trits(6, 64), "up.scale": torch.zeros(1)}
    with pytest.raises(InputError, match="nothing can be divided by"):
        tpack.convert(state, tmp_path / "x.safetensors", scale_means="divide")
    with pytest.raises(UsageError, match="scale_means 'times' is unknown"):
        tpack.convert(state, tmp_path / "x.safetensors", scale_means="times")


# ---- what is not trits


NOT_TRITS = {
    "more values": ({"weight": torch.arange(-8, 8, dtype=torch.int8).reshape(2, 8)}, "more values"),
    "unsigned": ({"weight": torch.arange(16, dtype=torch.uint8).reshape(2, 8)}, "bitnet"),
    "two of three": ({"weight": torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8)}, "bitnet"),
    "zero points that differ": (
        {
            "weight": torch.tensor([[0, 1], [1, -1]], dtype=torch.int8),
            "weight_zero_point": torch.tensor([0, 1], dtype=torch.int8),
        },
        "zero point is not one number",
    ),
    "a zero point beside trits": (
        {
            "weight": torch.tensor([[0, 1], [1, -1]], dtype=torch.int8),
            "weight_zero_point": torch.tensor([1], dtype=torch.int8),
        },
        "not ternary",
    ),
}


@pytest.mark.parametrize(("state", "message"), NOT_TRITS.values(), ids=NOT_TRITS)
def test_other_codes_are_refused_by_name(state, message, tmp_path):
    state = {f"up.{n}": t for n, t in state.items()} | {"up.weight_scale": torch.tensor([0.5])}
    with pytest.raises(NotTernaryError, match=message) as caught:
        tpack.convert(state, tmp_path / "x.safetensors")
    assert caught.value.tensor == "up.weight"
    report = tpack.convert(
        state | {"down.weight": trits(4, 4), "down.scale": torch.ones(1)}, tmp_path / "x.tpack"
    )
    kept = {t.name for t in report.tensors if t.action == "kept"}
    assert kept == set(state)
    assert "up.weight" in report.warnings[0]


def test_a_scale_that_does_not_fit(tmp_path):
    state = {"up.weight": trits(6, 64), "up.scale": scale(5)}
    with pytest.raises(NotTernaryError, match=r"float32 of shape \(5,\), expected"):
        tpack.convert(state, tmp_path / "x.safetensors")


def test_asked_to_be_quantized_codes_are_multiplied_with_their_scale_first(tmp_path):
    codes = torch.randint(-127, 128, (8, 32), generator=GENERATOR, dtype=torch.int8)
    s = scale(8, 1) / 127
    out, plain = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    report = tpack.convert({"up.weight": codes, "up.scale": s}, out, quantize="absmean")
    tpack.convert({"up.weight": codes.float() * s}, plain, quantize="absmean")
    assert torch.equal(tpack.unpack(out)["up.weight"], tpack.unpack(plain)["up.weight"])
    assert [t.action for t in report.tensors] == ["quantized"]


def test_an_embedding_of_trits_is_kept_with_its_scale(tmp_path):
    state = {"tok_embeddings.weight": trits(8, 4), "tok_embeddings.scale": scale(8, 1)}
    report = tpack.convert(state | {"a.weight": trits(4, 4).float()}, tmp_path / "x.safetensors")
    assert {t.name: t.action for t in report.tensors if t.action == "kept"}.keys() == state.keys()


def test_a_scale_of_activations_is_not_of_the_weight(tmp_path):
    q = trits(6, 64)
    state = {"up.weight": q, "up.weight_scale": scale(1), "up.input_scale": scale(1)}
    found, report = unpacked(state, tmp_path, "up.weight")
    assert np.array_equal(found, state["up.weight_scale"].numpy() * q.numpy())
    assert [t.name for t in report.tensors if t.action == "kept"] == ["up.input_scale"]
