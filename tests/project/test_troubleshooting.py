"""Each section of the troubleshooting page: tpack does and prints what it says."""

import json
import re
import shutil
from collections import Counter
from functools import partial

import pytest
from situations import SITUATIONS, change_config
from torch._inductor import config
from transformers import AutoModelForCausalLM, dynamic_module_utils
from troubleshooting import BLOCK, SECTIONS, TABLE, replay, title

import tpack
import tpack.hf
from tpack.nn import TernaryLinear

REPORT = re.compile(r"\]\((https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/\d+)\)")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("section", SECTIONS, ids=title)
def test_tpack_does_what_a_section_says(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert BLOCK.search(section)
    with config.patch({"cpp.cxx": (None, "no compiler")}):
        assert replay(section) == section, "make docs writes what tpack prints now"


def test_the_table_leads_to_every_section():
    assert re.findall(r"^\|.*\| \[(.*)\]\(#", TABLE, re.MULTILINE) == [title(s) for s in SECTIONS]


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


def test_code_of_a_model_is_copied_by_hand(tmp_path, monkeypatch):
    folder, packed = tmp_path / "model", tmp_path / "model.tpack"
    SITUATIONS["model"](folder)
    (folder / "modeling_mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n\n\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    names = {"AutoConfig": "MineConfig", "AutoModelForCausalLM": "Mine"}
    code = {key: f"modeling_mine.{name}" for key, name in names.items()}
    change_config(folder, model_type="mine", auto_map=code)
    report = tpack.convert(folder)
    assert "did not copy code, modeling_mine.py: if the model" in "".join(report.notes)

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    load = partial(AutoModelForCausalLM.from_pretrained, packed, trust_remote_code=True)
    with pytest.raises(OSError, match=r"modeling_mine\.py"):
        load()
    shutil.copy(folder / "modeling_mine.py", packed)
    model = load()
    assert type(model).__name__ == "Mine"
    assert isinstance(model.model.layers[0].mlp.up_proj, TernaryLinear)


def test_columns_of_64_become_q2_0(tmp_path):
    folder = tmp_path / "narrow"
    SITUATIONS["narrow"](folder)
    tpack.convert(folder)
    report = tpack.export(f"{folder}.tpack", "gguf", tmp_path / "narrow.gguf")
    assert [tensor.type for tensor in report.tensors].count("Q2_0") == 7
    assert all(tensor.exact for tensor in report.tensors)
