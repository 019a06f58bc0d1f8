"""What converts, saves and loads describes a checkpoint in the same words."""

import pytest
import torch
from torch import nn

import tpack
from tpack.layerdef import LayerDef, Param, Program, Unspecified, slots


def kinds(path):
    """What each tensor that is not packed is described as."""
    with tpack.container.Checkpoint(path) as file:
        program = file.document.program
    return {
        slot.name: slot.param.param_type
        for slot in slots(program)
        if slot.param.param_type != "TernaryTensor"
    }


class Norms(nn.Module):
    """A parameter in a module with a name like a statistic, and a buffer that has no such name."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=False)
        self.fc.weight.data = torch.eye(4)
        self.running_net = nn.Module()
        self.running_net.norm_a = nn.Parameter(torch.ones(4))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.ones(4))

    def forward(self, x):
        return self.norm(self.fc(x) * self.running_net.norm_a * self.table)


KINDS = {
    "running_net.norm_a": "Tensor",
    "norm.weight": "Tensor",
    "norm.bias": "Tensor",
    "norm.running_mean": "Buffer",
    "norm.running_var": "Buffer",
    "norm.num_batches_tracked": "Buffer",
    "table": "Buffer",
}


@pytest.mark.parametrize("options", [{}, {"example_args": (torch.ones(2, 4),)}])
def test_a_module_says_what_is_trained(tmp_path, options):
    path = tmp_path / "a.tpack.safetensors"
    tpack.convert(Norms().eval(), path, **options)
    assert kinds(path) == KINDS
    module = tpack.load(path)
    trained = {name for name, _ in module.named_parameters()}
    assert {name for name, kind in KINDS.items() if kind == "Tensor"} <= trained
    tpack.save(module, tmp_path / "b.tpack.safetensors")
    assert (tmp_path / "b.tpack.safetensors").read_bytes() == path.read_bytes()


def test_names_say_it_of_a_state_dict_by_their_last_part(tmp_path):
    path = tmp_path / "a.tpack.safetensors"
    tpack.convert(Norms().state_dict(), path)
    assert kinds(path) == KINDS | {"table": "Tensor"}


def test_copies_of_a_layer_share_a_scale_that_training_refined(tmp_path):
    layer = LayerDef("B", [Param("w", "TernaryTensor", [4, 6])], [Unspecified()])
    root = LayerDef("M", [Param("l", "Layer", layer="B", repeat=2)], [Unspecified()])
    path = tmp_path / "a.tpack.safetensors"
    state = {f"l.{i}.w": torch.ones(4, 6) for i in range(2)}
    tpack.convert(state, path, layerdef=Program([layer, root], "M"))
    module = tpack.load(path)
    module.l[1].w_scale = nn.Parameter(torch.arange(1.0, 5)[:, None])
    tpack.save(module, path, force=True)
    assert tpack.verify(path).ok
    scales = [one.w_scale for one in tpack.load(path).l]
    assert torch.equal(scales[0], torch.ones(4, 1))
    assert torch.equal(scales[1], module.l[1].w_scale)
