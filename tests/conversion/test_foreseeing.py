"""What a conversion would do, of any file, without writing."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tpack.cli.main import main
from tpack.conversion.foreseeing import foresee
from tpack.errors import InputError

TRITS = torch.tensor([[1.0, 0, -1, 1] * 8, [0, 1, 1, -1] * 8]) * 0.5
STATE = {
    "layers.0.up.weight": TRITS,
    "layers.0.up.bias": torch.ones(2),
    "layers.1.up.weight": torch.arange(64.0).sin().reshape(2, 32),
}
TWO_LEVELS = torch.where(torch.arange(4096).reshape(64, 64) % 3 == 0, -1.48, 0.4256)


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return ended.value.code


def test_what_a_conversion_would_do(tmp_path, capsys):
    torch.save({"state_dict": STATE, "epoch": 3}, tmp_path / "m.pt")
    assert run("inspect", tmp_path / "m.pt") == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[:-1] == [
        ["tensor", "shape", "dtype", "action", "how", "error", "bpw"],
        ["layers.0.up.weight", "2×32", "float32", "packed", "tensor", "exact", "2.50"],
        ["layers.0.up.bias", "2", "float32", "kept", "1-D", "32.00"],
        ["layers.1.up.weight", "2×32", "float32", "kept", "not", "ternary", "32.00"],
    ]
    assert out.splitlines()[-1].startswith("a PyTorch file, ")
    assert ": convert would give 1 packed losslessly, 0 quantized, 2 kept, " in out
    assert "note: took " in err
    assert "warning: 1 of 2 weights is not ternary" in err
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_what_a_conversion_would_do_as_json(tmp_path, capsys):
    torch.save(STATE, tmp_path / "m.pt")
    assert run("inspect", tmp_path / "m.pt", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["kind"]) == (str(tmp_path / "m.pt"), "PyTorch")
    assert run("convert", tmp_path / "m.pt", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out).items() <= found.items()


def test_what_a_conversion_would_refuse(tmp_path, capsys):
    torch.save({"up.weight": TWO_LEVELS, "up.bias": torch.ones(64)}, tmp_path / "m.pt")
    assert run("convert", tmp_path / "m.pt") == 4
    capsys.readouterr()
    report = foresee(tmp_path / "m.pt")
    assert {t.name: t.action for t in report.tensors} == {"up.weight": "refused", "up.bias": "kept"}
    assert report.warnings[0].startswith(
        f"convert refuses it: {tmp_path / 'm.pt'}: tensor 'up.weight' has two levels"
    )
    assert run("inspect", tmp_path / "m.pt") == 0
    assert capsys.readouterr().out.endswith(": convert refuses it\n")


def test_a_weight_with_nan_is_shown_as_refused(tmp_path):
    torch.save({"up.weight": TRITS / 0}, tmp_path / "m.pt")
    (tensor,) = foresee(tmp_path / "m.pt").tensors
    assert tensor.action == "refused"


def test_a_source_without_weights_to_pack_is_shown(tmp_path):
    torch.save({"embed.weight": TWO_LEVELS}, tmp_path / "m.pt")
    report = foresee(tmp_path / "m.pt")
    assert [t.name for t in report.tensors] == ["embed.weight"]
    assert "holds no weight to pack" in report.warnings[0]


def test_what_cannot_be_opened_is_an_error(tmp_path):
    (tmp_path / "m.pt").write_text("<html>")
    with pytest.raises(InputError, match="is a web page"):
        foresee(tmp_path / "m.pt")
    with pytest.raises(InputError, match="does not exist"):
        foresee(tmp_path / "gone.pt")


def test_a_folder_and_a_key(tmp_path, capsys):
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({name: t.numpy() for name, t in STATE.items()}, folder / "model.safetensors")
    assert run("inspect", folder) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("a folder, ")
    torch.save({"a": STATE, "b": STATE | {"more": TRITS}}, tmp_path / "m.pt")
    assert run("inspect", tmp_path / "m.pt", "--key", "a") == 0
    assert "more" not in capsys.readouterr().out


def test_safetensors_need_no_torch(tmp_path):
    save_file({"up.weight": np.float32([[1, 0, -1, 1]] * 4)}, tmp_path / "m.safetensors")
    code = "import sys; sys.modules['torch'] = None; from tpack.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "inspect", str(tmp_path / "m.safetensors")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("packed")) == (0, 2), done.stderr
