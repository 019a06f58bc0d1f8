"""The page of two checkpoints as a document: its numbers, escaping, policy and exit codes."""

import json
import re

import numpy as np
import pytest
import torch
from html_pages import Page, verdicts
from report_files import HOSTILE, PAIRS

import tpack
from tpack.html_report import render_comparison
from tpack.text import printable


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pairs of checkpoints and their pages."""
    found = {}
    for name, make in PAIRS.items():
        pair = make(tmp_path_factory.mktemp(name))
        found[name] = (*pair, render_comparison(tpack.diff(*pair)))
    return found


def data_of(text):
    return json.loads(Page(text).text_of("script")[0])


@pytest.mark.parametrize("name", PAIRS)
def test_pages_are_well_formed_and_nothing_leaves_them(made, name):
    text = made[name][2]
    page = Page(text)
    ids = [attrs["id"] for _, attrs, _ in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert len(page.all("h1")) == len(page.all("main")) == 1
    for tag, attrs, _ in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "img")
        assert "style" not in attrs
        assert "src" not in attrs
        assert not any(key.startswith("on") for key in attrs)
        assert attrs.get("href", "#").startswith(("#", "data:"))
        if attrs.get("href", "").startswith("#"):
            assert attrs["href"][1:] in ids
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
    wanted = [] if name == "same" else ["application/json", None]
    assert [attrs.get("type") for attrs in page.all("script")] == wanted
    assert render_comparison(tpack.diff(*made[name][:2])) == text


def test_hostile_names_stay_text(made):
    text = made["hostile_pair"][2]
    page = Page(text)
    shown = printable(HOSTILE)
    heads = page.text_of("th")
    assert [heads.count(f"{place}{shown}") for place in ("", "only.", "layers.0.")] == [1, 1, 1]
    assert "".join(page.text_of("h1")) == "<b>a.safetensors  &quot;'.safetensors"
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    block = text[text.index('id="data">') + 10 :]
    assert not re.search("[<>&\u2028\u2029]", block[: block.index("</script>")])


def test_the_numbers_by_brute_force(made):
    first, second, text = made["trained_stack"]
    one, two = tpack.unpack(first), tpack.unpack(second)
    weights = [t.name for t in tpack.inspect(first).tensors]
    data, page = data_of(text), Page(text)
    turned = np.zeros((3, 3), int)
    count = total = 0
    for name in weights:
        was, now = (w[name].float().sign().int() for w in (one, two))
        changed = int((was != now).sum())
        total += was.numel()
        count += changed
        scale = [w[name].float().abs().amax(dim=1) for w in (one, two)]
        drift = float((scale[1] / scale[0] - 1).abs().max())
        if name not in data["names"]:
            assert changed == drift == 0
            continue
        i = data["names"].index(name)
        assert (data["count"][i], data["size"][i]) == (changed, was.numel())
        assert data["changed"][i] == changed / was.numel()
        assert data["drift"][i] == pytest.approx(drift, abs=1e-5)
        pairs = [[int(((was == x) & (now == y)).sum()) for y in (-1, 0, 1)] for x in (-1, 0, 1)]
        if changed:
            assert data["turned"][i] == pairs
            turned += pairs
            rows, columns, height, width, digits = data["blocks"][i]
            assert (rows, columns) == tuple(was.shape)
            shares = (was != now).float().reshape(rows // height, height, columns // width, width)
            wanted = np.digitize(shares.mean(dim=(1, 3)), [1e-9, 0.0011, 0.011, 0.11, 0.51])
            assert digits == "".join(map(str, wanted.reshape(-1)))
    assert float(page.text_of("dd")[0].rstrip("%")) == pytest.approx(100 * count / total, rel=0.06)
    assert f"{count:,} of {total:,}" in text
    cells = re.findall(r"<td(?: class=same)?>([\d,]+)<span>", text)
    assert [int(cell.replace(",", "")) for cell in cells] == turned.reshape(-1).tolist()
    assert data["kinds"][data["names"].index("adapter.weight")] == "only"


def test_many_tensors_have_smaller_maps(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pair = []
    for number in range(2):
        state = {
            f"{i}.weight": torch.randint(-1, 2, (64, 64), generator=generator).float()
            for i in range(257)
        }
        pair.append(tmp_path / f"{number}")
        tpack.convert(state, pair[-1])
    text = render_comparison(tpack.diff(*pair))
    assert {(tuple(b[:4]), len(b[4])) for b in data_of(text)["blocks"]} == {((64, 64, 4, 4), 256)}
    assert len(text) < 150_000 + 257 * 900


def test_equal_checkpoints_are_green_and_alone(made):
    text = made["same"][2]
    assert verdicts(text) == [("good", "Equal: 4 tensors")]
    assert "<section" not in text
    assert "D3" not in text


def test_there_is_no_empty_section(made):
    def sections(name):
        return re.findall(r'<h2(?: id="(\w+)-title")?>', made[name][2])

    assert sections("trained_stack") == ["changed", "drift", "turned", "maps", "tensors", ""]
    assert sections("kept_pair") == ["tensors"]
    assert sections("other_forms") == ["tensors", ""]
    assert "dtype float32 → float16" in made["other_forms"][2]
    assert "only in the second" in made["other_forms"][2]
    assert ("plain", "1 of 1 tensor in both differs") in verdicts(made["kept_pair"][2])


def test_tensors_in_another_form_are_counted_at_the_top(made, tmp_path):
    trits = (torch.arange(64) % 3 - 1).reshape(8, 8).float()
    state = {f"{i}.weight": trits * (i + 1) for i in range(4)}
    tpack.convert(state, tmp_path / "one")
    state["0.weight"] = torch.rand(8, 8)
    state["1.weight"] = trits[:4].clone()
    tpack.convert(state, tmp_path / "two", exclude=["0.*", "2.*"])
    text = render_comparison(tpack.diff(tmp_path / "one", tmp_path / "two"))
    assert verdicts(text) == [("plain", "3 of 4 tensors in both differ")]
    totals = dict(zip(Page(text).text_of("dt"), Page(text).text_of("dd"), strict=True))
    assert totals["tensors in another form: 2 packed in one, kept in the other"] == "3"
    assert "in another form" not in made["kept_pair"][2]
    assert "tensors in another form" in Page(made["other_forms"][2]).text_of("dt")


# ---- the command


def test_the_command_writes_the_page_once_and_exits_as_diff_does(run, made, tmp_path):
    first, second, text = made["trained_stack"]
    out = tmp_path / "diff.html"
    assert run("diff", first, second, "--html", out) == (5, f"{out}\n", "")
    assert out.read_text() == text
    assert run("diff", first, second, "--html", out)[0] == 6
    code, said, _ = run("diff", first, first, "--html", out, "--force", "--json")
    assert (code, json.loads(said)) == (0, {"output": str(out), "equal": True})
    assert verdicts(out.read_text()) == [("good", "Equal: 37 tensors")]
    assert run("diff", first, second, "--html", out, "--force", "-q") == (5, "", "")
    for target in (first, second):
        assert run("diff", first, second, "--html", target, "--force")[0] == 6
    assert run("diff", first, tmp_path / "gone", "--html", tmp_path / "x.html")[0] == 3
    assert not (tmp_path / "x.html").exists()
