"""Programs of TorchScript: what torch.jit.load gives, by name, without their code."""

import pytest
import torch
from torch import nn

import tpack
from tpack.sources import open_source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.up = nn.Linear(4, 3)
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.blocks[1].weight = self.blocks[0].weight
        self.view = nn.Parameter(torch.arange(100.0)[10:19].reshape(3, 3).t())
        self.small = nn.Parameter(torch.ones(3).bfloat16(), requires_grad=False)
        self.register_buffer("count", torch.arange(3))
        self.register_buffer("fleeting", torch.ones(3), persistent=False)
        self.plain = torch.full((2, 2), 7.0)
        self.named = {"a": torch.ones(1)}

    def forward(self, x):
        y = self.up(self.table(x)) @ self.view
        for block in self.blocks:
            y = block(y)
        return y + self.small.float() + self.count + self.fleeting + self.plain.sum()


def tensors(path):
    """Every tensor that tpack finds, as floats."""
    with open_source(path) as source:
        found = {n: torch.from_numpy(t.read(0, t.numel)) for n, t in source.tensors.items()}
        found = {
            n: (t.view(torch.bfloat16) if source.tensors[n].dtype == "bfloat16" else t).reshape(
                source.tensors[n].shape
            )
            for n, t in found.items()
        }
        return found | {alias: found[name] for alias, name in source.aliases.items()}, source


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.arange(3))])
def test_parameters_and_buffers_are_those_of_torch(make, tmp_path):
    model = Small().eval()
    torch.jit.save(make(model), tmp_path / "m.pt")
    found, source = tensors(tmp_path / "m.pt")
    wanted = torch.jit.load(tmp_path / "m.pt").state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype
    assert source.aliases == {"blocks.1.weight": "blocks.0.weight"}
    assert source.roles["table.weight"] == "embedding"
    assert source.roles["up.weight"] == "layer"
    assert source.trained["up.weight"]
    assert not source.trained["count"]
    if make is torch.jit.script:
        assert "left out tensors that are no parameters: plain, named" in source.notes
    else:  # in the code
        assert any("tensor in the code, without a name" in w for w in source.warnings)


def test_a_frozen_program_has_no_names(tmp_path):
    model = Small().eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(model)), tmp_path / "m.pt")
    found, source = tensors(tmp_path / "m.pt")
    assert all(name.startswith("constants.") for name in found)
    for tensor in (model.up.weight, model.table.weight, model.up.bias):
        assert any(torch.equal(tensor, each) for each in found.values())
    assert any("frozen program" in warning for warning in source.warnings)


def test_a_program_that_is_frozen_in_part_says_where_its_weights_are(tmp_path):
    script = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval())
    torch.jit.save(torch.jit.freeze(script, preserved_attrs=["1"]), tmp_path / "m.pt")
    found, source = tensors(tmp_path / "m.pt")
    assert set(found) == {"1.weight", "1.bias"}
    assert any("convert the program as it was before" in warning for warning in source.warnings)


def test_packed_weights_of_torch_are_missed_aloud(tmp_path):
    model = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(8, 8), nn.Embedding(4, 8)), {nn.Linear}
    )
    torch.jit.save(torch.jit.script(model[0]), tmp_path / "m.pt")
    with pytest.raises(
        tpack.TpackError,
        match="has its weights only in objects that pack them, such as _packed_params",
    ):
        open_source(tmp_path / "m.pt")


def test_a_program_is_converted_and_compared(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU())
    model[0].weight.data = torch.randint(-1, 2, (64, 64)) * 0.5
    torch.jit.save(torch.jit.script(model), tmp_path / "m.jit")
    report = tpack.convert(tmp_path / "m.jit", tmp_path / "out", exact=True)
    assert [(t.name, t.action) for t in report.tensors] == [("0.weight", "packed")]
    assert tpack.verify(tmp_path / "out", tmp_path / "m.jit").ok
    assert torch.equal(tpack.unpack(tmp_path / "out")["0.weight"], model[0].weight)
