"""The program of a state dict has the names and shapes of the module it came from."""

import pytest
import torch
from hypothesis import given, strategies as st
from running import readings
from strategies import identifiers
from torch import nn

from tpack import LayerDefError
from tpack.build import build_module
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import Param, Slot, Unspecified, mirror, slots, validate
from tpack.layerdef.from_names import is_embedding


def slots_of(module_or_state, ternary=()):
    state = module_or_state
    if isinstance(state, nn.Module):
        state = state.state_dict()
    made = []
    for name, tensor in state.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        if name in ternary:
            param = Param(name.rpartition(".")[2], "TernaryTensor", shape)
        else:
            kind = "Tensor" if tensor.dtype.is_floating_point else "Buffer"
            param = Param(name.rpartition(".")[2], kind, shape, dtype=dtype)
        made.append(Slot(name, param))
    return made


def check(module, ternary=()):
    state = module.state_dict() if isinstance(module, nn.Module) else module
    program = mirror(slots_of(state, ternary))
    validate(program)
    found = {slot.name: slot.param for slot in slots(program)}
    assert set(found) == set(state)
    for name, param in found.items():
        assert param.shape == tuple(state[name].shape)
        assert (param.param_type == "TernaryTensor") == (name in ternary)
        if name not in ternary:
            assert param.dtype == str(state[name].dtype).removeprefix("torch.")
    built = build_module(program)
    plain = {k: v for k, v in built.state_dict().items() if k in state}
    assert {k: (v.shape, v.dtype) for k, v in plain.items()} == {
        k: (state[k].shape, state[k].dtype) for k in state if k not in ternary
    }
    for reading in readings(program).values():
        assert set(reading.state_dict()) == set(built.state_dict())
    return program


def resnet_like():
    block = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)
    )
    return nn.Sequential(block(), nn.Sequential(block(), block()), nn.Flatten(), nn.Linear(4, 2))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 8)
        self.wpe = nn.Embedding(5, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mask", torch.zeros(3, 3, dtype=torch.bool))
        self.lm_head = nn.Linear(8, 11, bias=False)


MODULES = {
    "linear": lambda: nn.Linear(3, 4),
    "linear without bias": lambda: nn.Linear(3, 4, bias=False),
    "sequential": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
    "same": lambda: nn.Sequential(*(nn.Linear(3, 3) for _ in range(5))),
    "nested lists": lambda: nn.ModuleList(
        nn.ModuleList(nn.Linear(2, 2) for _ in range(3)) for _ in range(2)
    ),
    "dict": lambda: nn.ModuleDict(
        {"a": nn.Linear(2, 2), "b": nn.ModuleDict({"c": nn.LayerNorm(2)})}
    ),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3),
    "attention": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "convolutions": resnet_like,
    "embedded": Embedded,
    "batch norm": lambda: nn.BatchNorm1d(4),
    "empty tensors": lambda: nn.ParameterList([nn.Parameter(torch.zeros(0, 3))]),
    "half": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).half(),
    "double": lambda: nn.Linear(3, 4).double(),
    "mixed": lambda: nn.Sequential(nn.Linear(3, 4).half(), nn.Linear(3, 4)),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "twelve": lambda: nn.ModuleList(
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(12)
    ),
}


