"""Checkpoints out to GGUF: the same bytes where they came from GGUF, else what llama.cpp reads."""

import json
import struct

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Type
from gguf_exports import TOKENIZER, contents, export, folder, packed, read, ternary
from gguf_files import container, values, write_model

import tpack
from tpack import codec
from tpack.cli.main import cli
from tpack.container import Checkpoint
from tpack.dialects import gguf_blocks
from tpack.errors import ExistsError, InputError, StorageError, UnsupportedError, UsageError
from tpack.exporting import gguf_metadata

# ---- GGUF → tpack → GGUF


@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize("architecture", ["llama", "bitnet", "bitnet-25", "qwen3"])
@pytest.mark.parametrize("kind", [Type.TQ1_0, Type.TQ2_0])
def test_a_gguf_file_comes_back_byte_for_byte(tmp_path, kind, architecture, layout):
    path = write_model(tmp_path / "a.gguf", values(), kind, architecture)
    tpack.convert(path, tmp_path / "a.safetensors", layout=layout)
    report = export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()
    assert report.output_bytes == path.stat().st_size
    assert {t.error for t in report.tensors} == {0.0}
    assert ["bitnet.cpp" in note for note in report.notes] == [True] * (architecture == "bitnet-25")


@pytest.mark.parametrize("alignment", [1, 8, 256])
def test_alignment_is_kept(tmp_path, alignment):
    path = write_model(
        tmp_path / "a.gguf", values(), extra=lambda w: w.add_custom_alignment(max(alignment, 8))
    )
    tpack.convert(path, tmp_path / "a.safetensors")
    export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


def test_zero_blocks_keep_their_scale(tmp_path):
    weights = values()
    weights["blk.0.ffn_up.weight"][:7] = 0  # whose scale gguf writes as 0
    path = write_model(tmp_path / "a.gguf", weights)
    tpack.convert(path, tmp_path / "a.safetensors")
    export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0", "q2_0"])
def test_from_one_type_to_another(tmp_path, kind):
    path = write_model(
        tmp_path / "a.gguf", values(), Type.TQ1_0, extra=lambda w: w.add_file_type(36)
    )
    tpack.convert(path, tmp_path / "a.safetensors")
    export(tmp_path / "a.safetensors", tmp_path / "b.gguf", type=kind)
    tpack.convert(tmp_path / "b.gguf", tmp_path / "b.safetensors")
    assert contents(tmp_path / "b.safetensors") == contents(tmp_path / "a.safetensors")
    with Checkpoint(tmp_path / "b.safetensors") as file:
        pairs = json.loads(file.metadata["gguf"])["metadata"]
    assert ["general.file_type", "uint32", {"tq1_0": 36, "tq2_0": 37, "q2_0": 41}[kind]] in pairs


