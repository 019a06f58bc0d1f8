"""Tokens as text: as transformers reads them, in whole characters, piece by piece."""

import json
import random

import pytest
from small_tokenizers import KINDS, byte_fallback, byte_level, word_piece, words
from tokenizers import Tokenizer

from tpack.errors import InputError, UsageError
from tpack.running.tokenizer import TextStream, TextTokenizer, open_tokenizer

PROMPTS = ("The test", "  two  spaces ", "é 你好 😀", "<s>is</s> it", "don't stop, it 's", "😀")


def write(folder, tokenizer, **config):
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_pieces_of_a_stream_are_the_text_of_all_tokens(kind):
    inner = kind()
    tokenizer, rng = TextTokenizer(inner), random.Random(0)
    count = inner.get_vocab_size()
    for number in range(300):
        prompt = tokenizer.encode(PROMPTS[number % len(PROMPTS)])
        # half of them random, which is seldom valid UTF-8; half of them text
        new = [rng.randrange(count + 3) for _ in range(rng.randrange(25))]
        if number % 2:
            new = inner.encode(" 你é😀 and 好😀 rest", add_special_tokens=False).ids * 2
        stream = TextStream(tokenizer, prompt)
        pieces = [*map(stream.push, new), stream.finish()]
        start, whole = (inner.decode(ids) for ids in (prompt, prompt + new))
        text = whole[len(start) :] if whole.startswith(start) else inner.decode(new)
        assert "".join(pieces) == stream.text == text
        assert stream.exact
        if number % 2 and not text.count("\ufffd"):
            assert not any("\ufffd" in piece for piece in pieces)


def test_text_does_not_wait_for_the_end():
    tokenizer = TextTokenizer(byte_level())
    stream = TextStream(tokenizer, tokenizer.encode("a"))
    pieces = [stream.push(token) for token in tokenizer.encode("é😀b")]
    assert [piece for piece in pieces if piece] == ["é", "😀", "b"]


def test_bytes_that_are_no_character_are_not_shown_as_one_first():
    tokenizer = TextTokenizer(byte_fallback())
    number = byte_fallback().token_to_id
    stream = TextStream(tokenizer, [1])
    new = [number("<0xF0>"), number("<0x9F>"), number("<0x98>"), number("<0x80>")]
    assert [stream.push(token) for token in new] == [""] * 4
    assert stream.push(number("<0xFF>")) == ""
    assert stream.finish() == "\ufffd" * 5


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_prompts_are_read_as_transformers_reads_them(kind, settings, tmp_path):
    from transformers import AutoTokenizer

    texts = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | texts | settings
    theirs = AutoTokenizer.from_pretrained(write(tmp_path, kind(), **config))
    ours = open_tokenizer(tmp_path)
    for text in PROMPTS:
        ids = ours.encode(text)
        assert ids == theirs(text).input_ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_tokens_that_only_the_config_calls_special_are_not_shown(tmp_path):
    from transformers import AutoTokenizer

    inner = words()
    write(
        tmp_path,
        inner,
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="stop",
        bos_token={"__type": "AddedToken", "content": "one"},
    )
    ids = [inner.token_to_id(text) for text in ("one", "two", "stop")]
    found = open_tokenizer(tmp_path)
    assert inner.decode(ids) == "one two stop"
    assert found.decode(ids) == "two"
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.decode(ids, skip_special_tokens=True) == "two"


def test_lengths_that_a_tokenizer_was_trained_with_are_not_kept():
    inner = word_piece()
    inner.enable_truncation(4)
    inner.enable_padding(length=40)
    assert len(TextTokenizer(inner).encode("The test is a test")) == 5


def test_a_token_is_shown_as_it_reads():
    inner = byte_level()
    found = TextTokenizer(inner)
    before = found.encode("The")
    assert found.show(before, found.encode(" é")[0]) in {" ", "Ġ", " é"}
    assert found.show(before, inner.token_to_id("Ġ")) == " "
    assert found.show(before, 1) == "<s>"
    assert found.show(before, 9999) == ""


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
        '{"model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 7}}',
        "\x00",
    ],
)
def test_a_malformed_tokenizer_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"is not a file of the tokenizers library: .*source"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "\x00"])
def test_malformed_configs_are_refused(content, tmp_path):
    write(tmp_path, words())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer_config\.json: is "):
        open_tokenizer(tmp_path)


def test_what_a_tokenizer_cannot_take_is_an_error(tmp_path):
    inner = json.loads(words().to_str())
    inner["model"]["unk_token"] = "nowhere"
    found = TextTokenizer(Tokenizer.from_str(json.dumps(inner)))
    with pytest.raises(InputError, match="cannot take the prompt: the tokenizers package says"):
        found.encode("unheard")
    with pytest.raises(UsageError, match="is not valid UTF-8 at character 1"):
        found.encode("a\udce9")


@pytest.mark.parametrize(
    "content",
    [
        '{"bos_token": 1}',
        '{"model_max_length": 1000000000000000019884624838656}',
        '{"extra_special_tokens": {"a": "<x>"}}',
        '{"extra_special_tokens": 3, "added_tokens_decoder": []}',
    ],
)
def test_odd_configs_are_read(content, tmp_path):
    write(tmp_path, words())
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert open_tokenizer(tmp_path).encode("one")
