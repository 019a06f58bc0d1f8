"""The report as a document: structure, escaping, policy, determinism, and its numbers."""

import hashlib
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
import torch
from html_pages import Page, verdicts
from report_files import CHECKPOINTS, HOSTILE
from safetensors.torch import load_file

import tpack
from tpack.html_report import html_report
from tpack.html_report.facts import chart_data, gather, role_labels
from tpack.html_report.markup import D3, SCRIPT, json_block
from tpack.text import size


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoints and their pages."""
    folder = tmp_path_factory.mktemp("report")
    paths = {name: make(folder / f"{name}.safetensors") for name, make in CHECKPOINTS.items()}
    return {name: (path, html_report(path)) for name, path in paths.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pages_are_well_formed_and_labelled(made, name):
    page = Page(made[name][1])
    ids = Counter(attrs["id"] for _, attrs, _ in page.tags if "id" in attrs)
    assert set(ids.values()) == {1}
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert page.all("html")[0]["lang"] == "en"
    for tag in ("input", "select"):
        assert all(attrs.get("aria-label") for attrs in page.all(tag))
    for _, attrs, _ in page.tags:
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
        if attrs.get("href", "").startswith("#"):
            assert attrs["href"][1:] in ids
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.all("th"))
    report = tpack.inspect(made[name][0])
    rows = [attrs for attrs in page.all("th") if attrs["scope"] == "row"]
    assert len(rows) == len(report.tensors) + len(report.kept)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_nothing_leaves_the_page(made, name):
    text = made[name][1]
    page = Page(text)
    for tag, attrs, _ in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "img")
        assert "style" not in attrs
        assert not any(key.startswith("on") for key in attrs)
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith(("#", "data:"))
    scripts = page.all("script")
    assert [attrs.get("type") for attrs in scripts] == ["application/json", None]
    code = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    assert not re.search(r"\beval\s*\(|new Function|\bfetch\s*\(|XMLHttpRequest|import\s*\(", code)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_policy_names_the_digests_of_the_only_script_and_style(made, name):
    text = made[name][1]
    (policy,) = [a["content"] for a in Page(text).all("meta") if "http-equiv" in a]
    code = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]
    for source, rule in ((code, "script-src"), (style, "style-src")):
        wanted = b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{rule} 'sha256-{wanted}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_hostile_names_stay_text(made):
    path, text = made["hostile"]
    page = Page(text)
    shown = HOSTILE
    for raw, escape in (
        ("\u2028", "\\u2028"),
        ("\u202e", "\\u202e"),
        ("\0", "\\x00"),
        ("\x1b", "\\x1b"),
    ):
        shown = shown.replace(raw, escape)
    assert shown in page.text_of("th")
    data = json.loads(page.text_of("script")[0])
    assert data["names"].count(shown) == 1
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    block = text[text.index('id="data">') + 10 :]
    block = block[: block.index("</script>")]
    assert not re.search("[<>&\u2028\u2029]", block)
    assert {t.name for t in tpack.inspect(path).tensors} >= {HOSTILE}


def test_data_for_the_script_survives_as_it_was():
    data = {"a": ["</script>", "<!--", "\u2028", "é", "\ud800", 1.5, None]}
    block = json_block("x", data)
    inner = re.fullmatch(r'<script type="application/json" id="x">(.*)</script>', block)[1]
    assert "<" not in inner
    assert inner.isascii()
    assert json.loads(inner) == data


def test_hostile_file_names(tmp_path):
    odd = tmp_path / "<b>\udcff&amp;\n.safetensors"
    page = Page(html_report(CHECKPOINTS["one"](odd)))
    assert page.text_of("h1") == ["<b>\ufffd&amp;\\n.safetensors"]
    source = tmp_path / "<i>&amp;.pt"
    torch.save(tpack.unpack(odd), source)
    text = html_report(odd, source)
    assert "<i>" not in text
    assert "Compared with <code>&lt;i&gt;&amp;amp;.pt</code>" in text


def test_equal_files_give_equal_pages_anywhere(made, tmp_path):
    path, text = made["stack"]
    other = tmp_path / path.name
    other.write_bytes(path.read_bytes())
    code = (
        "import sys; from tpack.html_report import html_report\n"
        "sys.stdout.buffer.write(html_report(sys.argv[1]).encode())\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, other],
        capture_output=True, timeout=60, check=True, cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
    )  # fmt: skip
    assert done.stdout == text.encode()


def test_the_numbers_of_the_charts_by_brute_force(made):
    path, _ = made["stack"]
    data = chart_data(gather(path))
    stored = load_file(path)
    plain = tpack.unpack(path)
    assert len(data["names"]) == len(plain)
    assert len({len(data[key]) for key in data if key not in ("stack", "roles", "file")}) == 1
    for i, name in enumerate(data["names"]):
        place = re.search(r"layers\.(\d+)\.", name)
        assert data["depth"][i] == (int(place[1]) if place else None)
        if f"{name}_packed" not in stored:
            assert data["zeros"][i] is None
            assert data["bytes"][i] == stored[name].nbytes
            continue
        weight, scale = plain[name].float(), stored[f"{name}_scale"].float().numpy()
        assert data["size"][i] == weight.numel()
        assert data["zeros"][i] == pytest.approx(float((weight == 0).float().mean()), abs=1e-6)
        assert data["packed"][i] == stored[f"{name}_packed"].nbytes
        assert data["scales"][i] == stored[f"{name}_scale"].nbytes
        wanted = np.percentile(np.abs(scale), [0, 25, 50, 75, 100])
        assert data["spread"][i] == pytest.approx(wanted, rel=1e-5)
    assert data["stack"] == "model.layers.*"
    assert {"self_attn.q_proj", "mlp.up_proj", "model.embed_tokens"} <= set(data["roles"])


def test_totals_compare_weights_with_weights_and_account_for_the_file(made):
    path, text = made["stack"]
    stored, plain = load_file(path), tpack.unpack(path)
    totals = Page(text).text_of("dd")
    weights = [name for name in plain if f"{name}_packed" in stored]
    now = {
        part: sum(stored[f"{name}_{part}"].nbytes for name in weights)
        for part in ("packed", "scale")
    }
    before = sum(plain[name].numel() * 2 for name in weights)  # bfloat16
    elements = sum(plain[name].numel() for name in weights)
    kept = sum(tensor.nbytes for name, tensor in stored.items() if name in plain)
    whole = path.stat().st_size
    assert totals == [
        size(whole),
        f"{before / sum(now.values()):.1f}×",
        f"{8 * sum(now.values()) / elements:.2f}",
        f"{kept / whole:.0%}",
    ]
    in_all = 8 * sum(tensor.nbytes for tensor in stored.values())
    numbers = sum(tensor.numel() for tensor in plain.values())
    assert f"of it scales; {in_all / numbers:.2f} in all" in text
    shares = [float(share) for share in re.findall(r"</b> [^<]*?([\d.]+)%", text)]
    rest = whole - sum(now.values()) - kept
    wanted = [100 * part / whole for part in (*now.values(), kept, rest)]
    assert shares[:4] == pytest.approx(wanted, abs=0.051)
    assert sum(shares[4:]) == pytest.approx(100, abs=0.2)


def source_of(path):
    """What the checkpoint ``exact`` was converted from."""
    source = tpack.unpack(path)
    return source | {"tied.weight": source["head.weight"]}


def test_green_is_only_what_was_proven_and_the_page_says_how(made, tmp_path):
    intact = ("plain", "File intact: 4 tensors, every code, digest and byte of padding")
    path, text = made["exact"]
    assert verdicts(text) == [
        ("plain", "4 of 4 packed weights exact, by the record in the file"),
        intact,
    ]
    assert "Recorded by the conversion" in text
    source = source_of(path)
    torch.save(source, tmp_path / "source.pt")
    text = html_report(path, tmp_path / "source.pt")
    assert verdicts(text) == [("good", "4 of 4 packed weights exact: equal to the source"), intact]
    assert "Compared with <code>source.pt</code>" in text
    assert "Recorded" not in text
    source["0.weight"] = -source["0.weight"]
    torch.save(source, tmp_path / "other.pt")
    text = html_report(path, tmp_path / "other.pt")
    assert verdicts(text) == [("bad", "Verification failed: 1 problem")]
    assert "<li>tensor &#x27;0.weight&#x27;" in text


def test_a_recorded_rounding_of_the_source_is_proven_and_named(tmp_path):
    path, source = tmp_path / "packed", tmp_path / "source.pt"
    trits = (torch.arange(64) % 3 - 1).reshape(8, 8).float()
    floats = {f"{i}.weight": torch.arange(64.0).reshape(8, 8) - 9 * i for i in (1, 2)}
    torch.save(floats, source)
    tpack.convert(source, path)
    errors = [f"{t.relative_error:.3g}" for t in tpack.inspect(path).tensors]
    assert verdicts(html_report(path))[0] == (
        "plain",
        f"0 of 2 packed weights exact, 2 quantized with a relative error of {' to '.join(errors)}",
    )
    text = html_report(path, source)
    assert verdicts(text)[0] == ("plain", "2 of 2 packed weights equal absmean of the source")
    assert f"The rounding has a relative error of {' to '.join(errors)}" in text
    torch.save(floats | {"0.weight": trits}, source)
    tpack.convert(source, path, quantize="absmean", force=True)
    text = html_report(path, source)
    assert verdicts(text)[0] == (
        "plain",
        "1 of 3 packed weights exact, 2 equal absmean of the source",
    )


def test_weights_that_are_not_exact_are_counted_at_the_top(made):
    errors = [t.relative_error for t in tpack.inspect(made["stack"][0]).tensors]
    low, high = min(e for e in errors if e), max(errors)
    assert verdicts(made["stack"][1])[0] == (
        "plain",
        "16 of 28 packed weights exact, 12 quantized with a relative error of "
        f"{low:.3g} to {high:.3g}",
    )
    assert verdicts(made["one"][1])[0][1].startswith("0 of 1 packed weight exact, 1 quantized")
    assert verdicts(made["trained"][1])[0] == (
        "plain", "0 of 2 packed weights exact, 2 saved from a module",
    )  # fmt: skip
    assert "no source is known" in made["trained"][1]
    found = verdicts(made["partly_trained"][1])[0][1]
    assert re.fullmatch(
        r"1 of 3 packed weights exact, 1 quantized with a relative error of 0\.\d+, "
        "1 saved from a module",
        found,
    )
    assert not any("exact" in words for _, words in verdicts(made["kept_only"][1]))


def test_layers_come_in_the_order_of_their_numbers(tmp_path):
    path = CHECKPOINTS["stack"](tmp_path / "m", 12)
    names = [name for name in chart_data(gather(path))["names"] if name.endswith("q_proj.weight")]
    assert names == [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(12)]


def test_labels_of_roles_never_collide():
    roles = ["h.*.up.weight", "h.*.up", "up.weight", "g.*.up.weight"]
    stack, labels = role_labels(roles)
    assert stack == ""
    assert len(set(labels)) == len(roles)
    assert role_labels(["*.weight", "*.bias"]) == ("*", ["*", "bias"])
    assert role_labels([]) == ("", [])
    assert role_labels(["layers.*"]) == ("", ["layers.*"])
    stack, labels = role_labels(["h.*.up.weight", "up.weight"])
    assert (stack, labels) == ("h.*", ["h.*.up", "up"])
    assert role_labels(["h.*.up.weight", "up.weight", "h.*.up"])[1][0] == "h.*.up.weight"


def test_a_failed_verification_is_told_first(made, tmp_path):
    blob = bytearray(made["stack"][0].read_bytes())
    blob[-1] ^= 1
    path = tmp_path / "bad.safetensors"
    path.write_bytes(blob)
    text = html_report(path)
    assert "Verification failed: 1 problem" in text
    assert "does not have" in " ".join(Page(text).text_of("li"))
    assert verdicts(text) == [("bad", "Verification failed: 1 problem")]


def test_empty_states(made):
    assert "No tensor of this checkpoint is ternary" in made["kept_only"][1]
    assert "has no LayerDefs" in made["kept_only"][1]
    assert "tied.weight" in made["exact"][1]
    assert "Shared" in made["exact"][1]


def test_layerdefs_with_their_source(made):
    _, text = made["stack"]
    source = "".join(data for name, data in Page(text).texts if name in ("code", "span"))
    assert "class SelfAttn(nn.Module):" in re.sub(r"\s+", " ", source)
    page = Page(text)
    targets = [attrs["href"] for attrs in page.all("a")]
    assert len(targets) >= 3
    assert '<b class="times">×4</b>' in text


def test_the_generated_source_is_shown_letter_by_letter(made):
    from tpack.container import Checkpoint

    path, text = made["stack"]
    with Checkpoint(path) as file:
        program = file.document.program
    expected = tpack.generate_pytorch_code(program)
    blocks = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", text, re.DOTALL)
    shown = []
    for block in blocks:
        page = Page(f"<pre>{block}</pre>")
        shown.append("".join(data for _, data in page.texts))
    assert [line for b in shown for line in b.splitlines() if line] == [
        line for line in expected.splitlines() if line
    ]


def test_the_library_lies_in_the_package_with_its_licence():
    folder = files("tpack.html_report")
    for name in D3:
        head = folder.joinpath(f"d3/d3-{name}.min.js").read_text().split("\n")[0]
        assert re.match(rf"// https://d3js.org/d3-{name}/ v\d+\.\d+\.\d+ Copyright", head)
    assert "Mike Bostock" in folder.joinpath("d3/LICENSE").read_text()
    found = {path.name for path in folder.joinpath("script").iterdir()}
    assert found == {f"{name}.js" for name in SCRIPT}
    found = {path.name for path in folder.joinpath("d3").iterdir()}
    assert found == {f"d3-{name}.min.js" for name in D3} | {"LICENSE"}


# ---- the command


def test_the_command_writes_the_page_once(run, made, tmp_path):
    path, text = made["stack"]
    out = tmp_path / "report.html"
    assert run("inspect", path, "--html", out) == (0, f"{out}\n", "")
    assert out.read_text() == text
    assert run("inspect", path, "--html", out)[0] == 6
    code, said, _ = run("inspect", path, "--html", out, "--force", "--json")
    assert (code, json.loads(said)) == (
        0,
        {"output": str(out), "ok": True, "problems": []},
    )
    assert run("inspect", path, "--html", path, "--force")[0] == 6
    assert run("inspect", tmp_path / "gone", "--html", tmp_path / "x.html")[0] == 3
    assert not (tmp_path / "x.html").exists()


def test_the_command_fails_after_it_wrote_the_page_of_a_damaged_file(run, tmp_path):
    path, out = CHECKPOINTS["one"](tmp_path / "bad.safetensors"), tmp_path / "report.html"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 0x55
    path.write_bytes(blob)
    code, said, err = run("inspect", path, "--html", out)
    assert (code, said) == (5, f"{out}\n")
    assert re.fullmatch(
        rf"FAILED: {re.escape(str(path))}: . problems?, which the page lists\n", err
    )
    assert "Verification failed" in out.read_text()
    code, said, err = run("inspect", path, "--html", out, "--force", "--json")
    report = json.loads(said)
    assert (code, report["ok"], err) == (5, False, "")
    assert report["problems"]


def test_a_weight_without_a_source_is_not_called_exact(made):
    assert chart_data(gather(made["trained"][0]))["error"] == [None, None]
    path, text = made["partly_trained"]
    data = chart_data(gather(path))
    assert data["error"][:2] == [None, 0.0]
    assert data["kinds"] == ["ternary unknown", "ternary exact", "ternary quantized"]
    assert Page(text).text_of("td").count("unknown") == 2  # its method, and its error


def test_the_command_compares_with_the_source(run, made, tmp_path):
    path, out = made["exact"][0], tmp_path / "report.html"
    source = tmp_path / "source.pt"
    torch.save(source_of(path), source)
    assert run("inspect", path, "--html", out, "--against", source) == (0, f"{out}\n", "")
    assert "Compared with <code>source.pt</code>" in out.read_text()
    assert run("inspect", path, "--html", source, "--against", source, "--force")[0] == 6
    assert run("inspect", path, "--against", source)[0] == 2
    torch.save({"0.weight": torch.ones(8, 8)}, source)
    assert run("inspect", path, "--html", out, "--against", source, "--force")[0] == 5
