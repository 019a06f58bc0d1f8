"""GGUF files that are damaged or hostile are refused, at once and by name."""

import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from gguf_files import container, string
from gguf_sources import EVERYTHING, LLAMA, one, plain, put, ternary

import tpack
from tpack.dialects import gguf_blocks
from tpack.errors import InputError, TpackError, UnsupportedError
from tpack.sources import open_source

REFUSED = [
    (container((), [one(number=18, data=bytes(98))]), UnsupportedError, r"type 18 \(IQ3_XXS\)"),
    (container((), [one(number=38)]), UnsupportedError, r"TL1 of bitnet\.cpp\), which"),
    (container((), [one(number=39)]), UnsupportedError, r"MXFP4, or TL2 of bitnet\.cpp\), which"),
    (container((), [one(number=999)]), UnsupportedError, r"type 999 \(unknown\)"),
    (container(version=1), UnsupportedError, "version 1, expected 2 or 3"),
    (container(version=4), UnsupportedError, "version 4"),
    (container(version=3 << 24), UnsupportedError, "big-endian"),
    (container((("split.count", "uint16", 2),)), UnsupportedError, "one of 2 parts"),
    (container((("general.alignment", "uint32", 48),)), InputError, "expected a power of 2"),
    (container((("general.alignment", "uint32", 0),)), InputError, "expected a power of 2"),
    (container((("general.alignment", "uint32", 2**31),)), InputError, "expected a power of 2"),
    (container((("general.alignment", "string", "32"),)), InputError, "expected a power of 2"),
    (container((("k", "uint8", 1), ("k", "uint8", 1))), InputError, "key 'k' twice"),
    (container(((b"\xff", "uint8", 1),)), InputError, "key that is not UTF-8"),
    (container((), [(b"\xff", (1,), 0, bytes(4))]), InputError, "name that is not UTF-8"),
    (container((), [one("__metadata__", (1,), 0, bytes(4))]), InputError, "cannot hold"),
    (container((), [one(), one()]), InputError, "two tensors of one name"),
    (container((), [one(shape=(1, 255))]), InputError, "multiple of 256 columns in TQ2_0"),
    (container((), [one(shape=(0, 256))]), InputError, "expected rows"),
    (container((), [one(shape=(256, 0))]), InputError, "expected rows"),
    (container((), [one(shape=())]), InputError, "expected rows"),
    (container((), [one(shape=(1, 1, 1, 1, 256))]), InputError, "announces 5 dimensions"),
    (container((), [one(shape=(2**40, 2**40))]), InputError, "beyond any file"),
    (container((), [one(shape=(2**50, 256))]), InputError, "takes"),
    (container((), [one("a"), one("b", (1, 256), 35, bytes(66), 32)]), InputError, "takes 66"),
    (container((), [one("a", (1, 256), 35, bytes(66), 16)]), InputError, "multiple of 32"),
    (container((), [one("a", (1, 256), 35, bytes(66), 2**63)]), InputError, "are there"),
    (container((), [one(shape=(1, 128), number=36, data=bytes(32))]), InputError, "takes 64"),
    (
        container((), [one(data=b"\xff" * 64 + b"\0\x3c")]),
        InputError,
        "illegal code in block 0 of row 0",
    ),
    (container((), [one(data=bytes(64) + b"\0\x7c")]), InputError, "scale inf in block 0"),
    (
        container(
            (), [one(shape=(1, 128), number=36, data=bytes(32) + b"\0\0\xc0\x7f" + bytes(28))]
        ),
        InputError,
        "scale nan, expected a finite",
    ),
    (
        container(
            (("a", "array", ("array", [("array", [("array", [("array", [("int8", [])])])])])),)
        ),
        InputError,
        "nests arrays deeper than 4",
    ),
    (b"GGUF", InputError, "ends at byte 4"),
    (b"GGML" + bytes(60), InputError, "does not begin with GGUF"),
    (b"", InputError, "an empty file"),
    (container()[:8] + struct.pack("<QQ", 2**63, 0), InputError, "announces 9223372036854775808"),
    (container()[:8] + struct.pack("<QQ", 0, 2**62), InputError, "metadata keys"),
    (container()[:16] + struct.pack("<Q", 1) + string("k") + b"\x0d" + bytes(99), InputError, "13"),
]


