"""Pickles read as data: plain values are those of Python itself, and nothing else is made."""

import collections
import pickle
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tpack.errors import InputError
from tpack.sources.pickles.opcodes import read_pickle
from tpack.sources.pickles.values import Array, Global, Placeholder

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(blob, **options):
    value, end, _ = read_pickle(blob, lambda persistent: ("persistent", persistent), **options)
    assert end == len(blob)
    return value


keys = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=9),
    st.binary(max_size=9),
    st.floats(allow_nan=False),
    st.tuples(st.integers(), st.text(max_size=3)),
)
leaves = st.one_of(
    keys,
    st.complex_numbers(allow_nan=False),
    st.integers(-(1 << 600), 1 << 600),
    st.binary(max_size=300).map(bytearray),
    st.frozensets(keys, max_size=4),
    st.text(min_size=200, max_size=300),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(keys, inner, max_size=5),
        st.sets(keys, max_size=5),
        st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict),
        st.dictionaries(keys, inner, max_size=3).map(lambda d: collections.defaultdict(list, d)),
    ),
)


@given(values, st.sampled_from(PROTOCOLS))
def test_plain_values_are_those_of_python(value, protocol):
    found = read(pickle.dumps(value, protocol))
    assert found == value
    assert type(found) is (dict if isinstance(value, dict) else type(value))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_that_are_shared_stay_shared_and_may_hold_themselves(protocol):
    inner = ["x"]
    outer = {"a": inner, "b": inner, "c": []}
    outer["c"].append(outer)
    found = read(pickle.dumps(outer, protocol))
    assert found["a"] is found["b"]
    assert found["c"][0] is found


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "?", "<c8", "u1", "<f2"])
def test_arrays_and_numbers_of_numpy(protocol, dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    for each in (array, array.T, array[:, :0], array[1:, 1::2], np.asfortranarray(array)):
        found = read(pickle.dumps(each, protocol))
        assert isinstance(found, Array)
        assert found.values.dtype == each.dtype
        assert np.array_equal(found.values, each)
    number = read(pickle.dumps(array[2, 3], protocol))
    assert (number, number.dtype) == (array[2, 3], array.dtype.newbyteorder("="))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_objects_are_not_made(protocol):
    for odd in (np.array([{}, None]), np.zeros(2, [("a", "f4")]), np.array(["2020"], "M8[Y]")):
        with pytest.raises(ValueError):
            _ = read(pickle.dumps(odd, protocol)).values


class Thing:
    def __init__(self, *args):
        self.a = args


class ThingOfLists(list):
    pass


class ThingOfDicts(dict):
    pass


class New:
    def __new__(cls, a, *, b):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (1,), {"b": 2}


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])
def test_all_else_is_a_placeholder_that_remembers(protocol):
    found = read(pickle.dumps(Thing(1, [2]), protocol))
    assert isinstance(found, Placeholder)
    assert (found.name, found.state) == (f"{__name__}.Thing", {"a": (1, [2])})
    things = ThingOfLists("ab")
    assert read(pickle.dumps(things, protocol)).items == ["a", "b"]
    assert read(pickle.dumps(ThingOfDicts(a=1), protocol)).pairs == {"a": 1}
    assert read(pickle.dumps(Thing, protocol)) == Global(f"{__name__}.Thing")
    if protocol > 3:
        assert read(pickle.dumps(New(1, b=3), protocol)).kwargs == {"b": 2}


def test_extensions_and_persistent_values():
    assert read(b"\x82\x05.") == Global("copyreg.extension.5")
    assert read(b"\x84\x05\0\0\0.") == Global("copyreg.extension.5")
    assert read(b"P12\n.") == ("persistent", "12")
    assert read(b"K\x07Q.") == ("persistent", 7)


