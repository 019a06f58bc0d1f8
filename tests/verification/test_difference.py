"""Two checkpoints compared: counts by brute force, forms, LayerDefs, exit codes."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from corpus import make
from safetensors.numpy import load_file, save_file

import tpack
from tpack.container import Document, Piece, write_checkpoint
from tpack.container.document import NO_DIGEST
from tpack.layerdef import LayerDef, Param, Unspecified


def state(seed=0, rows=6, columns=70):
    generator = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, (rows, columns), generator=generator).float()
    return {
        "layers.0.fc.weight": trits,
        "layers.1.fc.weight": trits.roll(1, 0) * torch.arange(1.0, rows + 1)[:, None],
        "norm.weight": torch.linspace(0, 1, 9),
    }


@pytest.fixture
def convert(tmp_path):
    """Convert a state dict; returns the path."""
    count = iter(range(100))

    def call(source, **options):
        path = tmp_path / f"{next(count)}.safetensors"
        tpack.convert(source, path, **options)
        return path

    return call


def test_a_checkpoint_equals_itself_and_its_copy(convert, tmp_path):
    path = convert(state())
    copy = tmp_path / "copy"
    shutil.copy(path, copy)
    for other in (path, copy):
        report = tpack.diff(path, other)
        assert report.equal
        assert (report.tensors, report.compared) == ((), 3)


@pytest.mark.parametrize("layouts", [("t2", "t2"), ("t5", "t5"), ("t2", "t5")])
def test_changed_trits_and_scales_are_counted(convert, layouts):
    first, second = state(), state()
    flipped = second["layers.0.fc.weight"]
    flipped[0, 0] = -1 if flipped[0, 0] == 1 else 1
    flipped[5, 69] = 0 if flipped[5, 69] else 1
    second["layers.1.fc.weight"][2:4] *= 2
    second["norm.weight"][[1, 7]] = float("nan")
    a, b = (convert(s, layout=kind) for s, kind in zip((first, second), layouts, strict=True))
    report = tpack.diff(a, b)
    found = {t.name: t for t in report.tensors}
    trits = found["layers.0.fc.weight"]
    expected = int((first["layers.0.fc.weight"].sign() != flipped.sign()).sum())
    assert (trits.changed, trits.values, trits.scales_changed) == (expected, 420, 0)
    assert trits.share == expected / 420
    scales = found["layers.1.fc.weight"]
    assert (scales.changed, scales.scales, scales.scales_changed) == (0, 6, 2)
    norm = found["norm.weight"]
    assert (norm.kind, norm.changed, norm.values) == ("kept", 2, 9)
    assert ("layout" in trits.form) == (layouts[0] != layouts[1])
    json.dumps(report.to_dict(), allow_nan=False)


def test_blocks_of_large_tensors_are_compared(convert):
    generator = torch.Generator().manual_seed(1)
    one = torch.randint(-1, 2, (1100, 4099), generator=generator).float()
    two = one.clone()
    two[[3, 1099], [4098, 0]] = -two[[3, 1099], [4098, 0]] + (two[[3, 1099], [4098, 0]] == 0)
    changed = int((one != two).sum())
    same = tpack.diff(convert({"w": one}), convert({"w": two})).tensors[0]
    assert changed == same.changed == 2
    mixed = tpack.diff(convert({"w": one}), convert({"w": two}, layout="t5")).tensors[0]
    assert mixed.changed == 2


def brute(one, two):
    """What turned into what, and how many trits changed in each of at most 32 × 32 blocks."""
    rows, columns = one.shape
    height, width = -(-rows // 32), -(-columns // 32)
    turned = [[0] * 3 for _ in range(3)]
    blocks = np.zeros((-(-rows // height), -(-columns // width)), int)
    for r in range(rows):
        for c in range(columns):
            was, now = int(one[r, c].sign()), int(two[r, c].sign())
            turned[was + 1][now + 1] += 1
            blocks[r // height, c // width] += was != now
    return turned, blocks


@pytest.mark.parametrize("layouts", [("t2", "t2"), ("t5", "t5"), ("t2", "t5")])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (32, 33), (33, 64), (100, 37), (2, 300)])
def test_what_turned_into_what_and_where_by_brute_force(convert, shape, layouts):
    generator = torch.Generator().manual_seed(3)
    one = torch.randint(-1, 2, shape, generator=generator).float()
    two = torch.where(torch.rand(shape, generator=generator) < 0.2, one.roll(1, 1), one)
    one[0, 0], two[0, 0] = 1, -1
    a, b = (convert({"w": w}, layout=kind) for w, kind in zip((one, two), layouts, strict=True))
    (found,) = tpack.diff(a, b).tensors
    turned, blocks = brute(one, two)
    assert [list(row) for row in found.turned] == turned
    assert np.array_equal(found.blocks.changed, blocks)
    assert found.blocks.changed.sum() == found.changed
    sizes = np.zeros_like(blocks)
    for r in range(shape[0]):
        for c in range(shape[1]):
            sizes[r // found.blocks.height, c // found.blocks.width] += 1
    assert np.array_equal(found.blocks.sizes, sizes)
    merged = found.blocks.merged()
    assert merged.changed.sum() == found.changed
    assert np.array_equal(merged.sizes.sum(), sizes.sum())
    assert merged.changed[0, 0] == blocks[:2, :2].sum()
    data = tpack.diff(a, b).to_dict()
    assert [list(row) for row in data["tensors"][0]["turned"]] == turned
    json.dumps(data, allow_nan=False)


def test_blocks_of_trits_that_streamed_in_several_pieces(convert):
    generator = torch.Generator().manual_seed(4)
    one = torch.randint(-1, 2, (1500, 4099), generator=generator).to(torch.int8)
    two = torch.where(torch.rand(one.shape, generator=generator) < 0.01, -one, one)
    (found,) = tpack.diff(convert({"w": one}), convert({"w": two})).tensors
    changed = (one != two).numpy()
    rows, columns = np.nonzero(changed)
    wanted = np.zeros_like(found.blocks.changed)
    np.add.at(wanted, (rows // 47, columns // 129), 1)
    assert (found.blocks.height, found.blocks.width) == (47, 129)
    assert np.array_equal(found.blocks.changed, wanted)
    assert found.turned[0][2] + found.turned[2][0] == found.changed == changed.sum()
    assert found.turned[1] == (0, int((one == 0).sum()), 0)


def test_memory_does_not_grow_with_the_matrix(convert):
    """The trits of a matrix stream by; only counts stay."""
    peaks = []
    for rows in (1024, 4096):
        generator = torch.Generator().manual_seed(5)
        one = torch.randint(-1, 2, (rows, 4096), generator=generator, dtype=torch.int8)
        a, b = convert({"w": one}), convert({"w": -one})
        del one
        tracemalloc.start()
        tpack.diff(a, b)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_by_how_much_scales_changed(convert):
    scale = torch.tensor([[0.5], [1.0], [2.0], [4.0], [8.0]])
    factor = torch.tensor([[1.0], [1.5], [0.5], [-1.0], [1.25]])
    weight = make.trits(5, 8)
    one, two = convert({"w": weight * scale}), convert({"w": weight * scale * factor})
    (found,) = tpack.diff(one, two).tensors
    # a row whose sign changed has other trits, and the scale it had
    assert (found.scales_changed, found.factors) == (3, (0.5, 1.5))
    assert found.changed == int((weight[3] != 0).sum())


def test_scales_to_and_from_zero_have_no_factor(tmp_path):
    paths = []
    for number, scales in enumerate(([0.0, 1.0, 2.0], [3.0, 0.0, 3.0])):
        layer = LayerDef("V", [Param("v", "TernaryTensor", [3, 4], scale="row")], [Unspecified()])
        paths.append(tmp_path / f"{number}")
        module = tpack.load(convert_trits(layer, tmp_path / f"trits{number}"))
        with torch.no_grad():
            module.v_scale.copy_(torch.tensor(scales)[:, None])
        tpack.save(module, paths[-1])
    (found,) = tpack.diff(*paths).tensors
    assert (found.scales_changed, found.factors) == (3, (1.5, 1.5))


def test_zeros_of_either_sign_are_one_number_but_not_the_same_bits(tmp_path):
    layer = LayerDef("V", [Param("v", "TernaryTensor", [3, 4], scale="row")], [Unspecified()])
    paths = {}
    for name, zero, dtype in (
        ("plus", 0.0, torch.float32),
        ("minus", -0.0, torch.float32),
        ("half", -0.0, torch.float16),
    ):
        module = tpack.load(convert_trits(layer, tmp_path / f"trits {name}", dtype))
        with torch.no_grad():
            module.v_scale.fill_(zero)
        paths[name] = tmp_path / name
        tpack.save(module, paths[name])
    (found,) = tpack.diff(paths["plus"], paths["minus"]).tensors
    assert (found.scales_changed, found.factors) == (3, None)
    (found,) = tpack.diff(paths["plus"], paths["half"]).tensors
    assert (found.scales_changed, found.factors) == (0, None)


def convert_trits(layer, path, dtype=torch.float32):
    weight = torch.tensor([[1.0, 0, -1, 1], [2, 0, -2, 2], [3, 0, -3, 3]], dtype=dtype)
    tpack.convert({"v": weight}, path, layerdef=layer)
    return path


def test_tensors_of_one_side_and_other_forms(convert):
    first = state()
    second = {
        "layers.0.fc.weight": first["layers.0.fc.weight"][:5],
        "layers.1.fc.weight": first["layers.1.fc.weight"].half(),
        "norm.weight": first["norm.weight"].half(),
        "extra.weight": make.trits(3, 4),
    }
    del first["layers.0.fc.weight"]
    first["layers.0.fc.weight"] = make.trits(6, 70)
    first["gone.bias"] = torch.ones(2)
    report = tpack.diff(convert(first), convert(second))
    assert report.only_first == ("gone.bias",)
    assert report.only_second == ("extra.weight",)
    found = {t.name: t for t in report.tensors}
    assert found["layers.0.fc.weight"].form["shape"] == ("(6, 70)", "(5, 70)")
    assert found["layers.0.fc.weight"].changed is None
    assert found["layers.0.fc.weight"].share is None
    dtypes = found["layers.1.fc.weight"].form
    assert dtypes == {
        "scale dtype": ("float32", "float16"),
        "source dtype": ("float32", "float16"),
    }
    same = found["layers.1.fc.weight"]
    assert (same.scales, same.scales_changed) == (6, 0)
    assert found["norm.weight"].form == {"dtype": ("float32", "float16")}


def test_a_tensor_that_is_ternary_in_one_only(convert):
    first = {"a.weight": make.trits(4, 4), "b.weight": make.trits(4, 4)}
    report = tpack.diff(convert(first), convert(first, exclude=["b.*"]))
    (found,) = report.tensors
    assert found.form == {"kind": ("ternary", "kept")}
    assert found.changed is None


def test_splits_that_differ_compare_the_same_trits(convert):
    weight = {"v": make.trits(6, 4)}
    one = LayerDef("V", [Param("v", "TernaryTensor", [6, 4])], [Unspecified()])
    two = LayerDef("V", [Param("v", "TernaryTensor", [6, 4], split=0)], [Unspecified()])
    (found,) = tpack.diff(convert(weight, layerdef=one), convert(weight, layerdef=two)).tensors
    assert (found.form, found.changed) == ({"split": ("1", "0")}, 0)


def test_scales_of_several_dtypes_are_compared_as_numbers(convert):
    trits = make.trits(4, 8)
    row = torch.tensor([[0.5], [1.5], [2.0], [3.0]])
    one = convert({"w": (trits * row).bfloat16()})
    (found,) = tpack.diff(one, convert({"w": trits * row})).tensors
    assert (found.scales, found.scales_changed) == (4, 0)
    row[[1, 3]] += 0.001  # that bfloat16 does not see
    (found,) = tpack.diff(one, convert({"w": trits * row})).tensors
    assert (found.scales, found.scales_changed) == (4, 2)


@pytest.mark.parametrize("finer", ["row", "column", "group:32", "group:64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_of_a_tensor_equals_itself_repeated(convert, finer, dtype):
    weight = make.trits(4, 128) * 0.5
    one, two = convert({"w": weight}), convert({"w": weight.to(dtype)}, scale=finer)
    for pair in ((one, two), (two, one)):
        (found,) = tpack.diff(*pair).tensors
        assert set(found.form) - {"scale dtype", "source dtype"} == {"scale"}
        assert (found.changed, found.scales_changed) == (0, 0)
        assert found.scales == {"row": 4, "column": 128, "group:32": 16, "group:64": 8}[finer]


def test_groups_are_compared_at_the_finer_ones(convert):
    weight = torch.ones(2, 128)
    weight[:, 64:] *= 2
    one, two = convert({"w": weight}, scale="group:64"), convert({"w": weight}, scale="group:32")
    (found,) = tpack.diff(one, two).tensors
    assert (found.scales, found.scales_changed) == (8, 0)
    weight[1, 96:] *= 2
    (found,) = tpack.diff(one, convert({"w": weight}, scale="group:32")).tensors
    assert (found.scales, found.scales_changed) == (8, 1)


def test_rows_and_columns_cannot_be_compared(convert):
    weight = make.trits(4, 128)
    one, two = convert({"w": weight}, scale="row"), convert({"w": weight}, scale="column")
    (found,) = tpack.diff(one, two).tensors
    assert (found.changed, found.scales_changed) == (0, None)


def test_layerdefs_and_their_roots(convert):
    weight = {"v": make.trits(6)}

    def layer(name, extra=()):
        params = [Param("v", "TernaryTensor", [6]), *extra]
        return LayerDef(name, params, [Unspecified()])

    first = convert(weight, layerdef=layer("One"))
    report = tpack.diff(first, convert(weight, layerdef=layer("Two")))
    assert report.layerdefs == {
        "root": "changed",
        "One": "only in the first",
        "Two": "only in the second",
    }
    argument = layer("One", [Param("x", "Tensor")])
    report = tpack.diff(first, convert(weight, layerdef=argument))
    assert report.layerdefs == {"One": "changed"}
    assert not report.tensors


def test_aliases_and_metadata(convert, tmp_path):
    shared = make.trits(4, 3)
    tied = convert({"a.weight": shared, "b.weight": shared})
    loose = convert({"a.weight": shared, "b.weight": shared.clone()})
    report = tpack.diff(tied, loose)
    assert report.aliases == ("b.weight",)
    assert report.only_second == ("b.weight",)
    paths = [tmp_path / name for name in ("x", "y")]
    for path, note in zip(paths, ("one", "two"), strict=True):
        piece = Piece.of("t", "float32", (1,), np.ones(1, "f4").data)
        metadata = {"note": note}
        write_checkpoint(path, Document(None, {}, {"t": NO_DIGEST}), [piece], metadata=metadata)
    assert tpack.diff(*paths).metadata == ("note",)


def test_a_folder_equals_its_file(tmp_path):
    weights = {name: tensor.numpy() for name, tensor in state().items()}
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = sorted(weights)
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file({name: weights[name] for name in names[:1]}, folder / files[0])
    save_file({name: weights[name] for name in names[1:]}, folder / files[1])
    index = {name: files[i > 0] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )
    save_file(weights, tmp_path / "whole.safetensors")
    tpack.convert(folder, tmp_path / "m.tpack")
    tpack.convert(tmp_path / "whole.safetensors", tmp_path / "whole.tpack.safetensors")
    report = tpack.diff(tmp_path / "m.tpack", tmp_path / "whole.tpack.safetensors")
    assert (report.tensors, report.only_first, report.only_second) == ((), (), ())
    assert report.compared == 3


def test_damaged_codes_are_an_input_error(convert, tmp_path):
    a = convert({"a.weight": make.trits(4, 4)})
    blob = bytearray(a.read_bytes())
    packed = load_file(a)["a.weight_packed"].tobytes()
    blob[blob.index(packed, blob.index(b"\x00") + 8)] = 0xFF
    bad = tmp_path / "bad"
    bad.write_bytes(blob)
    for pair in ((a, bad), (bad, a)):
        with pytest.raises(tpack.FormatError) as caught:
            tpack.diff(*pair)
        assert (caught.value.rule, caught.value.file) == ("R14", str(bad))
        assert caught.value.tensor == "a.weight_packed"


# ---- the command


def test_exit_codes_and_lines(run, convert):
    a, other = convert(state()), state()
    code, out, err = run("diff", a, a)
    assert (code, out, err) == (0, f"equal: {a} and {a}: 3 tensors\n", "")
    for i in range(2):
        other[f"layers.{i}.fc.weight"][0] *= -1
    other["norm.weight"] += 1
    b = convert(other)
    code, out, err = run("diff", a, b)
    assert (code, err) == (5, "")
    assert out.splitlines()[-1].startswith("different: 3 of 3 tensors changed, ")
    assert [line.split()[:2] for line in out.splitlines()[1:-1]] == [
        ["layers.0–1.fc", "×2"],
        ["norm.weight", "kept"],
    ]
    assert "layers.1.fc.weight" in run("diff", a, b, "-v")[1]
    assert run("diff", a, b, "-q") == (5, "", "")
    code, out, _ = run("diff", a, b, "--json")
    data = json.loads(out)
    assert (code, data["equal"], data["compared"]) == (5, False, 3)
    assert {t["name"]: t["kind"] for t in data["tensors"]}["norm.weight"] == "kept"
    assert json.loads(run("diff", a, a, "--json")[1])["equal"] is True


def test_a_missing_file_is_an_input_error(run, convert, tmp_path):
    assert run("diff", convert(state()), tmp_path / "gone")[0] == 3
