"""Laws of the public functions, on random input: what is written is read again, and two ways to
the same numbers agree. Names that have their laws elsewhere are listed in ``ELSEWHERE``.
"""

from __future__ import annotations

import ast
import math
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from running import randomize
from strategies import UNSHRUNK, Runnable, runnables
from torch import nn

import tpack
import tpack.codegen
import tpack.layerdef
import tpack.nn
import tpack.quantize
from tpack.build import build_module
from tpack.dtypes import DTYPES, WEIGHT_DTYPES
from tpack.layerdef import Program, as_program, lower, slots, validate
from tpack.quantize import narrow, widen

SOME = settings(max_examples=30, phases=UNSHRUNK)
FEW = settings(max_examples=15, phases=UNSHRUNK)

#: Public names whose laws stand in the tests of their own module: name → file.
ELSEWHERE = {
    "FormatError": "test_container.py",
    "ExistsError": "test_container.py",
    "StorageError": "test_faults.py",
    "InputError": "test_container.py",
    "LayerDefError": "test_validation.py",
    "NotTernaryError": "test_pack.py",
    "TpackError": "test_errors.py",
    "UnsupportedError": "test_sources.py",
    "UsageError": "test_pack.py",
    "BitLinear": "test_nn.py",
    "METHODS": "test_exact.py",
    "Encoded": "test_exact.py",
    "Fit": "test_exact.py",
    "Detected": "test_exact.py",
    "detect": "test_exact.py",
    "quantize": "test_exact.py",
    "refuse": "test_exact.py",
    "Recognised": "test_recognition.py",
    "recognise": "test_recognition.py",
    "Rounding": "test_source_hf_bitnet.py",
    "Weight": "test_exact.py",
    "encode": "test_exact.py",
    "encode_blocks": "test_exact.py",
    "fit": "test_exact.py",
    "freeze": "test_training.py",
    "unfreeze": "test_training.py",
    "is_unfrozen": "test_training.py",
    "mirror": "test_from_names.py",
    "OPS": "test_ops.py",
    "Slot": "test_from_names.py",
    **dict.fromkeys(
        ("Assignment", "BinaryOp", "Dict", "Expression", "FunctionCall", "Identifier", "LayerCall"),
        "test_serialization.py",
    ),
    **dict.fromkeys(
        ("Literal", "Param", "Return", "Statement", "Tuple", "UnaryOp", "Unpack", "Unspecified"),
        "test_serialization.py",
    ),
    **dict.fromkeys(("LayerDef", "Program", "Sizes"), "test_serialization.py"),
    **dict.fromkeys(("pack_ternary", "unpack_ternary"), "test_pack.py"),
    "packed_zeros": "test_nn.py",
    "export": "test_gguf.py",
    **dict.fromkeys(
        ("generate", "NO_CACHE", "KeyValueCache", "NoCache", "causal_attention"),
        "test_capture_caches.py",
    ),
    **dict.fromkeys(
        (
            "by_expert",
            "expert_linear",
            "expert_matmul",
            "ternary_expert_linear",
            "ternary_expert_matmul",
        ),
        "test_functional.py",
    ),
}


def test_every_public_name_has_its_laws():
    tests = Path(__file__).parents[1]
    tested = {
        n.attr
        for n in ast.walk(ast.parse(Path(__file__).read_text()))
        if isinstance(n, ast.Attribute)
    }
    tested |= {"validate", "as_program", "lower", "slots", "narrow", "widen", "__version__"}
    for module in (tpack, tpack.nn, tpack.layerdef, tpack.quantize, tpack.codegen):
        for name in module.__all__:
            home = ELSEWHERE.get(name)
            assert name in tested if home is None else list(tests.glob(f"*/{home}")), name


# ---- checkpoints