@pytest.mark.parametrize("name", [name for name in MODULES if name != "empty tensors"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_slots_are_the_keys_of_the_state_dict(name):
    check(MODULES[name]())


@pytest.mark.parametrize("name", ["sequential", "same", "nested lists", "embedded", "half"])
def test_ternary_weights(name):
    module = MODULES[name]()
    ternary = {
        key for key, value in module.state_dict().items() if value.dim() == 2 and key != "mask"
    }
    program = check(module, ternary)
    packed = {key for key in build_module(program).state_dict() if key.endswith("_packed")}
    assert packed == {f"{key}_packed" for key in ternary}


def test_runs_become_repeats():
    program = mirror(slots_of(MODULES["embedded"]()))
    root = program.by_name[program.root]
    layers = next(param for param in root.params if param.name == "layers")
    assert (layers.repeat, layers.layer) == (3, "Layer")
    assert len([layer for layer in program.layers if layer.name.startswith("Layer")]) == 1
    source = generate_pytorch_code(program)
    assert "nn.ModuleList(Layer() for _ in range(3))" in source
    assert source.count("class ") == len(program.layers)


def test_known_leaves_are_builtin_layers():
    program = mirror(slots_of(MODULES["embedded"](), {"lm_head.weight", "wpe.weight"}))
    kinds = {param.name: param.layer for param in program.by_name[program.root].params}
    assert kinds["embed_tokens"] == "Embedding"
    assert kinds["wpe"] == "TernaryEmbedding"
    assert kinds["lm_head"] == "TernaryLinear"
    assert program.by_name[program.root].body == (Unspecified(),)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_alone_runs(bias):
    module = nn.Linear(3, 4, bias=bias)
    for reading in readings(mirror(slots_of(module))).values():
        reading.load_state_dict(module.state_dict(), strict=True)
        x = torch.randn(2, 3)
        torch.testing.assert_close(reading(x), module(x))


def test_structures_that_differ_do_not_share():
    module = nn.ModuleList([nn.Sequential(nn.LayerNorm(i + 1)) for i in range(3)])
    program = check(module)
    assert len(program.layers) == 4


@pytest.mark.parametrize(
    "keys", [["0.weight", "2.weight"], ["1.weight"], ["a.0.w", "a.2.w", "a.b.w"]]
)
def test_gaps_in_lists(keys):
    check({key: torch.zeros(3) for key in keys})


@pytest.mark.parametrize("keys", [["weight", "weight.x"], ["a", "a.b"], ["a.b.c", "a.b"]])
def test_a_name_that_is_tensor_and_module(keys):
    tensors = slots_of({key: torch.zeros(3) for key in keys})
    with pytest.raises(LayerDefError):
        validate(mirror(tensors))


@pytest.mark.parametrize(
    "name", ["", ".", "a.", ".a", "a..b", "a.forward", "x y", "class.w", "a.é", "0"]
)
def test_names_that_cannot_be_source(name):
    with pytest.raises(LayerDefError) as caught:
        mirror(slots_of({name: torch.zeros(3)}))
    text = str(caught.value)
    assert any(repr(part) in text for part in name.split("."))
    assert not text.startswith(":")


@given(
    st.lists(
        st.lists(identifiers(4) | st.sampled_from(["0", "1", "2"]), min_size=1, max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_random_names(parts):
    """Every state dict has a program with its keys, or is refused."""
    state = {".".join([*path, "w"]): torch.zeros(2, 2) for path in parts}
    try:
        program = mirror(slots_of(state))
        validate(program)
    except LayerDefError:
        prefixes = {key[:i] for key in state for i in range(len(key)) if key[i] == "."}
        assert prefixes & set(state)
        return
    assert {slot.name for slot in slots(program)} == set(state)
    assert set(build_module(program).state_dict()) == set(state)
    compile(generate_pytorch_code(program), "generated", "exec")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embed.weight", True),
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("h.0.mlp.weight", False),
        ("embedding.fc.weight", False),
        ("fc.weight", False),
    ],
)
def test_is_embedding(name, expected):
    assert is_embedding(name) is expected


def test_layers_that_round_their_inputs():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4, bias=False), nn.Linear(4, 4))
    names = {"0.weight", "1.weight", "2.weight"}
    program = mirror(slots_of(module, {"0.weight", "1.weight"}), int8_inputs=names - {"1.weight"})
    validate(program)
    layers = {p.name: p.layer for p in program.by_name["Model"].params}
    assert layers == {"0": "BitLinear", "1": "TernaryLinear", "2": "Layer"}
    assert isinstance(program.by_name["Layer"].body[0], Unspecified)  # a float weight
    one = mirror(slots_of({"weight": torch.ones(4, 4)}, {"weight"}), int8_inputs={"weight"})
    assert "bit_linear" in generate_pytorch_code(one)
    one = mirror(slots_of({"weight": torch.ones(4, 4)}), int8_inputs={"weight"})
    assert isinstance(one.by_name["Model"].body[0], Unspecified)


def test_a_layer_that_rounds_its_inputs_is_no_embedding():
    slots = slots_of({"time_emb.proj_emb.weight": torch.ones(4, 4)}, {"time_emb.proj_emb.weight"})
    program = mirror(slots, int8_inputs={"time_emb.proj_emb.weight"})
    assert "BitLinear" in str(program)
