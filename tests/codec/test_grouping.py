"""Groups of repeated layers: roles, ranges, order."""

import pytest

from tpack.grouping import Place, groups, label


@pytest.mark.parametrize(
    ("name", "role", "numbers"),
    [
        ("fc.weight", "fc.weight", ()),
        ("0.weight", "*.weight", (0,)),
        ("layers.10.fc1.weight", "layers.*.fc1.weight", (10,)),
        ("a.01.b", "a.01.b", ()),
        ("a.٣.b", "a.٣.b", ()),
        ("a.²", "a.²", ()),
        ("a.*.1", "a.*.1", ()),
        ("a..1", "a..*", (1,)),
        ("", "", ()),
        ("1" * 5000, "1" * 5000, ()),
    ],
)
def test_numbers_are_decimal_parts(name, role, numbers):
    assert Place.of(name) == Place(role, numbers)
    assert Place.of(name).depth == (numbers[0] if numbers else None)


def test_no_two_names_share_a_place():
    names = ["a.*.b", "a.1.b", "a.01.b", "a.b", "a.1", "*", "1"]
    assert len({Place.of(name) for name in names}) == len(names)


def test_layers_sort_by_number():
    names = ["l.10.w", "l.2.w", "b", "l.2.a", "a.*"]
    assert sorted(names, key=lambda n: Place.of(n).sort_key) == [
        "a.*",
        "b",
        "l.2.a",
        "l.2.w",
        "l.10.w",
    ]


def test_a_group_is_labelled_with_its_ranges():
    names = [f"m.layers.{i}.experts.{j}.up.weight" for i in range(30) for j in range(8)]
    assert label(names) == "m.layers.0–29.experts.0–7.up ×240"
    assert label([f"layers.{i}.mlp.up_proj" for i in (0, 1, 2, 5, 7, 8)]) == (
        "layers.0–2,5,7–8.mlp.up_proj ×6"
    )
    assert label(["x.0.weight"]) == "x.0.weight"


def test_a_key_splits_a_group():
    assert groups([("l.0", "a"), ("l.1", "b"), ("l.2", "a"), ("x", "a")]) == [
        ["l.0", "l.2"],
        ["l.1"],
        ["x"],
    ]
    assert groups([]) == []
    assert groups([("a.*.b", 0), ("a.1.b", 0)]) == [["a.*.b"], ["a.1.b"]]


def test_labels_of_very_many_ranges_are_short():
    text = label([f"a.{2 * i}.weight" for i in range(10_000)])
    assert text.startswith("a.0,2,4,")
    assert text.endswith(",56,58,…,19998 ×10000")
    assert "…" not in label([f"a.{2 * i}.weight" for i in range(32)])