@pytest.mark.parametrize(
    ("kind", "number"),
    [(gguf_blocks.PQ2_0, 142), (gguf_blocks.PQ2_0, 42), (gguf_blocks.PTQ1_0, 143)],
)
def test_blocks_of_128_go_out_as_q2_0(tmp_path, kind, number):
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (64, 384)).astype(np.int8)
    scales = rng.uniform(0.1, 1, (64, 3)).astype(np.float16)
    data = gguf_blocks.pack_blocks(kind, codec.pack(trits), scales).tobytes()
    (tmp_path / "a.gguf").write_bytes(container((), [("w", (64, 384), number, data)]))
    tpack.convert(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    report = export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert [t.type for t in report.tensors] == ["Q2_0"]
    tpack.convert(tmp_path / "b.gguf", tmp_path / "b.safetensors")
    assert contents(tmp_path / "b.safetensors") == contents(tmp_path / "a.safetensors")
    stored = (tmp_path / "b.gguf").read_bytes()[-64 * 384 // 64 * 18 :]
    assert np.frombuffer(stored[:2], np.float16)[0] == scales[0, 0]
    assert stored[2:18] == codec.pack(trits[:1, :64]).tobytes()


def test_i2_s_rounds_its_scale_only_when_allowed(tmp_path):
    trits = np.random.default_rng(0).integers(-1, 2, (4, 256)).astype(np.int8)
    none = np.zeros((4, 2), np.float16)
    data = gguf_blocks.pack_blocks(gguf_blocks.I2_S, codec.pack(trits), none).tobytes()
    data += struct.pack("<f", 0.0123) + bytes(28)
    (tmp_path / "a.gguf").write_bytes(container((), [("w", (4, 256), 36, data)]))
    tpack.convert(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedError, match=r"scale 0\.0123.*relative error 1\.2e-04"):
        export(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    report = export(tmp_path / "a.safetensors", tmp_path / "b.gguf", allow_inexact=True)
    (tensor,) = report.tensors
    rounded = float(np.float16(0.0123))
    assert tensor.error == pytest.approx(abs(rounded - 0.0123) / 0.0123, rel=1e-3)
    assert np.array_equal(read(tmp_path / "b.gguf")["w"], trits * np.float32(rounded))


# ---- damaged and hostile checkpoints


def edited(path, edit):
    """Change the bytes of a checkpoint, of which the length stays."""
    data = path.read_bytes()
    changed = edit(data)
    assert len(changed) == len(data)
    path.write_bytes(changed)


def test_metadata_that_does_not_agree_with_its_digest(tmp_path):
    path = packed(tmp_path, ternary((4, 256), 0.5))
    edited(path, lambda data: data.replace(b'\\"bitnet\\"', b'\\"bitnot\\"'))
    with pytest.raises(InputError, match="does not agree with its digest"):
        export(path, tmp_path / "m.gguf")


def test_codes_that_are_illegal(tmp_path):
    path = packed(tmp_path, ternary((4, 256), 0.5))
    edited(path, lambda data: data[:-70] + b"\xff" + data[-69:])
    with pytest.raises(InputError, match="no valid code"):
        export(path, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_it_never_overwrites(tmp_path):
    path = packed(tmp_path, ternary((4, 256), 0.5))
    with pytest.raises(ExistsError):
        export(path, tmp_path / "one.gguf")
    export(path, tmp_path / "one.gguf", force=True)
    with pytest.raises(ExistsError, match="input itself"):
        export(path, path, force=True)
    with pytest.raises(StorageError):
        export(path, tmp_path / "nowhere" / "m.gguf")


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("coreml", {}),
        ("gguf", {"type": "q4_k"}),
        ("hf-bitnet", {"type": "tq2_0"}),
        ("hf-bitnet", {"allow_inexact": True}),
    ],
)
def test_options_that_do_not_fit(tmp_path, to, options):
    path = packed(tmp_path, ternary((4, 256), 0.5))
    with pytest.raises(UsageError):
        tpack.export(path, to, tmp_path / "m", **options)


# ---- commands


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_commands(tmp_path):
    source = write_model(tmp_path / "a.gguf", values())
    done = call("import", source, "-o", tmp_path / "a.safetensors")
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'a.safetensors'}\n"
    done = call("export", tmp_path / "a.safetensors", "--to", "gguf", "-o", tmp_path / "b.gguf")
    assert done.stdout == f"{tmp_path / 'b.gguf'}\n"
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()
    done = call(
        "export",
        tmp_path / "a.safetensors",
        "--to",
        "gguf",
        "--json",
        "-f",
        "-o",
        tmp_path / "b.gguf",
    )
    report = json.loads(done.stdout)
    assert report["output_bytes"] == source.stat().st_size
    assert report["tensors"][0] == {
        "name": "token_embd.weight",
        "source": "model.embed_tokens.weight",
        "type": "float16",
        "shape": [32, 256],
        "error": 0.0,
        "reason": "",
        "exact": True,
        "relative_error": 0.0,
    }


def test_the_command_shows_what_is_not_exact(tmp_path):
    path = packed(tmp_path, ternary((4, 256), np.float32(0.0123)))
    done = call("export", path, "--to", "gguf", "-o", tmp_path / "m.gguf")
    assert isinstance(done.exception, UnsupportedError)
    done = call("export", path, "--to", "gguf", "-o", tmp_path / "m.gguf", "--allow-inexact")
    assert "blk.0.ffn_up.weight" in done.stderr
    assert "relative error 1.2e-04" in done.stderr
    assert "token_embd.weight" not in done.stderr


@pytest.mark.parametrize("granularity", ["group:32", "group:64", "group:128"])
def test_finer_scales_that_are_equal_within_a_block(tmp_path, granularity):
    scales = np.repeat([[1, 2], [3, 4], [1, 1], [2, 2]], 256, 1)
    path = packed(tmp_path, ternary((4, 512), scales), scale=granularity)
    report = export(path, tmp_path / "m.gguf")
    assert report.tensors[0].type == "TQ2_0"
    assert np.array_equal(
        read(tmp_path / "m.gguf")["blk.0.ffn_up.weight"], ternary((4, 512), scales)
    )


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"metadata":[1],"tensors":[]}', '{"metadata":[],"tensors":[["a","b",1]]}'],
)
def test_carried_metadata_that_is_malformed(text):
    with pytest.raises(InputError, match="malformed GGUF metadata"):
        gguf_metadata._from_gguf(text)


def test_a_chat_template_in_a_file_of_its_own(tmp_path):
    path = folder(tmp_path, tokenizer__json=TOKENIZER)
    (path / "chat_template.jinja").write_text("{{ ß }}")
    export(path, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "{{ ß }}"
