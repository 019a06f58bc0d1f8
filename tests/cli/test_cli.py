"""The command line: exit codes, JSON, streams, help."""

# ruff: noqa: PTH208 -- listdir gives names, which is what is compared

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpus import make
from safetensors.torch import load_file, save_file

import tpack
from tpack.cli.main import COMMANDS

GOLDEN = Path(__file__).parents[1] / "golden" / "help"


@pytest.fixture(autouse=True)
def signals():
    """``main`` installs a handler for SIGTERM; put the old one back."""
    old = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, old)


def tpack_command(*arguments, **options):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tpack", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "m.safetensors"
    state = {
        "fc.weight": make.trits(4, 8) * 0.5,
        "up.weight": torch.arange(32.0).reshape(4, 8) - 9,
        "fc.bias": torch.ones(4),
    }
    save_file(state, path)
    return path


@pytest.fixture
def exact(tmp_path):
    path = tmp_path / "e.safetensors"
    save_file({"fc.weight": make.trits(4, 8) * 0.5, "fc.bias": torch.ones(4)}, path)
    return path


# ---- help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_as_it_was(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "88")
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "")
    golden = GOLDEN / f"{command or 'tpack'}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(out)
    assert out == golden.read_text()


def test_every_command_has_a_golden_and_no_more():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {"tpack", *COMMANDS}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_shows_an_example(run, command):
    _, out, _ = run(*command.split(), "--help")
    assert f"Example:\n    tpack {command or 'convert'}" in out
    assert run(*command.split(), "-h")[1] == out


def test_every_option_of_the_contract_is_there(run):
    _, out, _ = run("convert", "--help")
    for option in [
        "--output",
        "--exact",
        "--quantize",
        "--scale",
        "--include",
        "--exclude",
        "--keep-dtype",
        "--layout",
        "--layerdef",
        "--dry-run",
        "--force",
        "--json",
        "--quiet",
        "--verbose",
    ]:
        assert option in out
    for command in set(COMMANDS) - {"codegen"}:
        assert "--json" in run(command, "--help")[1]


def test_version(run):
    assert run("--version") == (0, f"tpack, version {tpack.__version__}\n", "")


