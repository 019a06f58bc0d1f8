"""What a terminal shows: groups, widths, colours, progress, completion."""

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time

import pytest
import torch
from corpus import make
from safetensors.torch import save_file

from tpack.cli.main import COMMANDS

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Thirty layers: ternary rows, floats, norms."""
    path = tmp_path_factory.mktemp("terminal") / "a.safetensors"
    generator = torch.Generator().manual_seed(0)
    state = {"model.embed_tokens.weight": torch.randn(32, 16, generator=generator)}
    for i in range(30):
        at = f"model.layers.{i}."
        rows = torch.arange(1.0, 17)[:, None]
        state[f"{at}self_attn.q_proj.weight"] = make.trits(16, 17)[:, :16].contiguous() * rows
        state[f"{at}mlp.some_quite_long_name_of_a_projection.weight"] = torch.randn(
            24, 16, generator=generator
        )
        state[f"{at}input_layernorm.weight"] = torch.ones(16)
    save_file(state, path)
    return path


def on_a_terminal(*arguments, columns=80, **environment):
    """Run a command on a terminal of its own: its exit code, and what it shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tpack", *map(str, arguments)],
        stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env=clean | {"TERM": "xterm"} | environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux's word for a terminal that everybody left
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    return process.wait(timeout=10), shown.decode().replace("\r\n", "\n")


def in_a_pipe(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "tpack", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def packed(source):
    assert in_a_pipe("convert", source, "--scale", "row", "--quantize", "absmean")[0] == 0
    return source.with_name("a.tpack.safetensors")


def test_inspect_fits_80_columns_and_groups_layers(packed):
    code, shown = on_a_terminal("inspect", packed)
    lines = ESCAPE.sub("", shown).splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert len(lines) == 6
    assert any(line.startswith("model.layers.0–29.") and "×30" in line for line in lines)
    assert "…" in shown  # the long one gave way
    wide = ESCAPE.sub("", on_a_terminal("inspect", packed, columns=200)[1])
    assert "model.layers.0–29.mlp.some_quite_long_name_of_a_projection ×30" in wide


def test_verbose_shows_every_tensor_by_its_whole_name(packed):
    shown = ESCAPE.sub("", on_a_terminal("inspect", packed, "-v")[1])
    for i in range(30):
        assert f"model.layers.{i}.mlp.some_quite_long_name_of_a_projection.weight" in shown


def test_pipes_get_whole_names_one_record_a_line_and_no_colour(packed):
    code, out, err = in_a_pipe("inspect", packed)
    assert (code, err) == (0, "")
    assert "model.layers.0–29.mlp.some_quite_long_name_of_a_projection ×30" in out
    assert "\x1b" not in out
    assert "…" not in out
    assert in_a_pipe("inspect", packed, COLUMNS="20")[1] == out


def test_colours_tell_exact_from_quantized_and_can_be_turned_off(packed):
    _, shown = on_a_terminal("inspect", packed)
    assert "\x1b[32mexact" in shown
    assert "\x1b[33mabsmean" in shown
    assert "\x1b" not in on_a_terminal("inspect", packed, NO_COLOR="1")[1]
    # an empty value is none: https://no-color.org
    assert "\x1b[32m" in on_a_terminal("inspect", packed, NO_COLOR="")[1]


def test_verify_says_one_line(packed, source, tmp_path):
    code, shown = on_a_terminal("verify", packed)
    assert code == 0
    assert shown == f"\x1b[32mok\x1b[0m: {packed}: 91 tensors\n"
    assert in_a_pipe("verify", packed) == (0, f"ok: {packed}: 91 tensors\n", "")
    blob = bytearray(packed.read_bytes())
    blob[-1] ^= 0x01
    bad = tmp_path / "bad"
    bad.write_bytes(blob)
    code, shown = on_a_terminal("verify", bad)
    assert code == 5
    assert "\x1b[31mFAILED\x1b[0m" in shown


def test_convert_shows_progress_and_then_a_summary(source, tmp_path):
    out = tmp_path / "out.safetensors"
    code, shown = on_a_terminal("convert", source, "-o", out, columns=100)
    assert code == 0
    assert "/s" in shown  # the rate
    assert re.search(r"\d:\d\d:\d\d|-:--:--", shown)  # the time left
    plain = ESCAPE.sub("", shown)
    for title in ("detected", "packed", "checked", "size", "next"):
        assert re.search(f"^{title} ", plain, re.MULTILINE), title
    assert "model.layers.0–29.self_attn.q_proj ×30" in plain


def test_the_summary_of_convert_in_a_pipe(source, tmp_path):
    out = tmp_path / "out.safetensors"
    code, stdout, err = in_a_pipe("convert", source, "-o", out, "--quantize", "absmean")
    assert (code, stdout) == (0, f"{out}\n")
    lines = {line.split("  ")[0]: line for line in err.splitlines()}
    assert lines["detected"] == (
        "detected  30 ternary weights (a scale per row), 30 others, 31 tensors to keep"
    )
    assert lines["packed"] == "packed    30 packed losslessly, 30 quantized, 31 kept"
    assert "bit for bit; quantized with relative error 0." in lines["checked"]
    assert "smaller)" in lines["size"]
    assert lines["next"] == f"next      tpack verify {out} --against {source}"
    assert "\x1b" not in err


@pytest.mark.parametrize(
    "options",
    [(), ("--scale", "column"), ("--keep-dtype", "bf16"), ("--layout", "t5", "--exclude", "*q_*")],
)
def test_the_next_command_proves_what_was_done(options, source, tmp_path):
    out = tmp_path / "an out.safetensors"
    err = in_a_pipe("convert", source, "-o", out, "--quantize", "twn", *options)[2]
    (told,) = [line for line in err.splitlines() if line.startswith("next ")]
    code, shown, err = in_a_pipe(*shlex.split(told)[2:])
    assert (code, err) == (0, "")
    assert "equal twn of the source" in shown


def test_the_summary_says_so_when_nothing_became_smaller(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file({"fc.weight": make.trits(2, 2)}, path)
    err = in_a_pipe("convert", path)[2]
    assert re.search(r"^size .*\d+\.\d× larger\)$", err, re.MULTILINE)


def test_ascii_output_is_no_bug(packed):
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code, out, _ = in_a_pipe("inspect", packed, **environment)
    assert code == 0
    assert "30" in out


@pytest.mark.parametrize("command", ["inspect", "codegen", "diff"])
def test_another_encoding_of_the_output_is_no_bug(command, packed):
    paths = (packed, packed) if command == "diff" else (packed,)
    environment = {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tpack", command, *paths],
        capture_output=True, timeout=60, check=False, env=os.environ | environment,
    )  # fmt: skip
    told = (done.stdout + done.stderr).decode("latin-1")
    assert "a bug" not in told
    assert command != "inspect" or "layers.0\\u201329." in told


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "code"), [("verify", 0), ("inspect", 0), ("convert -f", 0), ("verify gone", 2)]
)
def test_a_closed_stream_is_no_bug(command, code, closed, packed, source, tmp_path):
    out = tmp_path / "out.safetensors"
    paths = f"{source} -o {out}" if "convert" in command else f"{packed}"
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m tpack {command} {paths} {closed}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == code
    if "convert" in command:  # nothing that was printed went into it
        assert in_a_pipe("verify", out)[0] == 0


