"""No command writes onto what it reads: a file, or a file in a folder."""

import pytest
from corpus import make
from safetensors.torch import save_file

from tpack.cli.main import main
from tpack.container.atomic import check_not_input, copy_file
from tpack.errors import ExistsError

PACKED = (make.ACCEPT / "linear.safetensors").read_bytes()
COMMANDS = {
    "inspect": "inspect {L} --html {out}",
    "the source of inspect": "inspect {X} --against {L} --html {out}",
    "codegen": "codegen {L} -o {out}",
    "the first of diff": "diff {L} {X} --html {out}",
    "the second of diff": "diff {X} {L} --html {out}",
    "unpack": "unpack {L} -o {out}",
    "export": "export {L} --to gguf -o {out}",
    "export to a folder": "export {L} --to hf-bitnet -o {L}/part",
}


def run(line, **places):
    with pytest.raises(SystemExit) as ended:
        main([word.format(**places) for word in line.split()])
    return ended.value.code


@pytest.fixture
def folders(tmp_path):
    """Two packed folders, with what stands beside weights; the weights of one are a link."""
    for name in ("L", "X"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part" / "config.json").write_text("{}")
        (tmp_path / name / "tokenizer.json").write_text("{}")
        (tmp_path / name / "modeling.py").write_text("# of the model\n")
        (tmp_path / name / "card.html").write_text("<!doctype html>\n<p>by hand")
    (tmp_path / "X" / "model.safetensors").write_bytes(PACKED)
    (tmp_path / "blob").write_bytes(PACKED)
    (tmp_path / "L" / "model.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "link").symlink_to(tmp_path / "L")
    (tmp_path / "to").symlink_to(tmp_path / "L" / "tokenizer.json")
    return {"L": tmp_path / "L", "X": tmp_path / "X"}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("force", ["", " --force"])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "place",
    [
        *("L/model.safetensors", "L/tokenizer.json", "L/modeling.py", "L/card.html"),
        *("L/part/config.json", "link/model.safetensors", "X/../L/tokenizer.json", "to", "blob"),
    ],
)
def test_no_file_of_an_input_folder_is_replaced(folders, tmp_path, command, place, force, capsys):
    if command == "unpack" and not place.endswith(".safetensors"):
        pytest.skip("its output is a folder")
    before = contents(tmp_path)
    out = f"{tmp_path}/{place}"
    assert run(COMMANDS[command] + force, **folders, out=out) == 6
    told = capsys.readouterr().err
    assert "is part of the input" in told
    assert "--force" not in told
    assert contents(tmp_path) == before


def test_what_tpack_wrote_into_an_input_folder_is_replaced(tmp_path, capsys):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((make.ACCEPT / "vector.safetensors").read_bytes())
    for command in ("inspect {L} --html {L}/x.html", "diff {L} {L} --html {L}/x.html"):
        (tmp_path / "x.html").unlink(missing_ok=True)
        assert run(command, L=tmp_path) == 0
        assert run(command, L=tmp_path) == 6
        assert "--force" in capsys.readouterr().err
        assert run(command + " -f", L=tmp_path) == 0
    for more in ("", " --standalone"):
        (tmp_path / "x.py").unlink(missing_ok=True)
        assert run("codegen {L} -o {L}/x.py" + more, L=tmp_path) == 0
        assert run("codegen {L} -o {L}/x.py -f" + more, L=tmp_path) == 0


def test_check_not_input_lets_files_outside_of_a_folder_pass(folders, tmp_path):
    (tmp_path / "L" / "broken").symlink_to("nowhere")
    (tmp_path / "L" / "loop").symlink_to("loop")
    (tmp_path / "L2").write_text("beside")
    check_not_input(tmp_path / "L2", tmp_path / "L")
    check_not_input(tmp_path / "L" / ".." / "L2", tmp_path / "L", tmp_path / "gone")
    check_not_input(tmp_path / "L" / "new.html", tmp_path / "L")
    with pytest.raises(ExistsError, match="is part of the input"):
        check_not_input(tmp_path / "blob", tmp_path / "L")


def test_an_address_of_a_file_is_its_path(folders, tmp_path):
    for address in (f"file://{tmp_path}/L", f"file:{tmp_path}/L"):  # the other as Path spells it
        with pytest.raises(ExistsError, match="is part of the input"):
            check_not_input(tmp_path / "L" / "tokenizer.json", address)


@pytest.mark.parametrize("place", ["a.safetensors", "L", "L/model.safetensors"])
def test_convert_to_an_address_spares_its_source(folders, tmp_path, place, capsys):
    pytest.importorskip("fsspec")
    folder = tmp_path / "L"
    (folder / "model.safetensors").unlink()
    save_file({"fc.weight": make.trits(4, 4)}, folder / "model.safetensors")
    copy_file(folder / "model.safetensors", tmp_path / "a.safetensors")
    before = contents(tmp_path)
    source = tmp_path / place.partition("/")[0]
    assert run(f"convert {source} -o file://{tmp_path}/{place} -f") == 6
    assert "Choose another output" in capsys.readouterr().err
    assert contents(tmp_path) == before
