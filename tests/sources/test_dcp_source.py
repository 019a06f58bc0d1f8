"""Distributed checkpoints of torch as a source: read tensor by tensor, no code run."""

import pickle
import shutil
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tensors import trits

import tpack
from tpack.errors import InputError
from tpack.options import Reading
from tpack.sources import open_source

STATE = {
    "fc.weight": trits(8, 16) * 0.5,
    "fc.bias": torch.arange(8.0),
    "half.weight": (trits(4, 32, seed=1) * 0.25).bfloat16(),
    "steps": torch.tensor(3),
}


def save(folder, state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "dcp", STATE)


def test_it_is_the_state_dict(folder, tmp_path):
    torch.save(STATE, tmp_path / "plain.pt")
    report = tpack.convert(folder, tmp_path / "a.safetensors", exact=True)
    assert {t.name for t in report.tensors if t.action == "packed"} == {"fc.weight", "half.weight"}
    assert tpack.verify(tmp_path / "a.safetensors", folder).ok
    assert tpack.verify(tmp_path / "a.safetensors", tmp_path / "plain.pt").ok


def test_the_model_beside_an_optimizer(tmp_path):
    state = {"model": STATE, "optimizer": {"exp_avg": trits(8, 16)}}
    with open_source(save(tmp_path / "dcp", state)) as source:
        assert set(source.tensors) == set(STATE)
        assert any("'model'" in note for note in source.notes)


def test_shards_of_several_ranks_are_put_together(tmp_path):
    """What two ranks of FSDP write: each a part of the rows."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    folder = tmp_path / "dcp"
    torch.multiprocessing.spawn(_save_part, (str(folder), str(tmp_path / "store")), nprocs=2)
    info = FileSystemReader(folder).read_metadata().state_dict_metadata["w"]
    assert isinstance(info, TensorStorageMetadata)
    assert len(info.chunks) == 2
    with open_source(folder) as source:
        tensor = source.tensors["w"]
        assert tensor.shape == (8, 16)
        assert torch.equal(torch.from_numpy(tensor.read(0, 128)).view(8, 16), trits(8, 16))


def _save_part(rank, folder, store):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    dcp.save({"w": distribute_tensor(trits(8, 16), mesh, [Shard(0)])}, checkpoint_id=folder)
    dist.destroy_process_group()


def test_a_missing_part_is_an_error(folder, tmp_path):
    for path in folder.glob("*.distcp"):
        path.unlink()
    with pytest.raises(InputError, match="not whole") as caught:
        tpack.convert(folder, tmp_path / "a.safetensors")
    assert caught.value.tensor in STATE
    assert not (tmp_path / "a.safetensors").exists()


class Evil:
    def __reduce__(self):
        return (open, ("canary", "w"))


@pytest.mark.parametrize(
    "blob", [pickle.dumps(Evil()), pickle.dumps({"a": 1}), b"", b"\x80\x05", pickle.dumps(print)]
)
def test_metadata_that_asks_for_code(folder, tmp_path, monkeypatch, blob):
    monkeypatch.chdir(tmp_path)
    (folder / ".metadata").write_bytes(blob)
    with pytest.raises(InputError) as caught:
        open_source(folder)
    assert caught.value.file == str(folder / ".metadata")
    assert not (tmp_path / "canary").exists()


def test_truncated_data(folder, tmp_path):
    for path in folder.glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError):
        tpack.convert(folder, tmp_path / "a.safetensors")
    shutil.rmtree(folder)


ADAM = {"state": {"fc.weight": {"exp_avg": trits(8, 16)}}, "param_groups": [{"lr": 0.1}]}


def test_a_key_chooses_between_copies(tmp_path):
    state = {"net": STATE, "net_ema": STATE, "optim": ADAM}
    folder = save(tmp_path / "dcp", state)
    with pytest.raises(InputError, match="key='net' or key='net_ema'"):
        open_source(folder)
    with open_source(folder, Reading(key="net_ema")) as source:
        assert set(source.tensors) == set(STATE)
        assert any("'optim' (1 tensor, 512 B)" in note for note in source.notes)


def test_without_the_paths_of_the_planner_names_show_what_is_around(tmp_path):
    folder = save(tmp_path / "dcp", {"model": STATE, "optim": ADAM})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = None
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with open_source(folder) as source:
        assert set(source.tensors) == set(STATE)


def test_paths_that_lead_into_a_tensor(folder):
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data["steps"] = ("fc.bias", "steps")
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match="a value in a tensor"):
        open_source(folder)