@pytest.mark.parametrize(("data", "error", "words"), REFUSED)
def test_refused(tmp_path, data, error, words):
    path = put(tmp_path, data)
    with pytest.raises(error, match=words) as caught:
        tpack.convert(path, tmp_path / "out.safetensors")
    assert caught.value.file == str(path)
    assert caught.value.code == 3
    assert not (tmp_path / "out.safetensors").exists()


def test_a_refusal_names_the_tensor(tmp_path):
    data = container(LLAMA, [("blk.0.attn_v.weight", (1, 256), 18, bytes(98))])
    with pytest.raises(UnsupportedError) as caught:
        open_source(put(tmp_path, data))
    assert caught.value.tensor == "blk.0.attn_v.weight"
    assert "--token-embedding-type f16" in str(caught.value)


def test_an_illegal_code_names_tensor_row_and_block(tmp_path):
    (name, shape, number, data), _ = ternary(gguf_blocks.TQ2_0, 35, (6, 512))
    bad = bytearray(data)
    bad[4 * 132 + 66 + 5] = 0xC0
    path = put(tmp_path, container((), [(name, shape, number, bytes(bad))]))
    with pytest.raises(InputError, match=r"tensor 'w' holds an illegal code in block 1 of row 4"):
        tpack.convert(path, tmp_path / "o.safetensors")


SMALL = container(
    EVERYTHING[:3] + EVERYTHING[-5:],
    [
        ternary(gguf_blocks.TQ2_0, 35, (2, 256), name="a")[0],
        ternary(gguf_blocks.Q2_0, 42, (2, 64), name="b")[0],
        ("c", (3,), 0, bytes(12)),
    ],
)


def test_a_file_cut_at_every_byte_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    whole = len(SMALL) - 20  # the last padding is not needed
    for size in range(len(SMALL)):
        path.write_bytes(SMALL[:size])
        try:
            with open_source(path) as source:
                for tensor in source.tensors.values():
                    plain(tensor)
        except InputError:
            assert size < whole, size
        else:
            assert size >= whole, size


def test_any_changed_byte_is_read_or_refused(tmp_path):
    path = tmp_path / "m.gguf"
    rng = np.random.default_rng(0)
    for place in range(len(SMALL)):
        changed = bytearray(SMALL)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            with open_source(path) as source:
                for tensor in source.tensors.values():
                    plain(tensor)
        except TpackError:
            pass


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = put(tmp_path, SMALL)
    with open_source(path) as source:
        with path.open("r+b") as file:
            file.truncate(len(SMALL) - 64)
        with pytest.raises(InputError, match="truncated while it was read"):
            plain(source.tensors["c"])


def big(head, unit, size=10_000_000):
    """A file of ten million bytes that repeats a unit."""
    return head + unit * ((size - len(head)) // len(unit))


def announced(kind, count):
    return (
        container()[:16] + struct.pack("<Q", 1) + string("k") + struct.pack("<IIQ", 9, kind, count)
    )


HOSTILE = {
    "strings": big(announced(8, 1_200_000), string("")),
    "long strings": big(announced(8, 900_000), string("ab")),
    "bytes": big(announced(0, 9_000_000), b"a"),
    "a million bytes": big(announced(0, 1_900_000), b"a"),
    "arrays": big(announced(9, 800_000), struct.pack("<IQ", 0, 0)),
    "some arrays": big(announced(9, 60_000), struct.pack("<IQ", 0, 0)),
    "nested arrays": big(announced(9, 1), struct.pack("<IQ", 9, 1)),
    "keys": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 65_000)
    + b"".join(string(f"{n:08}") + b"\0\0\0\0\0" for n in range(65_000)),
    "tensors": b"GGUF"
    + struct.pack("<IQQ", 3, 16_000, 0)
    + b"".join(string(f"{n:08}") + struct.pack("<IQIQ", 1, 0, 0, 0) for n in range(16_000))
    + bytes(64),
    "a name": container()[:8] + struct.pack("<QQQ", 1, 0, 9_000_000) + bytes(9_000_100),
    # with this the gguf package never comes back
    "49 bytes": announced(9, 2**60)[:49].ljust(49, b"\0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_cheap(tmp_path, name):
    path = put(tmp_path, HOSTILE[name])
    code = textwrap.dedent(f"""
        import resource, time
        from tpack.sources.gguf_source import open_gguf
        from tpack.errors import TpackError
        from pathlib import Path
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            open_gguf(Path({str(path)!r}))
        except TpackError:
            pass
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(time.process_time() - start, (after - before) / 1024)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 6
    assert megabytes < 256
