"""Files of torch, read without torch: every tensor is that of torch.load, bit for bit."""

import os
import zipfile
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from tpack.dtypes import DTYPES, elements_of
from tpack.errors import InputError, UnsupportedError
from tpack.sources.pickles.files import read_file
from tpack.sources.pickles.tensors import Reader

WIDE = torch.arange(3000.0)
SAVED = [
    *({"pickle_protocol": protocol} for protocol in (1, 2, 3, 4, 5)),
    *(
        {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
        for protocol in (1, 2, 3, 4, 5)
    ),
]


def raw(tensor):
    """The bytes of a torch tensor."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def read(path):
    """The tensors of a dict in a file: dtype, shape and bytes by name."""
    with path.open("rb") as file, ExitStack() as resources:
        pickled = read_file(file.fileno(), resources)
        reader = Reader(pickled)
        found = {name: reader.source_tensor(name, t) for name, t in pickled.value.items()}
        return {
            name: (t.dtype, t.shape, b"".join(map(bytes, t.chunks()))) for name, t in found.items()
        }


def wanted(state):
    return {
        name: (*elements_of(str(t.dtype).removeprefix("torch."), tuple(t.shape)), raw(t))
        for name, t in state.items()
    }


def everything():
    state = {
        "turned": torch.arange(12.0).reshape(3, 4).T,
        "part": WIDE[3:9],
        "steps": WIDE.reshape(30, 100)[2:20:3, 1::7],
        "expanded": torch.arange(3.0).expand(4, 3),
        "one": torch.tensor(3.5),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "overlapping": WIDE.unfold(0, 5, 2)[:4],
        "channels": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "lone": torch.arange(8.0).reshape(2, 4)[:1, ::2].T,
    }
    state["tied"] = state["parameter"]
    z = torch.tensor([1 + 2j, 3 - 1j])
    state |= {"conj": z.conj(), "imag": z.clone().imag, "neg": z.clone().conj().imag}
    for dtype in DTYPES:
        kind = getattr(torch, dtype.held)
        whole = torch.randint(0, 2, (6, 8 * kind.itemsize), dtype=torch.uint8).view(kind)
        state |= {dtype.name: whole, f"{dtype.name}.T": whole.T}
    return state


def loaded(path):
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("saved", SAVED, ids=str)
def test_tensors_are_those_of_torch(tmp_path, saved):
    path = tmp_path / "m.pt"
    state = everything()
    if len(saved) > 1:  # streams cannot hold what is newer
        state = {name: t for name, t in state.items() if t.dtype not in torch.storage._new_dtypes()}
    torch.save(state, path, **saved)
    assert read(path) == wanted(loaded(path)) == wanted(state)


def test_a_view_of_a_large_storage_is_read_by_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("tpack.sources.pickles.tensors._SPAN", 64)
    state = everything() | {"cube": torch.arange(4096.0).reshape(16, 16, 16).permute(2, 0, 1)}
    torch.save(state, tmp_path / "m.pt")
    assert read(tmp_path / "m.pt") == wanted(state)


def rewritten(path, change=lambda _, data: data, method=zipfile.ZIP_STORED):
    """The same records, written by another program."""
    with zipfile.ZipFile(path) as file:
        records = [(info.filename, file.read(info)) for info in file.infolist()]
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in records:
            file.writestr(name, change(name, data))


def test_compressed_archives(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(everything(), path)
    rewritten(path, method=zipfile.ZIP_DEFLATED)
    assert read(path) == wanted(loaded(path))


@pytest.mark.parametrize("dtype", [t.held for t in DTYPES])
def test_the_highest_byte_first(tmp_path, dtype):
    """As a machine of such an order writes it: torch swaps the bytes of each element."""
    path = tmp_path / "m.pt"
    kind = getattr(torch, dtype)
    whole = torch.randint(0, 2, (4, 16), dtype=torch.uint8).view(kind)
    torch.save({"w": whole, "t": whole.T}, path)
    rewritten(path, lambda name, data: b"big" if name.endswith("byteorder") else data)
    found = read(path)
    if whole.dtype not in torch.storage._new_dtypes():  # of which torch swaps nothing
        assert found == wanted(loaded(path))
    swapped = whole.contiguous().view(torch.uint8).numpy()
    unit = whole.element_size() // (2 if dtype == "complex64" else 1)
    swapped = np.ascontiguousarray(swapped.reshape(-1, unit)[:, ::-1])
    assert found["w"][2] == swapped.tobytes()


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [torch.qint8, torch.quint8, torch.qint32])
@pytest.mark.parametrize("zipped", [True, False])
def test_quantized_tensors(tmp_path, kind, zipped):
    w = torch.randn(6, 10)
    scales, zeros = torch.rand(10).double() / 50, torch.arange(10)
    whole = torch.quantize_per_tensor(w, 0.0137, 3, kind)
    columns = torch.quantize_per_channel(w, scales, zeros, 1, kind)
    state = {"whole": whole, "turned": whole.T, "columns": columns}
    path = tmp_path / "m.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert read(path) == wanted({name: t.dequantize() for name, t in state.items()})


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.ones(2, 2).to_sparse(), "torch.sparse_coo. Make it dense"),
        (torch.empty(2, 2, device="meta"), "meta device"),
        (torch.zeros(2, 2, dtype=torch.complex128), "dtype complex128, which safetensors cannot"),
        (None, "nested"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_tensors_that_cannot_be_stored(tmp_path, tensor, text):
    path = tmp_path / "m.pt"
    if tensor is None:
        tensor = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"w": torch.ones(2), "odd": tensor}, path)
    with pytest.raises(UnsupportedError, match=text) as caught:
        read(path)
    assert caught.value.tensor == "odd"


def test_a_tensor_that_repeats_what_is_stored_a_billion_times(tmp_path):
    torch.save({"w": torch.ones(1).expand(1 << 30)}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedError, match=r"takes 4\.3 GB, but only 4 B are stored"):
        read(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "change", [(b"K\x02K\x02\x86", b"K\x02K\x03\x86"), (b"K\x00K\x02", b"K\x01K\x02")]
)
def test_a_tensor_beyond_its_storage(tmp_path, change):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(2, 2)}, path)
    rewritten(path, lambda name, data: data.replace(*change) if name.endswith(".pkl") else data)
    with pytest.raises(InputError, match="of a storage of 16") as caught:
        read(path)
    assert caught.value.tensor == "w"


def test_opening_reads_no_bytes_of_tensors(tmp_path, monkeypatch):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(1 << 20), "v": torch.ones(1000, 1000).T}, path)
    got = 0
    preadv = os.preadv

    def counted(*args):
        nonlocal got
        count = preadv(*args)
        got += count
        return count

    monkeypatch.setattr(os, "preadv", counted)
    with path.open("rb") as file, ExitStack() as resources:
        pickled = read_file(file.fileno(), resources)
        Reader(pickled).source_tensor("w", pickled.value["w"])
    assert got < 20_000