CALLS = [
    b"cos\nsystem\n(S'touch CANARY'\ntR.",
    b"(S'touch CANARY'\nios\nsystem\n.",
    b"(cos\nsystem\nS'touch CANARY'\no.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch CANARY\x85R.",
    b"\x80\x02cos\nsystem\nX\x0c\0\0\0touch CANARY\x85\x81.",
    b"\x80\x04cos\nsystem\n\x8c\x0ctouch CANARY\x85}\x92.",
    b'cbuiltins\neval\n(S\'open("CANARY", "w")\'\ntR.',
    b"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR(S'touch CANARY'\ntR.",
    b"c__builtin__\nexec\n(S'import secret_module'\ntR.",
    b"csecret_module\nanything\n)R}S'a'\nK\x01sb.",
    b"cos\nsystem\n}S'__class__'\ncos\nsystem\nsb.",
    b"ccollections\nOrderedDict\n)R(S'__class__'\nK\x01u}S'__dict__'\nK\x01sb.",
    b"ctorch._utils\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\n(S'touch CANARY'\nt}tR.",
    b"ccollections\ndefaultdict\n(cos\nsystem\ntR.",
    b"cfunctools\npartial\n(cos\nsystem\nS'touch CANARY'\ntR)R.",
]


@pytest.mark.parametrize("blob", CALLS)
def test_nothing_is_imported_and_nothing_called(blob, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "secret_module.py").write_text("open('CANARY', 'w')\ndef anything(): pass\n")
    before = dict(sys.modules)
    with suppress(TypeError, ValueError, LookupError):
        read(blob)
    assert sys.modules == before
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    "blob",
    [
        b"]K\x01}s.",
        b"}]K\x01s.",  # a list as key
        b")" + b"\x85" * 20_000 + b"}2s.",
        b"}(" + b")" + b"\x85" * 20_000 + b"K\x01u.",  # its hash would need a stack as deep
        b"}(" + b")" + b"2\x86" * 40 + b"K\x01u.",  # a hash of 2 to the 40 parts
        b"K\x01K\x02R.",
        b"h\x01.",
        b"0.",
        b"1.",
        b"t.",
        b"\xff.",
        b"\x80\x06.",
        b"\x97.",
        b"\x98.",
        b"Lzz\n.",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x8b\x00\x20\0\0" + bytes(8192) + b".",
        b"(K\x01d.",
        b"]K\x01s.",
        b"}K\x01a.",
        b"}(K\x01\x90.",
    ],
)
def test_what_is_no_pickle_is_an_error(blob):
    with pytest.raises((TypeError, ValueError, LookupError, InputError)):
        read(blob)


@pytest.mark.parametrize("blob", [b"", b"]", b"X\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"Sabc"])
def test_what_is_cut_off_goes_on_after_the_data(blob):
    with pytest.raises(EOFError):
        read(blob)


@pytest.mark.parametrize(
    "blob",
    [
        b"(" * 4_000_000,
        b"]" * 4_000_000,
        b"\x8f" * 4_000_000,
        b")\x85" * 4_000_000,
        b"]" + b"2" * 4_000_000,
        b"]\x94" * 4_000_000,
        b"cos\nsystem\n" + b")R" * 4_000_000,
        b"ccollections\nOrderedDict\n\x94]\x94("
        + b"K\x01K\x01\x86" * 1000
        + b"e0"
        + b"h\x00h\x01\x85R" * 10**6,
        b"c__builtin__\nset\n\x94]\x94(" + b"K\x01" * 10**6 + b"e0" + b"h\x00h\x01\x85R" * 10**6,
    ],
    ids=range(9),
)
def test_what_takes_room_is_bounded(blob):
    with pytest.raises(InputError, match="values take over 100"):
        read(blob)


def test_keys_of_one_hash_are_few():
    numbers = ((2**61 - 1 << 60) * n for n in range(1, 9000))
    same = b"".join(b"\x8a\x12" + n.to_bytes(18, "little") + b"N" for n in numbers)
    with pytest.raises(TypeError):
        read(b"}(" + same + b"u.")
