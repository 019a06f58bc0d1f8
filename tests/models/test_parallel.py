"""Two processes, each with its part of the packed weights, against one with all of them."""

import itertools
import socket
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from running import randomize
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import tpack
from tpack.build import build_module
from tpack.errors import UnsupportedError, UsageError
from tpack.layerdef import FunctionCall, Identifier, LayerCall, LayerDef, Param, Return
from tpack.nn import TernaryLinear
from tpack.parallel import ColumnLinear, Part, RowLinear, parallelize, split

CASES = {
    f"{kind}-{scale}-{layout}".replace(":", ""): (kind, scale, layout)
    for kind, scale, layout in itertools.product(
        ("TernaryLinear", "BitLinear"), ("tensor", "row", "column", "group:16"), ("t2", "t5")
    )
}
PLANS = {
    "pair": {"*.up": "column", "*.down": "row"},
    "gather": {"up": "column-gather"},
    "row": {"*.down": "row"},
}
ATTENTION = {"*.[qkv]": "column", "*.o": "row"}


def mlp(kind, scale, layout, bias=True):
    """16 inputs, 160 hidden, 12 outputs."""

    def layer(name, inputs, outputs):
        args = {"in_features": inputs, "out_features": outputs, "bias": bias}
        args |= {"scale": scale, "layout": layout}
        return Param(name, "Layer", layer=kind, args=args)

    hidden = FunctionCall("relu", [LayerCall("up", [Identifier("x")])])
    params = [layer("up", 16, 160), layer("down", 160, 12), Param("x", "Tensor")]
    return LayerDef("Mlp", params, [Return(LayerCall("down", [hidden]))])


class Attention(nn.Module):
    """Four query heads of 8, two of keys and values; the number of heads is what is there."""

    def __init__(self):
        super().__init__()
        self.q, self.o = TernaryLinear(32, 32), TernaryLinear(32, 32)
        self.k, self.v = TernaryLinear(32, 16, bias=False), TernaryLinear(32, 16)

    def forward(self, x):
        q, k, v = (
            layer(x).reshape(*x.shape[:-1], -1, 8).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o(y.transpose(1, 2).reshape(*x.shape[:-1], -1))


def attention():
    module = Attention().eval()
    randomize(module, seed=3)
    return module


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


# ---- what each process does


def work(mesh, folder):
    found = {}
    for case in CASES:
        for plan, layers in PLANS.items():
            module = tpack.load(folder / f"{case}.safetensors", device_mesh=mesh, parallel=layers)
            packed = [t for name, t in module.named_buffers() if name.endswith("_packed")]
            found[case, plan] = {
                "output": module(inputs(3, 16)),
                "bytes": sum(t.untyped_storage().nbytes() for t in packed),
                "grads": all(not t.requires_grad for t in packed),
            }
        half = module(inputs(3, 16).to(torch.bfloat16))
        found[case, "bfloat16"] = {"output": half}
    live = parallelize(attention(), mesh, ATTENTION)
    size = sum(t.untyped_storage().nbytes() for t in live.buffers())
    found["attention"] = {"output": live(inputs(2, 5, 32)), "bytes": size}
    return found


def run(rank, port, folder, work=work):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    with torch.no_grad():
        torch.save(work(mesh, folder), folder / f"{rank}.pt")
    dist.destroy_process_group()


def spawn(folder, *more):
    """Run two processes; what they found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run, (port, folder, *more), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes found, and the files that they loaded."""
    folder = tmp_path_factory.mktemp("parallel")
    for seed, (case, form) in enumerate(CASES.items()):
        module = build_module(mlp(*form))
        randomize(module, seed)
        tpack.save(module, folder / f"{case}.safetensors")
    return SimpleNamespace(folder=folder, found=spawn(folder))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_one_process(ranks, case, plan):
    whole = tpack.load(ranks.folder / f"{case}.safetensors")
    with torch.no_grad():
        expected = whole(inputs(3, 16))
    for found in ranks.found:
        torch.testing.assert_close(found[case, plan]["output"], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_sums_of_bfloat16_are_made_in_float32(ranks, case):
    whole = tpack.load(ranks.folder / f"{case}.safetensors")
    with torch.no_grad():
        expected = whole(inputs(3, 16).to(torch.bfloat16))
    for found in ranks.found:
        output = found[case, "bfloat16"]["output"]
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output, expected, rtol=2**-6, atol=2.0**-3)


@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_half_of_the_packed_bytes(ranks, case):
    whole = tpack.load(ranks.folder / f"{case}.safetensors")
    size = sum(t.nbytes for name, t in whole.named_buffers() if name.endswith("_packed"))
    for found in ranks.found:
        assert found[case, "pair"]["bytes"] == size / 2


def test_attention_divides_its_heads(ranks):
    module = attention()
    with torch.no_grad():
        expected = module(inputs(2, 5, 32))
    size = sum(t.nbytes for t in module.buffers())
    for found in ranks.found:
        torch.testing.assert_close(found["attention"]["output"], expected, rtol=1e-5, atol=1e-4)
        assert found["attention"]["bytes"] == size / 2


# ---- a model of transformers

IDS = torch.tensor([[5, 9, 17, 3], [8, 8, 1, 40]])


def llama_work(mesh, folder):
    import transformers

    import tpack.hf  # noqa: F401

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "packed")
    whole = {"logits": model(IDS).logits, "tokens": model.generate(IDS, max_new_tokens=5)}
    before = sum(t.nbytes for name, t in model.named_buffers() if name.endswith("_packed"))
    attention = {f"*.{name}_proj": "column" for name in "qkv"} | {"*.o_proj": "row"}
    mlp = {"*.gate_proj": "column", "*.up_proj": "column", "*.down_proj": "row"}
    parallelize(model, mesh, attention | mlp)
    packed = [t for name, t in model.named_buffers() if name.endswith("_packed")]
    return {
        "whole": whole,
        "logits": model(IDS).logits,
        "tokens": model.generate(IDS, max_new_tokens=5),
        "share": sum(t.untyped_storage().nbytes() for t in packed) / before,
    }


