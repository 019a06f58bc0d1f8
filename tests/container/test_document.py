"""The description: reading what was written, and refusing every other value."""

# ruff: noqa: PT017 -- an input may be read or refused; a refusal is checked too

import hashlib
import json
from copy import deepcopy

import pytest
from corpus import make
from descriptions import HEX, SHARD, WEIGHT, described, parsed, refusal, stored
from hypothesis import given, settings, strategies as st

from tpack.container import Checkpoint, Document, TernaryEntry, digest
from tpack.container.document import Shard, parse_document
from tpack.container.version import KNOWN
from tpack.errors import FormatError, TpackError

MISSING = "is missing in the file, but described. The file is damaged: convert it again."
SURPLUS = "is in the file, but not in its description."
TWICE = "is described as a kept tensor and as a part of 'w'."


def no_digest(value):
    return f"has digest {value!r}, expected 64 digits of lowercase hex."


def opened(name):
    return Checkpoint(make.ACCEPT / f"{name}.safetensors")


@pytest.mark.parametrize("name", sorted(make.checkpoints()))
def test_document_reads_back(name):
    with opened(name) as file:
        text = file.document.to_json(file.entries)
        assert text == file.metadata["tpack"]
        assert parse_document(text, file.entries) == (file.document, True)


def test_digest_is_sha256_of_the_parts():
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest([]) == empty
    assert digest([b"a", memoryview(b"bc")]) == digest([b"abc"])


def test_entry_shapes():
    entry = TernaryEntry((2, 3, 10), 2, "t5", "group:4", "mse", "float32", 0.1, "", "")
    assert (entry.rows, entry.columns) == (6, 10)
    assert entry.packed_shape == (2, 3, 2)
    assert entry.scale_shape == (2, 3, 3)


def test_with_kept_fills_in_digests_and_nothing_else():
    document = Document(None, {}, {"a": "0", "b": "0"})
    assert document.with_kept({"a": "1", "b": "2", "c": "3"}).kept == {"a": "1", "b": "2"}