def test_no_module_of_torch_for_light_commands(source):
    file = make.ACCEPT / "linear.safetensors"
    for arguments in ("", "--help", "convert --help", f"inspect {file}", f"verify {file}"):
        code = (
            "import sys, tpack\n"
            f"arguments = {arguments.split()!r}\n"
            "if arguments:\n"
            "    from tpack.cli.main import main\n"
            "    try:\n        main(arguments)\n"
            "    except SystemExit as end:\n        assert not end.code, end.code\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_conversion_of_safetensors_needs_no_torch(exact):
    code = (
        "import sys\nfrom tpack.conversion import convert\n"
        f"convert({str(exact)!r})\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "False", done.stderr


# ---- results


def test_the_whole_path(run, exact, tmp_path):
    code, out, err = run("convert", exact)
    packed = tmp_path / "e.tpack.safetensors"
    assert (code, out) == (0, f"{packed}\n")
    assert "1 packed losslessly" in err
    code, out, err = run("verify", packed, "--against", exact)
    assert (code, err) == (0, "")
    assert out.startswith(f"ok: {packed}: 2 tensors")
    code, out, err = run("inspect", packed)
    assert (code, err) == (0, "")
    assert "fc.weight" in out
    code, out, err = run("codegen", packed)
    assert (code, err) == (0, "")
    compile(out, "generated", "exec")
    code, out, _ = run("codegen", packed, "-o", tmp_path / "m.py")
    assert (code, out) == (0, f"{tmp_path / 'm.py'}\n")
    code, out, _ = run("unpack", packed, "-o", tmp_path / "plain.safetensors")
    assert (code, out) == (0, f"{tmp_path / 'plain.safetensors'}\n")
    one, two = load_file(exact), load_file(tmp_path / "plain.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_quiet_prints_results_only(run, source, tmp_path):
    packed = tmp_path / "m.tpack.safetensors"
    assert run("convert", source, "-q", "--quantize", "twn") == (0, f"{packed}\n", "")
    assert run("verify", packed, "-q") == (0, "", "")
    out = tmp_path / "x"
    assert run("unpack", packed, "-o", out, "-q") == (0, f"{out}\n", "")


def test_verbose_shows_kept_tensors(run, source):
    assert "fc.bias" not in run("convert", source)[2]
    assert "fc.bias" in run("convert", source, "-v", "--force")[2]


def test_dry_run_prints_its_table_on_stdout(run, source, tmp_path):
    code, out, _ = run("convert", source, "--dry-run")
    assert code == 0
    assert "up.weight" in out
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors"]


def test_options_reach_the_conversion(run, source, tmp_path):
    out = tmp_path / "x"
    code, *_ = run(
        "convert", source, "-o", out, "--quantize", "mse", "--scale", "row", "--layout", "t5",
        "--exclude", "fc.*", "--exclude", "none", "--keep-dtype", "f16",
    )  # fmt: skip
    assert code == 0
    report = tpack.inspect(out)
    assert [(t.name, t.method, t.scale, t.layout) for t in report.tensors] == [
        ("up.weight", "mse", "row", "t5")
    ]
    assert {k.dtype for k in report.kept} == {"float16"}


# ---- JSON


def test_json_of_convert(run, source, tmp_path):
    code, out, err = run("convert", source, "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert {"output", "input_bytes", "output_bytes", "tensors"} <= set(data)
    assert data["output"] == str(tmp_path / "m.tpack.safetensors")
    assert data["input_bytes"] == source.stat().st_size
    assert data["output_bytes"] == Path(data["output"]).stat().st_size
    assert {row["name"]: row["action"] for row in data["tensors"]} == {
        "fc.weight": "packed",
        "up.weight": "kept",
        "fc.bias": "kept",
    }
    for row in data["tensors"]:
        assert {"name", "action", "scale", "method", "relative_error", "bpw"} <= set(row)
    assert json.loads(run("convert", source, "--json", "--dry-run")[1])["output"] is None


def test_json_of_verify_and_inspect(run, source):
    file = make.ACCEPT / "linear.safetensors"
    data = json.loads(run("verify", file, "--json")[1])
    assert set(data) == {"ok", "file", "tensors", "problems"}
    assert (data["ok"], data["file"], data["problems"]) == (True, str(file), [])
    assert all(set(row) == {"name", "ok", "checks"} for row in data["tensors"])
    data = json.loads(run("inspect", file, "--json")[1])
    assert {"file", "format_version", "tensors", "kept", "bpw_total"} <= set(data)


def test_json_of_a_failed_verification(run, source, exact):
    run("convert", exact)
    packed = exact.with_name("e.tpack.safetensors")
    code, out, err = run("verify", packed, "--against", source, "--json")
    assert (code, err) == (5, "")
    data = json.loads(out)
    assert data["ok"] is False
    assert data["problems"]


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "tensor"),
    [
        (["convert", "SOURCE", "--exact"], 4, "not_ternary", "up.weight"),
        (["convert", "gone.pt"], 3, "input", None),
        (["convert", "SOURCE", "--scale", "cell"], 2, "usage", None),
        (["convert", "SOURCE", "--layout", "t3"], 2, "usage", None),
        (["convert", "SOURCE", "--wrong"], 2, "usage", None),
        (["convert"], 2, "usage", None),
        (["convert", "SOURCE", "-o", "gone/x"], 7, "storage", None),
        (["convert", "SOURCE", "-o", "SOURCE", "--force"], 6, "exists", None),
        (["codegen", "SOURCE"], 3, "format", None),
        (["verify", "."], 3, "input", None),
    ],
)
def test_errors_as_json_and_as_text(run, source, monkeypatch, arguments, code, kind, tensor):
    monkeypatch.chdir(source.parent)
    arguments = [str(source) if a == "SOURCE" else a for a in arguments]
    before = sorted(os.listdir())
    found, out, err = run(*arguments, "--json")
    assert (found, err) == (code, "")
    error = json.loads(out)["error"]
    assert set(error) == {"code", "kind", "message", "tensor"}
    assert (error["code"], error["kind"], error["tensor"]) == (code, kind, tensor)
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("tpack: ")
    assert len(err.splitlines()) == 1
    assert error["message"].split(" See ")[0] in err
    assert sorted(os.listdir()) == before


# ---- exit codes


def test_exit_2_for_unknown_commands_and_none(run):
    assert run("explode")[0] == 2
    assert run()[0] in (0, 2)


def test_exit_5_and_6(run, source, exact):
    run("convert", source)
    packed = source.with_name("m.tpack.safetensors")
    code, out, err = run("verify", packed, "--against", exact)
    assert code == 5
    assert out.startswith("FAILED")
    assert "up.weight" in err
    assert run("convert", source)[0] == 6
    assert run("convert", source, "--force")[0] == 0


def test_checkpoints_may_be_named_by_file_addresses_and_no_others(run, source):
    made = Path(run("convert", source, "-q")[1].strip())
    for command in ("verify", "inspect"):
        assert run(command, f"file://{made}")[0] == 0
    code, _, err = run("verify", "s3://bucket/model")
    assert code == 2
    assert "'s3://bucket/model' is an address, expected a path" in err


def test_an_output_with_an_unknown_scheme_is_named(run, source):
    code, out, err = run("convert", source, "-o", "nosuch://x")
    assert (code, out) == (3, "")
    assert err == "tpack: nosuch://x: cannot be opened: Protocol not known: nosuch.\n"


def test_inspect_shows_tied_tensors(run, tmp_path):
    table = torch.randn(8, 8)
    torch.save(
        {"embed.weight": table, "fc.weight": torch.eye(8), "lm_head.weight": table},
        tmp_path / "m.pt",
    )
    made = run("convert", tmp_path / "m.pt", "-q")[1].strip()
    assert "lm_head.weight         = embed.weight  alias\n" in run("inspect", made)[1]
    report = json.loads(run("inspect", made, "--json")[1])
    assert report["aliases"] == {"lm_head.weight": "embed.weight"}


def test_exit_1_is_a_bug_and_shows_a_traceback_only_on_request(run, source, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("tpack.conversion.convert", broken)
    code, out, err = run("convert", source)
    assert (code, out) == (1, "")
    assert "a bug in tpack: ZeroDivisionError: oh" in err
    assert "Traceback" not in err
    error = json.loads(run("convert", source, "--json")[1])["error"]
    assert (error["code"], error["kind"]) == (1, "bug")
    monkeypatch.setenv("TPACK_DEBUG", "1")
    code, _, err = run("convert", source)
    assert code == 1
    assert "Traceback" in err


def test_a_failure_of_input_shows_no_traceback(run, source, monkeypatch):
    assert "Traceback" not in run("convert", source, "--exact")[2]
    monkeypatch.setenv("TPACK_DEBUG", "1")
    assert "Traceback" in run("convert", source, "--exact")[2]


def test_a_reader_that_leaves_early_is_no_bug():
    file = make.ACCEPT / "linear.safetensors"
    done = subprocess.run(
        f'"{sys.executable}" -m tpack codegen "{file}" | true; exit "${{PIPESTATUS[0]}}"',
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 7)
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_stdout_that_is_full_is_a_storage_error():
    file = make.ACCEPT / "linear.safetensors"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tpack", "inspect", file],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 7
    assert "bug" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_file_names_that_are_no_utf8(exact, tmp_path, command):
    odd = os.fsencode(tmp_path) + b"/o\xff.safetensors"
    blob = exact if command == "convert" else make.ACCEPT / "linear.safetensors"
    Path(os.fsdecode(odd)).write_bytes(blob.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "tpack", command, odd],
        capture_output=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_names_of_tensors_cannot_drive_the_terminal(run, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"\x1b[31mred\n.weight": make.trits(4, 8), "x\r": torch.ones(3)}, path)
    run("convert", path)
    _, out, err = run("inspect", tmp_path / "m.tpack.safetensors", "-v")
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    _, out, err = run("convert", path, "--force", "-v")
    assert "\x1b" not in out + err


def test_ascii_terminals_are_no_bug(exact):
    done = tpack_command(
        "convert",
        exact,
        env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr


def test_no_progress_without_a_terminal(source):
    done = tpack_command("convert", source)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout == f"{source.with_name('m.tpack.safetensors')}\n"


def test_a_long_conversion_without_compiled_kernels_says_why(run, source, monkeypatch):
    monkeypatch.setattr("tpack.kernels.selection.missing", "tpack has no compiled kernels: …")
    assert "no compiled kernels" not in run("convert", source)[2]
    monkeypatch.setattr("tpack.cli.convert._LARGE", 1)
    assert "\nnote: tpack has no compiled kernels: …\n" in run("convert", source, "--force")[2]
    assert "no compiled kernels" not in run("convert", source, "--force", "-q")[2]


@pytest.mark.parametrize("suffix", ["pt", "pt2", "safetensors", "gguf", "txt"])
def test_a_text_is_refused_in_one_line_with_what_to_do(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_text("hello")
    done = tpack_command("convert", tmp_path / f"a.{suffix}")
    (line,) = done.stderr.splitlines()  # torch logs a traceback of its own
    assert (done.returncode, done.stdout) == (3, "")
    assert line.endswith(("again.", "if it is one of these."))
