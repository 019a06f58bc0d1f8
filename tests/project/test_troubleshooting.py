"""Each section of the troubleshooting page: tpack does and prints what it says."""

import json
import re
from collections import Counter

import pytest
from situations import SITUATIONS
from torch._inductor import config
from troubleshooting import BLOCK, SECTIONS, TABLE, replay, title

import tpack

REPORT = re.compile(r"\]\((https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/\d+)\)")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("section", SECTIONS, ids=title)
def test_tpack_does_what_a_section_says(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert BLOCK.search(section)
    with config.patch({"cpp.cxx": (None, "no compiler")}):
        assert replay(section) == section


def test_the_table_leads_to_every_section():
    assert re.findall(r"^\| \[(.*)\]\(#", TABLE, re.MULTILINE) == [title(s) for s in SECTIONS]


def test_every_section_names_its_reports():
    reports = [REPORT.findall(section) for section in SECTIONS]
    assert all(reports)
    counted = Counter(link for links in reports for link in links)
    assert len(counted) >= 15
    assert max(counted.values()) == 1


# ---- what sections say and do not show


def test_rounded_floats_are_packed_losslessly_without_the_config(tmp_path):
    folder = tmp_path / "rounded"
    SITUATIONS["rounded"](folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    report = tpack.convert(folder, exact=True)
    assert [tensor.action for tensor in report.tensors].count("packed") == 14


def test_unpacking_writes_both_names_of_a_tied_tensor(tmp_path):
    path = tmp_path / "tied.pt"
    SITUATIONS["tied.pt"](path)
    tpack.convert(path, tmp_path / "tied.tpack.safetensors")
    found = tpack.unpack(tmp_path / "tied.tpack.safetensors")
    assert found["lm_head.weight"].equal(found["model.embed_tokens.weight"])


def test_what_was_left_of_the_code_is_noted(tmp_path):
    folder = tmp_path / "model"
    SITUATIONS["model"](folder)
    (folder / "modeling_mine.py").write_text("raise SystemExit")
    assert "did not copy modeling_mine.py" in tpack.convert(folder).notes


def test_columns_of_64_become_q2_0(tmp_path):
    folder = tmp_path / "narrow"
    SITUATIONS["narrow"](folder)
    tpack.convert(folder)
    report = tpack.export(f"{folder}.tpack", "gguf", tmp_path / "narrow.gguf")
    assert [tensor.type for tensor in report.tensors].count("Q2_0") == 7
    assert all(tensor.exact for tensor in report.tensors)
