"""Two models on one prompt: where they part, and by how much."""

import dataclasses
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from hf_folders import llama
from prompts import PROMPT
from safetensors.torch import load_file, save_file

from tpack import running
from tpack.errors import UnsupportedError
from tpack.running.models import open_model


@pytest.fixture(scope="module")
def other(plain, tmp_path_factory):
    """The plain folder with a head that is a little different."""
    folder = shutil.copytree(plain, tmp_path_factory.mktemp("other") / "other")
    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    head = state["lm_head.weight"]
    state["lm_head.weight"] = head + torch.randn(head.shape, generator=generator) * 0.004
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(folder, ids):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0]


def test_a_packed_model_writes_what_its_source_writes(whole, plain, expected):
    found = running.compare(whole, plain, PROMPT, max_new_tokens=40)
    assert (found.first, found.choices) == (None, None)
    assert list(found.tokens) == list(found.source_tokens) == expected[0]
    assert found.texts == (expected[1], expected[1])
    assert found.largest < 1e-5
    assert found.agreeing == found.positions == len(found.prompt_tokens) + 39
    assert found.divergence < 1e-9


def test_the_first_difference_and_the_statistics(whole, other, plain, expected):
    found = running.compare(whole, other, PROMPT, max_new_tokens=40)
    ids = [*found.prompt_tokens, *found.source_tokens[:-1]]
    ours, theirs = logits(plain, ids), logits(other, ids)
    first = next(i for i in range(40) if found.tokens[i] != found.source_tokens[i])
    assert found.first == first
    at = len(found.prompt_tokens) + first - 1
    one, two = found.choices
    assert (one.token, two.token) == (int(ours[at].argmax()), int(theirs[at].argmax()))
    assert one.lead == pytest.approx(float(ours[at, one.token] - ours[at, two.token]), abs=1e-5)
    assert two.lead == pytest.approx(float(theirs[at, two.token] - theirs[at, one.token]), abs=1e-5)
    apart = (ours - theirs).abs()
    assert found.mean == pytest.approx(float(apart.mean()), rel=1e-3)
    assert found.largest == pytest.approx(float(apart.max()), rel=1e-3)
    assert found.largest_before == pytest.approx(float(apart[: at + 1].max()), rel=1e-3)
    kl = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="none")
    assert found.divergence == pytest.approx(float(kl.sum(-1).mean()), rel=1e-3)
    assert found.largest_divergence == pytest.approx(float(kl.sum(-1).max()), rel=1e-3)
    assert found.agreeing == int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    assert found.spread == pytest.approx(float(theirs.std()), rel=1e-3)


def test_what_chose_a_token_is_told_also_where_decoding_rounds_otherwise(whole, plain, monkeypatch):
    def rounding(path):
        """The packed model prefers token 7 as it decodes, and not afterwards."""
        model = open_model(path)
        if path != whole:
            return model

        def forward(ids):
            logits = model.forward(ids).clone()
            logits[..., 7] = logits.amax(-1) + 0.25
            return logits

        return dataclasses.replace(model, forward=forward)

    monkeypatch.setattr("tpack.running.comparison.open_model", rounding)
    found = running.compare(whole, plain, PROMPT, max_new_tokens=5)
    ours, theirs = found.choices
    assert (found.first, ours.token, ours.lead) == (0, 7, pytest.approx(0.25, abs=1e-6))
    assert theirs.lead > 0
    assert found.largest < 1e-5


def test_the_command_says_both(run, whole, plain, other):
    arguments = ("run", whole, "--prompt", PROMPT, "--max-new-tokens", 12)
    code, out, err = run(*arguments, "--compare", plain)
    assert (code, err) == (0, "")
    assert f"12 new tokens, all equal to those of {plain}" in out
    code, out, _ = run(*arguments, "--compare", other)
    assert code == 0
    assert f"  {other}: token " in out
    found = json.loads(run(*arguments, "--compare", other, "--json")[1])
    assert not found["equal"]
    assert (
        found["first_difference"]["file"]["token"]
        == found["tokens"][found["first_difference"]["after"]]
    )


def test_other_vocabularies_are_refused(whole, tmp_path):
    llama(vocab_size=310).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"gives logits for 300 tokens, .* for 310"):
        running.compare(whole, tmp_path, [1, 2], max_new_tokens=2)
