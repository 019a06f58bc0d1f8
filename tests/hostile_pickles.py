"""Files of torch of at most 10 MB that are made to cost time or memory."""

from __future__ import annotations

import io
import zipfile

from hostile_files import SIZE


def _filled(begin: bytes, repeated: bytes) -> bytes:
    return begin + repeated * ((SIZE - len(begin)) // len(repeated))


def _archive(pickled: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("m/data.pkl", pickled)
    return file.getvalue()


_LONG_LIST = b"]\x94(" + b"K\x01" * 1_000_000 + b"e0"
_PAIRS = b"]\x94(" + b"K\x01K\x01\x86" * 100_000 + b"e0"
_SAME_HASH = b"".join(
    b"\x8a\x12" + ((2**61 - 1 << 60) * n).to_bytes(18, "little") + b"N" for n in range(1, 400_000)
)

#: Opcodes, repeated as long as there is room.
PICKLES = {
    "marks": _filled(b"", b"("),
    "lists": _filled(b"", b"]"),
    "dicts": _filled(b"", b"}"),
    "sets": _filled(b"", b"\x8f"),
    "nested_tuples": _filled(b")", b"\x85"),
    "dict_of_one": _filled(b"", b"}K\x01K\x01s"),
    "memo": _filled(b"]", b"\x94"),
    "memo_by_number": _filled(b"]", b"".join(b"r" + n.to_bytes(4, "little") for n in range(5000))),
    "copies_of_a_list": _filled(b"cbuiltins\nset\n\x94" + _LONG_LIST, b"h\x00h\x01\x85R"),
    "copies_of_pairs": _filled(b"ccollections\nOrderedDict\n\x94" + _PAIRS, b"h\x00h\x01\x85R"),
    "copies_of_a_list_of_numpy": _filled(b"cbuiltins\nlist\n\x94" + _LONG_LIST, b"h\x00h\x01\x85R"),
    "keys_of_one_hash": b"}(" + _SAME_HASH + b"u.",
    "deep_key": _filled(b"}(", b")") + b"\x85" * 1000 + b"Nu.",
    "placeholders": _filled(b"cm\nf\n\x94", b"h\x00)R"),
    "ordered_dicts": _filled(b"ccollections\nOrderedDict\n\x94", b"h\x00)R"),
    "appended_to": _filled(b"", b"](NNNNe"),
    "names": b"".join(b"cm\nf%d\n" % n for n in range(SIZE // 10)),
    "wide_text": b"X" + (SIZE - 100).to_bytes(4, "little") + b"\xf0\x9f\x98\x80" * (SIZE // 4 - 25),
    "long_lines": _filled(b"", b"V" + b"a" * 1000 + b"\n"),
    "digits": _filled(b"", b"I" + b"7" * 3999 + b"\n"),
    "strings": _filled(b"", b"\x8c\x01a"),
    "longs": _filled(b"", b"\x8a\x08abcdefgh"),
    "arrays": _filled(
        b"cnumpy.core.multiarray\n_reconstruct\n\x94cnumpy\nndarray\n\x94",
        b"h\x00h\x01)C\x01b\x87R",
    ),
    "numbers": _filled(
        b"cnumpy.core.multiarray\nscalar\n\x94cnumpy\ndtype\n\x8c\x02f4\x85R\x94",
        b"h\x00h\x01C\x04abcd\x86R",
    ),
    "nothing": _filled(b"", b"N0"),
}


def records() -> bytes:
    """An archive of as many empty records as there is room for."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", b"}.")
        for n in range(SIZE // 120):
            archive.writestr(f"m/data/{n}", b"")
    return file.getvalue()


MAKERS = {
    **{name: lambda blob=blob: _archive(blob) for name, blob in PICKLES.items()},
    "records": records,
    "unfolding_pickle": lambda: _archive(b"N0" * 500_000_000, zipfile.ZIP_DEFLATED),
}