# ---- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(shell):
    code, out, err = in_a_pipe(_TPACK_COMPLETE=f"{shell}_source")
    assert (code, err) == (0, "")
    assert "tpack" in out
    words = {"bash": ("tpack ", "1"), "zsh": ("tpack ", "1"), "fish": ("tpack ", "")}[shell]
    environment = {"_TPACK_COMPLETE": f"{shell}_complete", "COMP_WORDS": words[0]}
    code, out, _ = in_a_pipe(**environment, COMP_CWORD=words[1])
    assert code == 0
    assert all(command in out for command in COMMANDS)
    last = "--ht" if shell == "fish" else "2"
    code, out, _ = in_a_pipe(**environment | {"COMP_WORDS": "tpack inspect --ht"}, COMP_CWORD=last)
    assert code == 0
    assert "--html" in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_take_the_script(shell, tmp_path):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "complete"
    script.write_text(in_a_pipe(_TPACK_COMPLETE=f"{shell}_source")[1])
    checked = subprocess.run(
        [program, "-n", str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_completes_a_command(tmp_path):
    program = shutil.which("bash")
    if program is None:
        pytest.skip("bash is not installed")
    folder = os.path.dirname(sys.executable)  # noqa: PTH120
    done = subprocess.run(
        [program, "--norc", "-c", f"""
            PATH="{folder}:$PATH"
            eval "$(_TPACK_COMPLETE=bash_source tpack)"
            complete -p tpack
            COMP_WORDS=(tpack ins) COMP_CWORD=1
            _tpack_completion tpack
            echo "${{COMPREPLY[@]}}"
        """],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "inspect", done.stderr
