"""Which dict of what a trainer saved holds the weights."""

import argparse

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tpack
from tpack.errors import InputError, UsageError
from tpack.options import Reading
from tpack.sources import open_source
from tpack.sources.nesting import choose


def measure(value):
    return (value.shape, value.nbytes) if isinstance(value, np.ndarray) else None


def tensor(*shape):
    return np.zeros(shape, np.float32)


def state(rows=2, more=("fc",)):
    return {f"{name}.weight": tensor(rows, 3) for name in more} | {"fc.bias": tensor(rows)}


def names(data, key=None):
    return list(choose(data, measure, key).tensors)


FC = ["fc.weight", "fc.bias"]
ADAM = {
    "state": {0: {"step": tensor(), "exp_avg": tensor(2, 3), "exp_avg_sq": tensor(2, 3)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
TREE = {"Dense_0": {"kernel": tensor(3, 2), "bias": tensor(2)}, "Dense_1": {"kernel": tensor(2, 2)}}
NAMES = ["Dense_0.kernel", "Dense_0.bias", "Dense_1.kernel"]

TAKEN = {
    "flat": (state(), FC),
    "net": ({"net": state(), "epoch": 3}, FC),
    "model_state": ({"model_state": state(), "step": 3}, FC),
    "a key that nobody knows": ({"my_model": state(), "args": {"lr": 1}}, FC),
    "ema alone": ({"ema": state(), "step": 3}, FC),
    "a wrapper in another": ({"checkpoint": {"model": {"state_dict": state()}}}, FC),
    "beside an optimizer": ({"model": state(), "optimizer": ADAM}, FC),
    "beside what is built as one": ({"weights": state(), "adamG": ADAM, "both": [ADAM, ADAM]}, FC),
    "Lightning": (
        {"state_dict": state(), "optimizer_states": [ADAM], "loops": {"fit": {"w": tensor(2, 2)}}},
        FC,
    ),
    "beside random states": ({"net": state(), "rng_state": [tensor(5000)]}, FC),
    "beside a number": ({"foo": state(), "best": tensor()}, FC),
    "beside numbers": ({"foo": state(), "metrics": {"loss": tensor(), "accuracy": tensor(1)}}, FC),
    "beside a criterion": ({"model": state(), "criterion": {"weight": tensor(10)}}, FC),
    "parts": (
        {"G": state(4), "D": state(2), "optG": ADAM},
        [*(f"G.{name}" for name in FC), *(f"D.{name}" for name in FC)],
    ),
    "parts in wrappers": (
        {"actor": {"state_dict": state(4)}, "critic": {"module": state(2), "optimizer": ADAM}},
        [*(f"actor.{name}" for name in FC), *(f"critic.{name}" for name in FC)],
    ),
    "parts of a wrapped model": (
        {"gan": {"generator": state(4), "discriminator": state(2)}, "iteration": 3},
        [*(f"generator.{name}" for name in FC), *(f"discriminator.{name}" for name in FC)],
    ),
    "a tree": ({"params": TREE, "opt_state": {"mu": TREE}}, NAMES),
    "a tree of one": ({"params": {"Dense_0": {"kernel": tensor(3, 2)}}}, ["Dense_0.kernel"]),
    "a tree with statistics": (
        {"params": TREE, "batch_stats": {"norm": {"mean": tensor(2)}}},
        [*(f"params.{name}" for name in NAMES), "batch_stats.norm.mean"],
    ),
    "a tree of like modules": (
        {"model": {name: {"kernel": tensor(3, 3)} for name in ("query", "key", "value")}},
        ["query.kernel", "key.kernel", "value.kernel"],
    ),
    "a tree of numbered modules": (
        {f"layer{n}": {"kernel": tensor(3, 3)} for n in range(2)},
        ["layer0.kernel", "layer1.kernel"],
    ),
    "modules with dots in their keys": (
        {f"layers.0.{name}": {"W_q": tensor(3, 3), "scale": tensor(3)} for name in "qk"},
        ["layers.0.q.W_q", "layers.0.q.scale", "layers.0.k.W_q", "layers.0.k.scale"],
    ),
    "Megatron": (
        {"model": {"language_model": {"embedding": {"weight": tensor(9, 3)}, "encoder": state()}}},
        ["language_model.embedding.weight", *(f"language_model.encoder.{name}" for name in FC)],
    ),
    "a list of parts": (
        [state(4), state(2)],
        [*(f"0.{name}" for name in FC), *(f"1.{name}" for name in FC)],
    ),
    "keys that are numbers": ({0: tensor(2, 2), 1: tensor(2)}, ["0", "1"]),
    "one wrapped in parallel": (
        {"G": {f"module.{n}": t for n, t in state(4).items()}, "D": state(2)},
        [*(f"G.{name}" for name in FC), *(f"D.{name}" for name in FC)],
    ),
    "a module that is called as a part of training": (
        {"params": {"scaler": {"mean": tensor(3)}, **TREE}},
        ["scaler.mean", *NAMES],
    ),
}


@pytest.mark.parametrize(("data", "wanted"), TAKEN.values(), ids=TAKEN)
def test_what_is_taken(data, wanted):
    chosen = choose(data, measure)
    assert list(chosen.tensors) == wanted
    assert chosen.warnings == []


COPIES = {
    "params and their averages": {"params": state(), "params_ema": state()},
    "a model and its averages": {"state_dict": state(), "state_dict_ema": state(), "epoch": 3},
    "in wrappers": {"model": {"module": state()}, "ema": {"state_dict": state(), "opt": ADAM}},
    "without the buffers": {
        "model": state() | {"norm.running_mean": tensor(2), "norm.running_var": tensor(2)},
        "ema": state(),
    },
    "one in parallel": {"net": state(), "net_ema": {f"module.{n}": t for n, t in state().items()}},
    "best and last": {"best": {"w": tensor(2, 2)}, "last": {"w": tensor(2, 2)}},
    "a list": [state(), state()],
    "deeper": {"model": {"params": state(), "params_ema": state()}},
    "of parts": {"G": state(4), "G_ema": state(4), "D": state()},
}


@pytest.mark.parametrize("data", COPIES.values(), ids=COPIES)
def test_copies_of_one_model_are_never_chosen_in_silence(data):
    with pytest.raises(InputError, match=r"look like copies of one model. Choose one: key=") as it:
        choose(data, measure)
    for key in str(it.value).partition("Choose one: ")[2].split(".  ")[0].split(" or "):
        asked = key.partition("key='")[2].partition("'")[0]
        assert names(data, asked)
    every = choose(data, measure, ".")
    assert every.warnings == []
    assert "training" not in every.tensors


def test_the_error_lists_all_with_their_sizes():
    with pytest.raises(InputError) as caught:
        choose(COPIES["params and their averages"], measure)
    assert str(caught.value) == (
        "holds 2 dicts of weights, 'params' (2 tensors, 32 B), 'params_ema' (2 tensors, 32 B), of "
        "which 'params' and 'params_ema' look like copies of one model. Choose one: key='params' "
        "or key='params_ema'. key='.' takes all of them."
    )


def test_a_key_chooses():
    data = {"model": {"G": state(4), "D": state(2)}, "ema": [state(4)], "optimizer": ADAM}
    assert names(data, "model.D") == FC
    assert names(data, "ema") == names(data, "ema.0") == FC
    assert names(data, "model") == [f"{part}.{name}" for part in "GD" for name in FC]
    everything = [*(f"model.{part}.{name}" for part in "GD" for name in FC)]
    assert names(data, ".") == [*everything, *(f"ema.{name}" for name in FC)]
    assert names(data, "optimizer.state") == ["step", "exp_avg", "exp_avg_sq"]
    assert names({"a.b": state(), "c": state(5)}, "a.b") == FC
    (note,) = choose(data, measure, "model.D").notes
    assert note == (
        "took the state dict under 'model.D' (2 tensors, 32 B), left out 'ema' (2 tensors, 64 B), "
        "'optimizer' (3 tensors, 52 B), 'model.G' (2 tensors, 64 B)"
    )


def test_a_key_that_leads_nowhere():
    data = {"model": state(), "params_ema": state(4)}
    with pytest.raises(UsageError) as caught:
        choose(data, measure, "param_ema")
    assert str(caught.value) == (
        "key 'param_ema' leads to no tensors, expected one of 'model' (2 tensors, 32 B), "
        "'params_ema' (2 tensors, 64 B). Did you mean params_ema?"
    )
    with pytest.raises(UsageError, match=r"expected one of '\.' \(2 tensors"):
        choose(state(), measure, "model")


def test_what_lies_beside_the_only_dict_is_warned_of():
    """MoCo's queue is no weight, and nothing but the warning says that it was taken."""
    queue = tensor(9, 3)
    (warning,) = choose({"weights": state(4), "queue": queue}, measure).warnings
    assert warning.startswith("took 'queue' beside 'weights' (2 tensors")
    assert warning.endswith("take that alone: key='weights'")
    assert not choose({"weights": state(4), "queue": queue}, measure, "weights").warnings


def test_what_is_left_is_said():
    chosen = choose({"model": state(), "head": state(1), "optimizer": ADAM, "epoch": 3}, measure)
    assert chosen.notes == [
        "took the state dict under 'model' (2 tensors, 32 B), left out 'optimizer' (3 tensors, "
        "52 B), epoch (int)"
    ]
    assert chosen.warnings == [
        "left out 'head' (2 tensors, 16 B), which may be weights of the model. key='head' takes "
        "it, key='.' takes all."
    ]
    assert not chosen.is_all
    joined = choose({"G": state(4), "D": state(2)}, measure)
    assert joined.notes == ["joined 'G' (2 tensors, 64 B), 'D' (2 tensors, 32 B) under their keys"]
    assert joined.is_all


NOTHING = {
    "nothing": ({}, "holds no tensors"),
    "no tensors": ({"a": {"b": [1]}}, "holds no tensors"),
    "an optimizer": (
        {"optimizer": ADAM},
        r"only in 'optimizer' \(3 .* key='optim.* takes them",
    ),
    "lists": ([tensor(2, 2)], r"only in '0' \(1 .* key='\.'.* takes them"),
    "lists in a dict": ({"shadow": [tensor(2, 2)]}, "key='shadow'.* takes them"),
    "a tensor": (tensor(2, 2), "holds ndarray, expected a state dict"),
    "names that are none": ({"w": tensor(2), (1, 2): tensor(2)}, "under the key"),
    "two of one name": ({1: tensor(2), "1": tensor(2)}, "both '1'"),
    "two of one name in parts": ({"a": {"b": TREE}, "a.b": TREE}, "both 'a.b.Dense_0.kernel'"),
    "the state of an optimizer": (ADAM, r"only in '\.' .* key='\.'.* takes them"),
    "two optimizers": (
        {"a": ADAM, "b": ADAM},
        r"only in 'a' .*, 'b' .* key='a'.* takes them",
    ),
    "two parts of one key": ({1: state(), "1": state()}, "keys that read '1'"),
}


@pytest.mark.parametrize(("data", "text"), NOTHING.values(), ids=NOTHING)
def test_nothing_to_take(data, text):
    with pytest.raises(InputError, match=text):
        choose(data, measure)


def test_a_dict_that_is_in_itself():
    """As the objects of OmegaConf are, which know what they lie in."""
    config = {"lr": 1}
    config["inner"] = [{"parent": config}]
    inside = state()
    inside["self"] = inside
    chosen = choose({"model": inside, "config": config}, measure)
    assert list(chosen.tensors) == FC
    assert chosen.notes[0].endswith("left out config (dict), self (dict)")


def test_dicts_without_end():
    deep, shared = {"w": tensor(2)}, {"w": tensor(2)}
    for _ in range(200):
        deep = {"a": deep}
    for _ in range(60):
        shared = {"a": shared, "b": shared}
    empty = []
    for _ in range(60):
        empty = [empty, empty]
    for data in (deep, shared):
        with pytest.raises(InputError, match="without end"):
            choose(data, measure)
    assert names({"model": state(), "odd": empty}) == FC


# ---- every tensor is accounted for

AROUND = ["model", "state_dict", "ema", "params", "state", "param_groups", "opt"]
INSIDE = ["0", "a", "b", "a.b", "G", "module.w", "n_averaged", 0, 1]
KEYS = st.sampled_from([*AROUND, *INSIDE])
LEAVES = st.sampled_from([(), (1,), (3,), (2, 3), (4, 4)]).map(lambda shape: tensor(*shape))
NESTED = st.recursive(
    LEAVES | st.just(7),
    lambda inner: st.dictionaries(KEYS, inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)


def leaves(data, path=()):
    """Yield the paths and tensors of nested data."""
    if isinstance(data, np.ndarray):
        yield path, data
    elif isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(value, (*path, str(key)))


@given(NESTED, st.sampled_from([None, "."]))
def test_each_tensor_is_taken_or_named(data, key):
    try:
        chosen = choose(data, measure, key)
    except (InputError, UsageError):
        return
    taken = [id(value) for value in chosen.tensors.values()]
    told = " ".join([*chosen.notes, *chosen.warnings])
    everything = dict(leaves(data))
    assert len(taken) == len(set(taken))
    for path, value in everything.items():
        if id(value) not in taken:
            above = [".".join(path[: n + 1]) for n in range(len(path))]
            assert any(
                f"{each!r}" in told or f"out {path[n]}" in told for n, each in enumerate(above)
            )
    if chosen.is_all:
        assert len(taken) == len(everything)


# ---- of real libraries


def test_dropped_states_of_an_optimizer_are_no_compression(tmp_path):
    model = nn.Linear(512, 512)
    trained = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 512)).sum().backward()
    trained.step()
    data = {"net": model.state_dict(), "optim": trained.state_dict(), "epoch": 1}
    torch.save(data, tmp_path / "trainer.pt")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    sizes = {}
    for name in ("trainer", "plain"):
        report = tpack.convert(tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors")
        sizes[name] = report.input_bytes
        assert tpack.verify(report.output, tmp_path / f"{name}.pt").ok
    assert sizes["trainer"] == 4 * (512 * 512 + 512) <= sizes["plain"]
    assert sizes["plain"] == (tmp_path / "plain.pt").stat().st_size
    (tmp_path / "folder").mkdir()
    (tmp_path / "trainer.pt").rename(tmp_path / "folder/pytorch_model.bin")
    tpack.convert(tmp_path / "folder")
    assert "kept as they were: 1.1 MB → 0.1 MB" in (tmp_path / "folder.tpack/README.md").read_text()


def test_averages_beside_their_model(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    data = {"model": nn.DataParallel(model).state_dict(), "ema": averaged.state_dict()}
    torch.save(data, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"Choose one: key='model' or key='ema'\. key='\.' takes"):
        tpack.convert(tmp_path / "m.pt")
    report = tpack.convert(tmp_path / "m.pt", tmp_path / "out", key="ema")
    assert {tensor.name for tensor in report.tensors} == set(model.state_dict())
    assert any("AveragedModel" in note and "n_averaged" in note for note in report.notes)
    assert tpack.verify(tmp_path / "out", tmp_path / "m.pt", key="ema").ok
    with pytest.raises(UsageError, match="key='ema' says how to read"):
        tpack.verify(tmp_path / "out", key="ema")


def test_a_key_for_a_file_without_dicts(tmp_path):
    save_file({"fc.weight": torch.ones(4, 4)}, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="no dicts to choose from, expected no key"):
        open_source(tmp_path / "m.safetensors", Reading(key="model"))


def test_modules_and_objects_in_a_dict(tmp_path):
    """As YOLO saves them; an object of a trainer holds averages."""
    model = nn.Linear(4, 4)
    wanted = set(model.state_dict())
    data = {"model": model, "ema": None, "epoch": 3}
    assert set(open_source(data).tensors) == wanted
    torch.save(data | {"args": argparse.Namespace(lr=1)}, tmp_path / "m.pt")
    assert set(open_source(tmp_path / "m.pt").tensors) == wanted
    shadow = argparse.Namespace(shadow=dict(model.state_dict()), decay=0.9)
    torch.save(data | {"ema": shadow}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"'ema' .* look like copies"):
        open_source(tmp_path / "m.pt")
    with open_source(tmp_path / "m.pt", Reading(key="ema.shadow")) as source:
        assert set(source.tensors) == wanted


def test_arrays_of_numpy_are_missed_aloud(tmp_path):
    data = {"a.weight": torch.ones(4, 4), "b.weight": np.ones((4, 4))}
    torch.save(data, tmp_path / "m.pt")
    for of in (data, tmp_path / "m.pt"):
        with open_source(of) as source:
            assert source.warnings == [
                "left out b.weight, arrays of NumPy between the tensors: they are not in the "
                "output. Make tensors of them: torch.from_numpy(array)."
            ]
    with pytest.raises(InputError, match=r"holds no tensors.*numpy\.savez"):
        open_source({"b.weight": np.ones((4, 4))})
