"""What wrappers put into names is taken out again."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from tpack.errors import InputError
from tpack.sources.names import WRAPPERS, clean_names

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
WANTED = ["0.weight", "0.bias", "1.weight", "1.bias"]


def model():
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))


def parameters(module):
    """Names as they are without the hooks with which some wrappers hide themselves."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, owner in module.named_modules()
        for name in owner._parameters
    ]


def checkpointed():
    return nn.Sequential(*map(checkpoint_wrapper, model()))


REAL = {
    "torch.compile": lambda: torch.compile(model()).state_dict(),
    "torch.compile of a part": lambda: nn.Sequential(*map(torch.compile, model())).state_dict(),
    "DataParallel": lambda: nn.DataParallel(model()).state_dict(),
    "compiled in DataParallel": lambda: nn.DataParallel(torch.compile(model())).state_dict(),
    "DataParallel, compiled": lambda: torch.compile(nn.DataParallel(model())).state_dict(),
    "AveragedModel": lambda: AveragedModel(model()).state_dict(),
    "AveragedModel of DataParallel": lambda: AveragedModel(nn.DataParallel(model())).state_dict(),
    "activation checkpointing": lambda: parameters(checkpointed()),
    "compiled and checkpointed": lambda: parameters(torch.compile(checkpointed())),
}


@pytest.mark.parametrize("save", REAL.values(), ids=REAL)
def test_what_wrappers_really_save(save):
    stored = list(save())
    cleaned, notes = clean_names(stored)
    assert stored != WANTED
    assert list(cleaned.values()) == WANTED
    for name in set(stored) - set(cleaned):
        assert any(f"left out {name!r}" in note for note in notes)


def test_every_row_is_stripped_and_said():
    for row in WRAPPERS:
        beside = [row.beside] * bool(row.beside)
        cleaned, notes = clean_names([f"{row.prefix}a.b", *beside])
        assert cleaned == {f"{row.prefix}a.b": "a.b"}
        assert row.prefix in notes[0]
        assert row.by in notes[0]
        inside = [f"a.{row.prefix}b", "c"]
        assert (clean_names(inside)[0] == {inside[0]: "a.b", "c": "c"}) == row.anywhere


@pytest.mark.parametrize(
    "names",
    [
        ["a.my_fsdp_wrapped_module.b"],  # the end of a name
        ["a._checkpoint_wrapped_module"],
        ["module.a", "b"],
        ["_forward_module.a", "b"],
        ["n_averaged", "a"],
        ["model.a", "model.b"],  # the attribute of a LightningModule
        ["net.a"],
    ],
)
def test_other_names_stay(names):
    assert clean_names(names) == ({name: name for name in names}, [])


def test_wrappers_in_each_other():
    for stored in (
        "_forward_module.module.a",
        "module._fsdp_wrapped_module._checkpoint_wrapped_module.a",
        "_fsdp_wrapped_module.a",
    ):
        assert clean_names([stored])[0] == {stored: "a"}


def test_names_that_become_one_are_refused():
    with pytest.raises(InputError, match=r"both 'a\.b'"):
        clean_names(["a._fsdp_wrapped_module.b", "a.b"])
