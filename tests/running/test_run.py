"""A model writes: what transformers writes, by LayerDefs and in transformers."""

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from prompts import PROMPT
from safetensors.torch import load_file, save_file

import tpack
from tpack import running
from tpack.errors import InputError, LayerDefError, UnsupportedError, UsageError
from tpack.running.settings import check_task, read_settings


@pytest.mark.parametrize(
    ("form", "runs"), [("whole", "LayerDefs"), ("packed", None), ("plain", "transformers")]
)
def test_it_writes_what_transformers_writes(form, runs, request, expected):
    path, pieces = request.getfixturevalue(form), []
    report = running.run(path, PROMPT, max_new_tokens=40, say=pieces.append)
    assert (list(report.tokens), report.text) == expected
    assert "".join(pieces) == report.text
    assert runs is None or report.runs == runs
    assert (report.stopped, report.seed, report.notes) == ("length", None, ())
    assert report.speed > 0
    assert report.prompt_speed > 0


def test_the_command_prints_the_text_and_then_its_speed(run, whole, expected):
    code, out, err = run("run", whole, "--prompt", PROMPT, "--max-new-tokens", 40)
    assert (code, out) == (0, expected[1] + "\n")
    assert err.startswith("2 tokens read at ") or "tokens read at" in err
    assert ", 40 written at " in err
    assert run("run", whole, "--prompt", PROMPT, "--max-new-tokens", 40, "-q")[1:] == (out, "")


def test_json_is_one_document(run, whole, expected):
    code, out, err = run("run", whole, "--prompt", PROMPT, "--max-new-tokens", 40, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["prompt"], found["tokens"], found["text"]) == (PROMPT, *expected)
    assert found["tokens_per_second"] > 0
    assert found["stopped"] == "length"


def test_tokens_need_no_tokenizer(run, whole, tmp_path):
    alone = shutil.copy(whole, tmp_path)
    code, out, _ = run("run", alone, "--tokens", "5, 17,99", "--max-new-tokens", 5)
    model = tpack.load(whole)
    found = tpack.generate(model, [5, 17, 99], max_new_tokens=5)[0, 3:].tolist()
    assert (code, out) == (0, ",".join(map(str, found)) + "\n")
    code, _, err = run("run", alone, "--prompt", "a")
    assert code == 3
    assert f"{tmp_path}: has no tokenizer.json" in err


def test_a_prompt_from_stdin(run, whole, monkeypatch):
    def given(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return run("run", whole, "--prompt", "-", "--json", "--max-new-tokens", 1)

    assert json.loads(given(b"a b\n\n")[1])["prompt"] == "a b\n"
    assert json.loads(given("é".encode())[1])["prompt"] == "é"
    assert given(b"a\xff")[0] == 2


def test_a_seed_draws_the_same_again(whole):
    options = {"max_new_tokens": 12, "temperature": 5.0}
    first = running.run(whole, PROMPT, **options)
    assert running.run(whole, PROMPT, seed=first.seed, **options).tokens == first.tokens
    assert running.run(whole, PROMPT, **options).tokens != first.tokens
    greedy = running.run(whole, PROMPT, max_new_tokens=12)
    assert running.run(whole, PROMPT, top_k=1, **options).tokens == greedy.tokens


def test_a_text_ends_where_the_configs_say(copied, expected):
    third = expected[0][2]
    settings = {"eos_token_id": [298, third]}
    (copied / "generation_config.json").write_text(json.dumps(settings))
    report = running.run(copied, PROMPT, max_new_tokens=40)
    stop = expected[0].index(third) + 1
    assert (list(report.tokens), report.stopped) == (expected[0][:stop], "end")
    (copied / "generation_config.json").unlink()
    config = json.loads((copied / "config.json").read_text()) | {"eos_token_id": third}
    (copied / "config.json").write_text(json.dumps(config))
    assert running.run(copied, PROMPT).tokens == report.tokens


def test_it_stops_at_the_last_position(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 9}))
    report = running.run(copied, [1, 2, 3], max_new_tokens=40)
    assert (len(report.tokens), report.stopped) == (6, "positions")
    assert report.notes == (
        "the model takes 9 tokens by its config.json, prompt and text together",
    )
    with pytest.raises(UsageError, match="prompt has 9 tokens, expected fewer than 9"):
        running.run(copied, [1] * 9)


