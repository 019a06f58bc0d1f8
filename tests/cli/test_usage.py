"""Commands that are wrong: one line says what is wrong and what to do, with what was meant."""

import json
import signal

import click
import pytest
from click import exceptions

from tpack.cli.main import COMMANDS, cli, main
from tpack.cli.usage import Command, explain

ALL = "convert, verify, inspect, diff, codegen, run, unpack, export, import, demo or bench"
EXPORT = "For example: tpack export model.tpack --to gguf -o model.gguf. See 'tpack export --help'."
WRONG = {
    "convrt": f"command 'convrt' is unknown, expected {ALL}. Did you mean convert?",
    "help unpak": f"command 'unpak' is unknown, expected {ALL}. Did you mean unpack?",
    "explode": f"command 'explode' is unknown, expected {ALL}.",
    "--": "missing command. See 'tpack --help'.",
    "--versoin": "option --versoin is unknown. Did you mean --version? See 'tpack --help'.",
    "convert": (
        "SOURCE is missing. For example: tpack convert model.pt --exact. "
        "See 'tpack convert --help'."
    ),
    "convert a.pt b.pt": (
        "'b.pt' is one argument too many: tpack convert takes SOURCE. Put a path with spaces in "
        "quotes."
    ),
    "bench now": (
        "'now' is one argument too many: tpack bench takes none. Put a path with spaces in quotes."
    ),
    "convert a.pt --exat": (
        "option --exat is unknown. Did you mean --exact? See 'tpack convert --help'."
    ),
    "convert a.pt -z": "option -z is unknown. See 'tpack convert --help'.",
    "convert a.pt --exact=3": "--exact takes no value. See 'tpack convert --help'.",
    "convert a.pt --quantize": (
        "--quantize has no value, expected auto, absmean, twn or mse. See 'tpack convert --help'."
    ),
    "convert a.pt --quantize absmaen": (
        "--quantize 'absmaen' is unknown, expected auto, absmean, twn or mse. Did you mean absmean?"
    ),
    "convert a.pt --scale rows": (
        "--scale 'rows' is unknown, expected auto, tensor, row, column or group:N. "
        "Did you mean row?"
    ),
    "convert a.pt --keep-dtype f64": "--keep-dtype 'f64' is unknown, expected f32, f16 or bf16.",
    "export a.tpack -o x": f"--to is missing, expected hf-bitnet, gguf or onnx. {EXPORT}",
    "export a.tpack --to gguf": f"--output is missing, expected PATH. {EXPORT}",
    "export a.tpack --to gguf -o": "-o has no value, expected PATH. See 'tpack export --help'.",
    "export a.tpack --to ggfu -o x": (
        "--to 'ggfu' is unknown, expected hf-bitnet, gguf or onnx. Did you mean gguf?"
    ),
    "export a.tpack --to gguf -o x --type tq2": (
        "--type 'tq2' is unknown, expected auto, tq2_0, tq1_0 or q2_0. Did you mean tq2_0?"
    ),
    "export a.tpack --to hf-bitnet -o x --type tq2_0": (
        "--type is not an option of hf-bitnet, which has none."
    ),
    "bench --threads two": "--threads is 'two', expected a whole number from 1 to 4096.",
    "bench --repeats 0": "--repeats is '0', expected a whole number from 3 to 1001.",
    "verify s3://bucket/model": (
        "'s3://bucket/model' is an address, expected a path: only convert reads from s3://. Copy "
        "it here first."
    ),
}


@pytest.fixture
def run(capsys):
    """Run a command in this process: code, stdout, stderr."""
    old = signal.getsignal(signal.SIGTERM)

    def call(text):
        with pytest.raises(SystemExit) as ended:
            main(text.split())
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    yield call
    signal.signal(signal.SIGTERM, old)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_one_line(run, text):
    assert run(text) == (2, "", f"tpack: {WRONG[text]}\n")


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_json_if_that_is_asked_for(run, text):
    if text in ("--", "help unpak") or text.endswith((" -o", " --quantize")):
        return  # the option would be a value, or nothing
    code, out, err = run(f"{text} --json")
    error = {"code": 2, "kind": "usage", "message": WRONG[text], "tensor": None}
    assert (code, json.loads(out), err) == (2, {"error": error}, "")


def test_help_is_a_command_too(run):
    assert run("help") == run("--help")
    assert run("help convert") == run("convert --help")


def test_every_command_explains_itself():
    context = click.Context(cli)
    assert all(isinstance(cli.get_command(context, name), Command) for name in COMMANDS)


def raised(kind):
    """An error of a class of click, as a command may raise it."""
    command = click.Command("call", params=[click.Option(["--to"], type=click.Choice(["a", "b"]))])
    context = click.Context(command, info_name="call")
    given = {
        "ClickException": ("Went wrong:\n\tso it did",),
        "NoSuchOption": ("--ot", None, ["--to"], context),
        "NoSuchCommand": ("ot", None, ["to"], context),
        "BadOptionUsage": ("--to", "Option '--to' requires an argument.", context),
        "MissingParameter": (None, context, command.params[0]),
        "BadParameter": ("'x'\nis bad.", context, command.params[0]),
        "NoArgsIsHelpError": (context,),
        "FileError": ("a.txt", "is odd"),
    }
    return kind(*given.get(kind.__name__, ("Went wrong.", context)))


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(exceptions).values()
        if isinstance(kind, type) and issubclass(kind, click.ClickException)
    ],
)
def test_every_error_of_click_is_one_line(kind):
    text = explain(raised(kind))
    assert "\n" not in text
    assert "\t" not in text
    assert text.endswith((".", "?"))
    assert not text.startswith(("Error", "Invalid", "No such", "Missing"))
    if kind is click.MissingParameter:
        assert text == "--to is missing, expected a or b. See 'call --help'."


@pytest.mark.parametrize(
    ("line", "option"),
    [
        *((f"{line} -o", "--output") for line in ("convert x", "unpack x", "codegen x", "demo")),
        ("export x --to gguf -o", "--output"),
        ("inspect x --html", "--html"),
        ("diff x x --html", "--html"),
    ],
)
def test_an_empty_output_is_wrong_use(line, option, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").touch()
    with pytest.raises(SystemExit) as ended:
        main([*line.split(), ""])
    assert ended.value.code == 2
    assert f"{option} is empty, expected a path" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