def paths_of(data, path=()):
    """The path of every value in a JSON tree."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from paths_of(value, (*path, key))
        else:
            yield (*path, key)


ODD = st.one_of(
    st.none() | st.booleans(),
    st.sampled_from([0, 1, -1, 2**62, 2**63 - 1, 0.5, 1e308]),
    st.sampled_from(["", "x", "0" * 64, "group:1", "group:5", "row", "t2", "t5", "exact"]),
    st.sampled_from(["__class__", "import", "a.b", "float64"]),
    st.sampled_from([[], [0], [1], [2**40] * 4, [[]], [1] * 17, [1] * 100]),
    st.sampled_from([{}, {"": ""}, {"node": "Return"}]),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.text(max_size=4),
)


@settings(max_examples=600)
@given(data=st.data())
def test_any_changed_value_is_read_or_refused_but_never_a_crash(data):
    name = data.draw(st.sampled_from(["linear", "blocks", "group_f16_t5", "tied", "kinds"]))
    with opened(name) as file:
        tree = json.loads(file.metadata["tpack"])
        entries = dict(file.entries)
    path = data.draw(st.sampled_from([p for p in paths_of(tree) if p]))
    action = data.draw(st.sampled_from(["replace", "delete", "add"]))
    target = deepcopy(tree)
    parent = target
    for key in path[:-1]:
        parent = parent[key]
    if action == "delete":
        del parent[path[-1]]
    elif action == "add" and isinstance(parent, list):
        parent.append(data.draw(ODD))
    else:
        key = path[-1] if action == "replace" else "extra"
        parent[key] = data.draw(ODD)
    try:
        _, holds = parse_document(json.dumps(target), entries)
    except TpackError as error:
        assert error.code == 3
    else:
        changed = make.canonical(target) != make.canonical(tree)
        assert not (changed and holds)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e-999", "0e0", "-0.0"])
def test_numbers_beyond_float_are_refused_not_crashes(number):
    with opened("linear") as file:
        text, entries = file.metadata["tpack"], dict(file.entries)
    for old in ('"relative_error":0.0', '"shape":[3,5]', '"split":1'):
        assert old in text
        changed = text.replace(old, f"{old.partition(':')[0]}:{number}")
        try:
            parse_document(changed, entries)
        except TpackError as error:
            assert error.code == 3


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_infinite_literals_of_the_program_are_refused(number):
    with opened("linear") as file:
        tree, entries = json.loads(file.metadata["tpack"]), dict(file.entries)
    tree["program"]["layers"][-1]["body"] = [
        {"node": "Return", "value": {"node": "Literal", "value": "NUMBER"}}
    ]
    text = json.dumps(tree).replace('"NUMBER"', number)
    with pytest.raises(TpackError):
        parse_document(text, entries)
    tree["program"]["layers"][-1]["params"].append(
        {
            "name": "n",
            "param_type": "Layer",
            "shape": None,
            "layer": "Linear",
            "args": {"a": "NUMBER"},
        }
    )
    with pytest.raises(TpackError):
        parse_document(json.dumps(tree).replace('"NUMBER"', number), entries)


# ---- one value changed in a small description

NEWER = "The file was made by a newer tpack"
NEWER_MINOR = f"{NEWER} (format version 1.2, expected at most {KNOWN}): update tpack."


def test_a_small_description():
    document, holds = parsed(described())
    assert not holds
    entry = TernaryEntry((3, 10), 1, "t2", "row", "absmean", "float16", 0.25, HEX, HEX[::-1], None)
    assert document == Document(None, {"w": entry}, {"b": HEX}, {}, None, {})
    assert json.loads(document.to_json(stored())) | {"sha256": HEX} == described()


def test_a_description_holds_if_it_is_canonical_and_has_its_own_digest():
    document, _ = parsed(described())
    text = document.to_json(stored())
    assert parse_document(text, stored()) == (document, True)
    assert parse_document(text.replace(",", ", ", 1), stored()) == (document, False)
    assert parse_document(text, stored(b=("int64", (6,)))) == (document, False)
    assert parse_document(text, stored(b=("int32", (5,)))) == (document, False)
    body = {key: value for key, value in described().items() if key != "sha256"}
    header = {"w_packed": ["uint8", [3, 3]], "w_scale": ["float32", [3, 1]], "b": ["int64", [5]]}
    canonical = json.dumps([body, header], sort_keys=True, separators=(",", ":"))
    assert json.loads(text)["sha256"] == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "tensors"),
    [
        ({"shape": [10], "split": 0, "scale": "tensor"}, {"w_packed": (3,), "w_scale": (1,)}),
        (
            {"shape": [2**62], "split": 0, "scale": "tensor"},
            {"w_packed": (2**60,), "w_scale": (1,)},
        ),
        ({"shape": [1] * 16, "split": 15}, {"w_packed": (1,) * 16, "w_scale": (1,) * 16}),
        ({"shape": [3, 2, 5]}, {}),
        ({"shape": [3, 2, 5], "split": 2}, {"w_packed": (3, 2, 2), "w_scale": (3, 2, 1)}),
        ({"layout": "t5"}, {"w_packed": (3, 2)}),
        ({"scale": "group:4"}, {"w_scale": (3, 3)}),
        *(({"method": method}, {}) for method in ("exact", "absmean", "twn", "mse")),
        *(({"source_dtype": f"float{n}"}, {}) for n in (16, 32, 64)),
        *(({"source_dtype": dtype}, {}) for dtype in ("bfloat16", "int8")),
        *(({"relative_error": error}, {}) for error in (0, 0.0, 3, 1e308)),
        *(
            ({"divisor": divisor, "scale": "tensor"}, {"w_scale": (1,)})
            for divisor in (1, -2.5, 1e-300)
        ),
    ],
)
def test_other_values_of_a_weight(change, tensors):
    tensors = {name: ({"w_packed": "uint8"}.get(name, "float32"), s) for name, s in tensors.items()}
    document, _ = parsed(described(tensors={"w": WEIGHT | change}), stored(**tensors))
    entry = document.tensors["w"]
    for name, value in change.items():
        assert getattr(entry, name) == (tuple(value) if name == "shape" else value)
    assert type(entry.relative_error) is float
    assert entry.divisor is None or type(entry.divisor) is float


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("shape", [[], [0, 10], [-3, 10], [True, 10], [3.0, 10], "ab", None, 30, [1] * 17]),
        ("shape", [[3, 2**62], [2**21] * 3]),
        ("split", [-1, 2, 3, True, 1.0, None, "1"]),
        ("layout", ["t1", "T2", "", None, 2, ["t2"]]),
        ("method", ["Exact", "", None, 0, ["exact"]]),
        ("source_dtype", ["float8_e5m2", "uint8", "F32", None, 32, {}]),
        ("relative_error", [-0.1, -1, True, None, "0", [0.1]]),
        ("sha256", [HEX[1:], HEX + "0", HEX.upper(), f"{HEX[1:]}g", None, 0, f"{HEX}\n"]),
        ("scale_sha256", [HEX[1:], HEX + "0", HEX.upper(), None, []]),
        ("scale", ["rows", "group:0", "", None, 1, ["row"]]),
        ("divisor", [0, 0.0, True, "2", [1], 2.0]),  # 2.0: there are as many scales as rows
    ],
)
def test_no_value_of_a_weight(field, values):
    for value in values:
        rule, tensor, message = refusal(described(tensors={"w": WEIGHT | {field: value}}))
        assert (rule, tensor) == ("R10", "w")
        assert message.startswith(f"is described with {field} ")
        assert ", expected " in message


def test_the_divisor_of_one_scale():
    for value in (0, 0.0, True, "2", [1]):
        change = {"divisor": value, "scale": "tensor"}
        found = refusal(
            described(tensors={"w": WEIGHT | change}), stored(w_scale=("float32", (1,)))
        )
        assert found[:2] == ("R10", "w")
        assert found[2].startswith("is described with divisor ")


@pytest.mark.parametrize(
    ("fields", "rule", "tensor", "message"),
    [
        (
            {"version": 2, "more": 1},
            *("R9", None, f"has format version 2, expected {KNOWN}. {NEWER}: update tpack."),
        ),
        (
            {"version": [1, 2], "more": 1},
            *("R9", None, "description has the unknown field 'more'. " + NEWER_MINOR),
        ),
        (
            {"version": [1, 2], "tensors": {"w": WEIGHT | {"layout": "t9"}}},
            *("R9", "w", f"is described with layout 't9', expected t2 or t5. {NEWER_MINOR}"),
        ),
        ({"version": [1, 2], "kept": {}}, "R12", "b", SURPLUS),
        ({"more": 1}, "R10", None, "description has the unknown field 'more'."),
        ({"tensors": []}, "R10", None, "tensors is [], expected an object."),
        ({"tensors": {"w": []}}, "R10", None, "description of 'w' is [], expected an object."),
        (
            {"tensors": {"w": WEIGHT | {"more": 1}}},
            *("R10", None, "description of 'w' has the unknown field 'more'."),
        ),
        ({"kept": None}, "R10", None, "kept is None, expected an object."),
        ({"kept": {"b": 1}}, "R10", None, "kept has 1 for 'b', expected a string."),
        ({"kept": {"b": HEX[1:]}}, "R10", "b", no_digest(HEX[1:])),
        ({"aliases": []}, "R10", None, "aliases is [], expected an object."),
        ({"aliases": {"a": 1}}, "R10", None, "aliases has 1 for 'a', expected a string."),
        ({"metadata": []}, "R10", None, "metadata is [], expected an object."),
        ({"metadata": {"m": None}}, "R10", None, "metadata has None for 'm', expected a string."),
        ({"metadata": {"m": "x"}}, "R10", "m", no_digest("x")),
        ({"sha256": None}, "R10", "description", no_digest(None)),
        ({"sha256": HEX.upper()}, "R10", "description", no_digest(HEX.upper())),
        ({"kept": {}}, "R12", "b", SURPLUS),
        ({"kept": {"b": HEX, "c": HEX}}, "R12", "c", MISSING),
        ({"kept": {"b": HEX, "w_packed": HEX}}, "R12", "w_packed", TWICE),
        ({"kept": {"b": HEX, "w_scale": HEX}}, "R12", "w_scale", TWICE),
        ({"tensors": {}}, "R12", "w_packed", SURPLUS),
        ({"tensors": {"w": WEIGHT, "v": WEIGHT}}, "R12", "v_packed", MISSING),
    ],
)
def test_no_description(fields, rule, tensor, message):
    assert refusal(described(**fields)) == (rule, tensor, message)


@pytest.mark.parametrize("name", sorted(set(described()) - {"version"}))
def test_every_field_of_a_description_is_there(name):
    data = described()
    del data[name]
    assert refusal(data) == ("R10", None, f"description lacks field {name!r}.")
    assert refusal({"version": 1})[2] == "description lacks field 'aliases'."
    assert refusal({})[2] == "description lacks field 'version'."
    assert refusal([])[2] == "description is [], expected an object."


@pytest.mark.parametrize("name", sorted(WEIGHT))
def test_every_field_of_a_weight_is_there(name):
    entry = {key: value for key, value in WEIGHT.items() if key != name}
    wanted = ("R10", None, f"description of 'w' lacks field {name!r}.")
    assert refusal(described(tensors={"w": entry})) == wanted


@pytest.mark.parametrize("aliases", [{"a": "b"}, {"a": "w", "c": "w"}, {"packed": "b"}])
def test_aliases(aliases):
    assert parsed(described(aliases=aliases))[0].aliases == aliases


@pytest.mark.parametrize(
    "aliases",
    [{"b": "w"}, {"w": "b"}, {"w_scale": "b"}, {"a": "c"}, {"a": "w_scale"}, {"a": "a"}, {"a": ""}],
)
def test_aliases_that_clash_or_lead_nowhere(aliases):
    rule, tensor, message = refusal(described(aliases=aliases))
    assert (rule, tensor) == ("R12", *aliases)
    (target,) = aliases.values()
    assert message in (
        "is both an alias and a tensor.",
        f"is an alias of {target!r}, which is not described.",
    )


@pytest.mark.parametrize(
    ("tensors", "rule", "tensor", "message"),
    [
        ({"w_packed": ("int8", (3, 3))}, "R11", "w_packed", "is int8, expected uint8."),
        (
            {"w_scale": ("float64", (3, 1))},
            *("R11", "w_scale", "is float64, expected float32 or float16 or bfloat16."),
        ),
        ({"more": ("uint8", (1,)), "other": ("uint8", (1,))}, "R12", "more", SURPLUS),
        *(
            (
                {name: (dtype, shape)},
                *("R11", name),
                f"has shape {shape}, expected {wanted} for (3, 10) in layout t2 with scale row. "
                "The file is damaged: convert it again.",
            )
            for name, dtype, wanted in (
                ("w_packed", "uint8", (3, 3)),
                ("w_scale", "float32", (3, 1)),
            )
            for shape in ((3, 2), (9,), (1, 3, 3))
        ),
    ],
)
def test_stored_otherwise_than_described(tensors, rule, tensor, message):
    assert refusal(described(), stored(**tensors)) == (rule, tensor, message)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scales_of_half_precision(dtype):
    parsed(described(), stored(w_scale=(dtype, (3, 1))))


@pytest.mark.parametrize("name", ["w_packed", "w_scale", "b"])
def test_what_is_described_is_there(name):
    entries = stored()
    del entries[name]
    assert refusal(described(), entries) == ("R12", name, MISSING)


@pytest.mark.parametrize(
    "change", [{}, {"number": 1}, {"number": 3}, {"number": 1, "of": 2**31 - 1}]
)
def test_shards(change):
    data = SHARD | change
    document = parsed(described(shard=data))[0]
    assert document.shard == Shard(data["number"], data["of"], HEX)
    assert document.shard.to_dict() == data
    assert json.loads(document.to_json(stored()))["shard"] == data


@pytest.mark.parametrize(
    "change",
    [
        *({"number": value} for value in (0, -1, 4, True, 1.0, None, "2")),
        *({"of": value} for value in (1, True, 3.0, None, 2**31)),
        *({"program_sha256": value} for value in (None, "", HEX[1:], HEX.upper(), 1)),
    ],
)
def test_no_shards(change):
    rule, _, message = refusal(described(shard=SHARD | change))
    assert rule == "R10"
    assert message.startswith("is described as shard ")
    assert ", expected 1 <= number <= of" in message


def test_fields_of_shards():
    assert refusal(described(shard=SHARD | {"x": 1}))[2] == "shard has the unknown field 'x'."
    assert refusal(described(shard={"of": 1}))[2] == "shard lacks field 'number'."
    assert refusal(described(shard=1))[2] == "shard is 1, expected an object."


@pytest.mark.parametrize("text", ["{", '{"\ud800": 1}', '{"a": 1, "a": 2}', '{"version": NaN}'])
def test_what_is_no_json_is_called_a_description(text):
    with pytest.raises(FormatError, match=r"^description ") as caught:
        parse_document(text, {})
    assert caught.value.rule == "R8"