@st.composite
def state_dicts(draw):
    """Ternary weights of any dtype and granularity, and other tensors; and what each is."""
    state, wanted = {}, {}
    for i in range(draw(st.integers(1, 3))):
        rows, columns = draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 4, 32, 70, 128]))
        dtype = getattr(torch, draw(st.sampled_from([d for d in WEIGHT_DTYPES if d != "int8"])))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        trits = torch.randint(-1, 2, (rows, columns), generator=generator)
        # scales of narrow rows would cost more than the packed weight saves
        kind = draw(st.sampled_from(["tensor", "row", "group"] if columns > 16 else ["tensor"]))
        shape = {"tensor": (1, 1), "row": (rows, 1), "group": (rows, -(-columns // 32))}[kind]
        exponents = torch.randint(-8, 8, shape, generator=generator)
        scale = 2.0**exponents * draw(st.sampled_from([1.0, 1.25, 1.75]))
        spread = scale.repeat_interleave(32, 1)[:, :columns] if kind == "group" else scale
        weight = (trits * spread).to(dtype)
        if draw(st.booleans()):
            weight = weight.T.contiguous().T
        state[f"layer{i}.weight"] = weight
        wanted[f"layer{i}.weight"] = "packed"
    for i in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from([each for each in DTYPES if each.bits >= 8]))  # not codes
        count = kind.nbytes(1)
        raw = torch.tensor(draw(st.lists(st.integers(0, 255), min_size=1, max_size=5)) * count)
        state[f"other{i}.bias"] = raw.to(torch.uint8).view(getattr(torch, kind.name))
        wanted[f"other{i}.bias"] = "kept"
    return state, wanted


def same(a, b):
    """The same bits, where -0.0 and 0.0 are the same in what was packed."""
    return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)


def _bytes(tensor):
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@FEW
@given(state_dicts(), st.sampled_from(["t2", "t5"]))
def test_what_is_converted_unpacks_verifies_and_differs_in_nothing(given, layout):
    state, wanted = given
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "a.safetensors", Path(folder) / "b.safetensors"
        report = tpack.convert(state, path, exact=True, layout=layout)
        assert isinstance(report, tpack.ConversionReport)
        assert {row.name: row.action for row in report.tensors} == wanted
        unpacked = tpack.unpack(path)
        assert unpacked.keys() == state.keys()
        for name, tensor in state.items():
            plain = tensor + 0 if wanted[name] == "packed" else tensor  # -0.0 becomes 0.0
            assert same(unpacked[name], plain), name
        verified = tpack.verify(path, against=state)
        assert isinstance(verified, tpack.VerificationReport)
        assert verified.ok
        inspected = tpack.inspect(path)
        assert isinstance(inspected, tpack.InspectionReport)
        assert {row["name"] for row in inspected.to_dict()["tensors"]} == {
            name for name, what in wanted.items() if what == "packed"
        }
        tpack.convert(unpacked, again, exact=True, layout=layout)
        assert again.read_bytes() == path.read_bytes()
        compared = tpack.diff(path, again)
        assert isinstance(compared, tpack.DiffReport)
        assert compared.equal


@FEW
@given(runnables(), st.integers(0, 9))
def test_a_built_module_is_saved_and_loaded_the_same(example: Runnable, seed):
    module = build_module(example.program)
    if not any(True for _ in slots(example.program)):
        return
    randomize(module, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        tpack.save(module, path)
        loaded = tpack.load(path)
        ours, theirs = module.state_dict(), loaded.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(same(ours[name], theirs[name]) for name in ours)
        assert tpack.verify(path).ok
        again = Path(folder) / "again.safetensors"
        tpack.save(loaded, again)
        assert again.read_bytes() == path.read_bytes()


# ---- trees


@FEW
@given(runnables())
def test_programs_validate_lower_and_print_alike(example: Runnable):
    program = example.program
    validate(program)
    assert as_program(program) == program
    for layer in program.layers:
        lowered = lower(layer, program)
        assert isinstance(lowered, tpack.layerdef.Lowered)
        assert lowered == lower(layer, program)
        assert lowered.name == layer.name
    source = tpack.generate_pytorch_code(program)
    generator = tpack.PyTorchCodeGenerator()
    assert generator.generate_module(program) == source
    assert tpack.codegen.generate_pytorch_code(Program.from_dict(program.to_dict())) == source
    classes = {n.name for n in ast.parse(source).body if isinstance(n, ast.ClassDef)}
    assert classes == set(program.by_name)
    stored = set()
    for slot in slots(program):
        ends = ("_packed", "_scale") if slot.param.param_type == "TernaryTensor" else ("",)
        stored |= {f"{slot.name}{end}" for end in ends}
    assert stored == set(build_module(program).state_dict())


# ---- numbers


@given(
    st.sampled_from(["float64", "float32", "float16", "bfloat16"]),
    st.lists(st.integers(0, 2**64 - 1), max_size=20),
)
def test_narrow_gives_back_what_widen_took(dtype, words):
    kind = "uint16" if dtype == "bfloat16" else dtype
    raw = np.array(words, np.uint64).view(kind)
    wide = widen(raw, dtype)
    again = narrow(wide, dtype)
    numbers = ~np.isnan(wide)
    assert again.dtype == raw.dtype
    assert again[numbers].tobytes() == raw[numbers].tobytes()
    assert np.isnan(widen(again, dtype)[~numbers]).all()


# ---- ops


def weights(draw_seed, shape, split, kind, layout):
    """Random trits packed, their scale, and the weight they stand for in float64."""
    generator = torch.Generator().manual_seed(draw_seed)
    trits = torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)
    rows = math.prod(shape[:split])
    columns = math.prod(shape[split:])
    size = 4 if kind == "group" else 0
    scales = {
        "tensor": (1,),
        "row": (*shape[:split], 1),
        "column": (*(1,) * split, columns),
        "group": (*shape[:split], -(-columns // 4)),
    }
    scale = torch.rand(scales[kind], generator=generator) + 0.5
    flat = scale.reshape(-1, scale.shape[-1]).double()
    spread = flat.repeat_interleave(4, 1)[:, :columns] if size else flat
    dense = (trits.reshape(rows, columns) * spread).reshape(shape)
    packed = tpack.codec.pack(trits.reshape(rows, columns).numpy(), layout)
    packed = torch.from_numpy(packed).reshape(*shape[:split], -1)
    return packed, scale, dense, {"layout": layout, "group_size": size}


ops = {
    "seed": st.integers(0, 999),
    "kind": st.sampled_from(["tensor", "row", "column", "group"]),
    "layout": st.sampled_from(["t2", "t5"]),
    "n": st.integers(1, 9),
    "k": st.integers(1, 40),
}


def close(found, wanted):
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-4)


@SOME
@given(**ops)
def test_ternary_linear_matmul_embedding_and_dequantize(seed, kind, layout, n, k):
    packed, scale, dense, how = weights(seed, (n, k), 1, kind, layout)
    x = torch.randn(3, k, generator=torch.Generator().manual_seed(seed))
    bias = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    wanted = F.linear(x.double(), dense, bias.double())
    close(tpack.nn.ternary_linear(x, packed, scale, bias, **how), wanted)
    y = torch.randn(2, n, generator=torch.Generator().manual_seed(seed))
    close(tpack.nn.ternary_matmul(y, packed, scale, (n, k), **how), y.double() @ dense)
    ids = torch.randint(0, n, (2, 3), generator=torch.Generator().manual_seed(seed))
    close(tpack.nn.ternary_embedding(ids, packed, scale, (n, k), **how), dense[ids])
    close(tpack.nn.dequantize(packed, scale, (n, k), **how), dense)
    trits = tpack.nn.unpack_trits(packed, k, layout)
    assert torch.equal(trits.double().sign(), dense.sign())
    # by the definition: integers of 127 / max|x|, rounded half to even
    gain = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    rounded = (x * gain).round().clamp(-128, 127)
    close(
        tpack.nn.ternary_bit_linear(x, packed, scale, bias, **how),
        F.linear(rounded.double(), dense) / gain.double() + bias.double(),
    )


@given(stride=st.integers(1, 2), padding=st.integers(0, 2), groups=st.integers(1, 2), **ops)
@SOME
def test_ternary_convolutions(seed, kind, layout, n, k, stride, padding, groups):
    inputs, outputs, kernel = 2 * (k % 3 + 1), 2 * n, k % 3 + 1
    options = {"stride": stride, "padding": padding, "groups": groups}
    generator = torch.Generator().manual_seed(seed)
    shape = (outputs, inputs // groups, kernel, kernel)
    packed, scale, dense, how = weights(seed, shape, 1, kind, layout)
    x = torch.randn(1, inputs, 5, 6, generator=generator)
    found = tpack.nn.ternary_conv2d(x, packed, scale, shape, **options, **how)
    close(found, F.conv2d(x.double(), dense, **options))
    packed, scale, dense, how = weights(seed, shape[:3], 1, kind, layout)
    found = tpack.nn.ternary_conv1d(x[:, :, 0], packed, scale, shape[:3], **options, **how)
    close(found, F.conv1d(x[:, :, 0].double(), dense, **options))


@SOME
@given(**ops)
def test_layers_compute_what_their_weights_say(seed, kind, layout, n, k):
    del kind
    packed, scale, dense, _ = weights(seed, (n, k), 1, "row", layout)
    layer = tpack.nn.TernaryLinear(k, n, bias=False, scale="row", layout=layout)
    layer.weight_packed.copy_(packed)
    layer.weight_scale.data.copy_(scale)
    x = torch.randn(2, k, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        close(layer(x), x.double() @ dense.T)
    table = tpack.nn.TernaryEmbedding(n, k, scale="row", layout=layout)
    table.load_state_dict(layer.state_dict())
    close(table(torch.arange(n)).detach(), dense)
    shape = (n, 1, 1, k)
    convolution = tpack.nn.TernaryConv2d(1, n, (1, k), bias=False, scale="row", layout=layout)
    convolution.load_state_dict(layer.state_dict())
    assert isinstance(convolution, tpack.nn.PackedModule)
    close(
        convolution(x.reshape(2, 1, 1, k)).detach(),
        F.conv2d(x.reshape(2, 1, 1, k).double(), dense.reshape(shape)),
    )


@given(st.integers(1, 16).map(lambda half: 2 * half), st.floats(1.5, 1e6))
def test_rotary_frequencies_and_rotate_half(dim, base):
    wanted = [base ** (-2 * i / dim) for i in range(dim // 2)]
    found = tpack.nn.rotary_frequencies(dim, base)
    assert torch.allclose(found.double(), torch.tensor(wanted).double(), rtol=1e-4)
    x = torch.randn(3, dim, generator=torch.Generator().manual_seed(dim))
    assert torch.equal(tpack.nn.rotate_half(tpack.nn.rotate_half(x)), -x)
    turned = tpack.nn.rotate_half(x)
    assert torch.equal(turned[:, dim // 2 :], x[:, : dim // 2])


# ---- captures


@pytest.mark.slow
@settings(max_examples=8, phases=UNSHRUNK)
@given(st.lists(st.sampled_from([3, 4, 8]), min_size=2, max_size=4), st.integers(0, 9))
def test_a_captured_stack_computes_the_same(widths, seed):
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.GELU()]
    module = nn.Sequential(*layers).eval()
    x = torch.randn(2, widths[0])
    program = tpack.capture(module, (x,))
    built = build_module(program)
    plain = dict(module.state_dict())
    assert built.state_dict().keys() == plain.keys()
    built.load_state_dict(plain)
    with torch.no_grad():
        assert torch.equal(built(x), module(x))