@pytest.mark.slow
def test_a_model_of_transformers_is_cut_in_place(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=None,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "plain")
    tpack.convert(tmp_path / "plain", tmp_path / "packed")
    for found in spawn(tmp_path, llama_work):
        assert found["share"] == 0.5
        torch.testing.assert_close(found["logits"], found["whole"]["logits"], rtol=0, atol=1e-5)
        assert torch.equal(found["tokens"], found["whole"]["tokens"])


# ---- in this process


def mesh(rank=0, size=2, ndim=1):
    """What ``split`` asks of a mesh."""
    return SimpleNamespace(ndim=ndim, size=lambda: size, get_local_rank=lambda: rank)


def test_parts_cover_the_weight():
    for name, style in (("up", "column"), ("down", "row")):
        whole = build_module(mlp("TernaryLinear", "group:16", "t2"))
        randomize(whole)
        state = whole.state_dict()
        halves = []
        for rank in (0, 1):
            module = build_module(mlp("TernaryLinear", "group:16", "t2"))
            parts = split(module, mesh(rank), {name: style})
            layer = module.get_submodule(name)
            assert type(layer) is (ColumnLinear if style == "column" else RowLinear)
            halves.append({key: part.of(state[key]) for key, part in parts.items()})
            for key, part in halves[-1].items():
                assert part.shape == module.state_dict()[key].shape
        for key in halves[0]:
            dim = 0 if style == "column" else 1
            joined = torch.cat([half[key] for half in halves], dim)
            torch.testing.assert_close(joined, state[key], rtol=0, atol=0)


def test_the_first_of_several_patterns_counts():
    module = build_module(mlp("TernaryLinear", "tensor", "t2"))
    parts = split(module, mesh(), {"down": "row", "[ud]*": "column"})
    assert parts["down.weight_packed"] == Part(1, 0, 20)
    assert parts["up.weight_packed"] == Part(0, 0, 80)


@pytest.mark.parametrize(
    ("plan", "where", "error", "text"),
    [
        ({"*.upp": "column"}, mesh(), UsageError, "'*.upp' matches no module"),
        ({"up": "colwise"}, mesh(), UsageError, "'colwise' is unknown, expected column"),
        ({"up": "column"}, mesh(ndim=2), UsageError, "2 dimensions, expected 1"),
        (
            {"up": "column"},
            mesh(size=3),
            UnsupportedError,
            "tensor 'up.weight' has 160 out_features, expected a multiple of 3 for 3 processes",
        ),
        (
            {"down": "row"},
            mesh(size=4),
            UnsupportedError,
            "tensor 'down.weight' has 160 in_features, expected a multiple of 64 for 4 processes",
        ),
    ],
)
def test_refusals_say_what_and_where(plan, where, error, text):
    module = build_module(mlp("TernaryLinear", "group:16", "t2"))
    with pytest.raises(error) as caught:
        split(module, where, plan)
    assert text in str(caught.value)


def test_layers_that_are_not_packed_are_named():
    module = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(UsageError, match="0 is a Linear, expected a TernaryLinear or BitLinear"):
        split(module, mesh(), {"0": "column"})


def test_a_mesh_without_a_plan_is_refused(tmp_path):
    module = build_module(mlp("TernaryLinear", "tensor", "t2"))
    tpack.save(module, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="expected both or neither"):
        tpack.load(tmp_path / "m.safetensors", parallel={"up": "column"})


def test_a_part_is_not_saved(tmp_path):
    module = parallelize(build_module(mlp("TernaryLinear", "row", "t2")), mesh(), {"up": "column"})
    with pytest.raises(UsageError, match="up holds the part of one process"):
        tpack.save(module, tmp_path / "m")