def test_a_prompt_that_the_tokenizer_ends_is_told(copied):
    (copied / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert "ends the prompt with token 9" in running.run(copied, [3, 9], max_new_tokens=1).notes[0]


# ---- refusals


def refused(error, path, prompt=PROMPT, **options):
    with pytest.raises(error) as caught:
        running.run(path, prompt, **options)
    return str(caught.value)


def test_what_cannot_be_run_is_refused(whole, packed, copied, tmp_path, monkeypatch):
    assert "missing" in refused(InputError, tmp_path / "gone")
    assert "neither packed by tpack nor a folder" in refused(InputError, tmp_path, [1])
    assert "has no tokens" in refused(UsageError, whole, "")
    assert "token -1" in refused(UsageError, whole, [-1])
    assert "has no token 300" in refused(InputError, whole, [300])
    assert "has no token 300" in refused(InputError, copied, [300])
    assert "temperature" in refused(UsageError, whole, top_k=3)
    names = tmp_path / "names.safetensors"
    tpack.convert({"up.weight": torch.ones(4, 4)}, names)
    assert "not the order of their calls" in refused(LayerDefError, names, [1])
    config = json.loads((copied / "config.json").read_text())
    for name in ("LlamaForSequenceClassification", "LlamaModel"):
        (copied / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
        assert f"is a {name}" in refused(UnsupportedError, copied)


def test_what_is_no_model_is_told_before_its_tokenizer(whole, plain, packed, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    assert "neither packed by tpack nor a folder" in refused(InputError, tmp_path / "m.gguf")
    found = refused(InputError, plain / "model.safetensors")
    assert "Give the folder that it lies in" in found
    with pytest.raises(InputError, match="gone: is missing, expected a model"):
        running.compare(whole, tmp_path / "gone", PROMPT)


def test_a_packed_file_beside_the_config_of_its_source_is_refused(copied):
    tpack.convert(copied / "model.safetensors", copied / "new.safetensors", capture=False)
    (copied / "new.safetensors").replace(copied / "model.safetensors")
    found = refused(InputError, copied)
    assert "beside a config.json that does not say so. Convert the whole folder" in found


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_told(name, copied, expected):
    (copied / name).write_text('{"chat_template": "{{ messages }}"}')
    report = running.run(copied, PROMPT, max_new_tokens=2)
    assert "has a chat template, which is not applied" in report.notes[0]
    assert list(report.tokens) == expected[0][:2]
    assert not running.run(copied, [3, 4], max_new_tokens=1).notes


def test_weights_that_are_missing_are_not_made_up(copied):
    state = load_file(copied / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    found = refused(InputError, copied)
    assert "has no model.layers.1.mlp.up_proj.weight" in found


def test_nan_is_refused(copied):
    state = load_file(copied / "model.safetensors")
    state["model.norm.weight"].fill_(float("nan"))
    save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    assert "gives NaN" in refused(InputError, copied)


def test_no_code_of_a_folder_runs(copied):
    config = json.loads((copied / "config.json").read_text())
    del config["model_type"]
    config["auto_map"] = {
        "AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"
    }  # fmt: skip
    config["model_type"] = "strange"
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "modeling.py").write_text(f"open({str(copied / 'canary')!r}, 'w')")
    assert "cannot be loaded by transformers" in refused(InputError, copied)
    assert not (copied / "canary").exists()


def test_a_root_that_has_another_task_is_refused():
    check_task("Decoder")
    check_task("GPT2LMHeadModel")
    with pytest.raises(UnsupportedError, match="is a BertForMaskedLM, expected a model that"):
        check_task("BertForMaskedLM")


@pytest.mark.parametrize(
    "content",
    ['{"eos_token_id": "x"}', '{"eos_token_id": [true]}', '{"max_position_embeddings": -1}'],
)
def test_odd_configs_are_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="expected a whole number"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "neither of --prompt and --tokens is given"),
        (["--prompt", "a", "--tokens", "1"], "both of --prompt and --tokens are given"),
        (["--tokens", "1,x"], "--tokens is '1,x', expected whole numbers"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature is 'nan', expected a number"),
        (["--prompt", "a", "--top-p", "2"], "--top-p is '2', expected a number from 0 to 1"),
        (["--prompt", "a", "--compare", "b", "--seed", "1"], "--compare takes the likeliest"),
        (["--prompt", "a", "--seed", "1"], "say how tokens are drawn"),
    ],
)  # fmt: skip
def test_wrong_options_are_explained(run, whole, arguments, told):
    code, _, err = run("run", whole, *arguments)
    assert code == 2
    assert told in err


# ---- terminals and signals

#: A command whose model writes what is given, and then waits.
FAKE = """
import sys, time, types
from tpack.cli.main import main

def run(path, prompt, *, say, **options):
    try:
        say(sys.argv[1].encode().decode("unicode_escape"))
        time.sleep(float(sys.argv[2]))
    except KeyboardInterrupt as error:
        error.add_note("7 tokens came before that.")
        raise
    raise SystemExit(0)

sys.modules["tpack.running"] = types.ModuleType("tpack.running")  # whose own imports torch
vars(sys.modules["tpack.running"]).update(run=run, compare=None)
main(["run", ".", "--prompt", "a"])
"""


def fake(text, wait, **options):
    return subprocess.Popen([sys.executable, "-c", FAKE, text, str(wait)], **options)


def test_a_terminal_is_not_driven_by_what_a_model_writes():
    ours, theirs = pty.openpty()
    with fake(r"a\x1b[2Jb\r\tc\n\u3000d\x07\u202e", 0, stdout=theirs) as process:
        process.wait(60)
    os.close(theirs)
    shown = os.read(ours, 4096).decode().replace("\r\n", "\n")
    os.close(ours)
    assert shown == "a\\x1b[2Jb\\r\tc\n\u3000d\\x07\\u202e\n"


def test_an_interrupted_text_stays():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with fake("so far", 30, **pipes) as process:
        assert process.stdout.read(6) == b"so far"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"\n")
    assert err.strip() == b"tpack: interrupted. 7 tokens came before that."


def test_an_interruption_says_how_many_tokens_came(whole):
    def say(piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        running.run(whole, PROMPT, say=say)
    assert caught.value.__notes__ == ["1 token came before that."]
