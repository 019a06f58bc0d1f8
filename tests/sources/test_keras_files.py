"""Keras writes a file, and every tensor is, bit for bit, what the model has under that name."""

import json
import os
import zipfile

import h5py
import numpy as np
import pytest
from opened_files import values

import tpack
from tpack.errors import InputError, UnsupportedError
from tpack.sources import open_source
from tpack.sources.keras_files.variables import VARIABLES, Layer

os.environ.setdefault("KERAS_BACKEND", "torch")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


def attribute(thing, name):
    """What a layer has under a part of a name."""
    if isinstance(thing, (list, tuple)):
        return next(one for one in thing if one.name == name)
    if isinstance(thing, dict):
        return next(one for one in thing.values() if one.name == name)
    if name in [one.name for one in getattr(thing, "layers", [])]:
        return thing.get_layer(name)
    if name.startswith("vars_"):
        own = thing._trainable_variables + thing._non_trainable_variables
        return own[int(name.removeprefix("vars_"))]
    return getattr(thing, name)


def array(keras, variable):
    return keras.ops.convert_to_numpy(getattr(variable, "value", variable))


def of_model(keras, model, name):
    thing = model
    for part in name.split("."):
        thing = attribute(thing, part)
    return array(keras, thing)


def check_equal(keras, model, path):
    """Compare every tensor with the variable of its name; return the source's notes."""
    with open_source(path) as source:
        found = values(source)
        for name, stored in found.items():
            wanted = of_model(keras, model, name)
            assert stored.tobytes() == wanted.tobytes(), name
            assert source.tensors[name].shape == wanted.shape
        assert sum(one.size for one in found.values()) == model.count_params()
        return source.notes, list(found)


def big_model(keras):
    """A model with layers of many kinds, trained for a step."""
    layers = keras.layers

    @keras.saving.register_keras_serializable(package="tests")
    class Block(layers.Layer):
        def __init__(self, **more):
            super().__init__(**more)
            self.inner = [layers.Dense(4, name="first"), layers.Dense(4, name="second")]
            self.by_name = {"a": layers.Dense(4, name="third", use_bias=False)}
            self.one = layers.Dense(4)

        def build(self, shape):
            for layer in (*self.inner, *self.by_name.values(), self.one):
                layer.build(shape)
            self.own = self.add_weight(shape=(4, 4), name="own")

        def call(self, x):
            for layer in (*self.inner, *self.by_name.values(), self.one):
                x = layer(x)
            return x @ self.own

    shared = layers.Dense(4, name="shared")
    x = start = keras.Input((8, 4))
    x = layers.Conv1D(4, 3, padding="same", name="conv")(x)
    x = shared(shared(x))
    x = layers.BatchNormalization(scale=False, name="no_scale")(x)
    x = layers.BatchNormalization(center=False, name="no_center")(x)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = Block(name="block")(x)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True), name="both")(x)
    nested = keras.Sequential(
        [layers.Dense(6, name="inside", use_bias=False), layers.PReLU(name="act")], name="nested"
    )
    x = layers.TimeDistributed(layers.Dense(4, name="step"), name="steps")(nested(x))
    x = layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="einsum")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depth")(x)
    x = layers.SeparableConv2D(4, 3, padding="same", name="separable")(x)
    x = layers.Reshape((-1, 4))(x)
    x = layers.GRU(4, name="gru")(x)
    model = keras.Model(start, layers.Dense(2, name="head")(x), name="whole")
    model.compile("adam", "mse")
    model.fit(np.ones((2, 8, 4)), np.ones((2, 2)), verbose=0)
    return model


def test_a_model_of_many_layers(keras, tmp_path):
    model = big_model(keras)
    model.save(tmp_path / "m.keras")
    notes, names = check_equal(keras, model, tmp_path / "m.keras")
    assert notes == [
        "variables of block.one, block are numbered: the file does not say what they are called",
        "left out optimizer: state of the training",
    ]
    some = (
        "conv.kernel no_scale.beta no_scale.moving_mean no_center.gamma "
        "attention.query_dense.kernel "
        "both.forward_layer.cell.kernel block.inner.second.kernel block.one.vars_0 block.vars_0 "
        "nested.inside.kernel steps.layer.bias depth.kernel separable.pointwise_kernel "
        "gru.cell.recurrent_kernel head.kernel"
    )
    assert set(some.split()) <= set(names)
    model.save_weights(tmp_path / "m.weights.h5")
    _, alone = check_equal(keras, model, tmp_path / "m.weights.h5")
    assert "conv.kernel" in alone
    assert "no_scale.vars_2" in alone
    model.save_weights(tmp_path / "s.weights.json", max_shard_size=1e-6)
    assert len(list(tmp_path.glob("s_*.weights.h5"))) > 2
    assert check_equal(keras, model, tmp_path / "s.weights.json")[1].sort() == alone.sort()


def test_the_older_format_has_names(keras, tmp_path):
    model = big_model(keras)
    model.save(tmp_path / "m.h5")
    with open_source(tmp_path / "m.h5") as source:
        found = values(source)
        wanted = {one.path.replace("/", "."): array(keras, one) for one in model.weights}
        assert {name.removeprefix("whole.") for name in wanted} == set(found)
        for name, one in wanted.items():
            assert found[name.removeprefix("whole.")].tobytes() == one.tobytes()
        assert source.notes == ["left out optimizer_weights: state of the training"]


LAYERS = {
    "Dense": ((3,), {}, (2, 4)),
    "Embedding": ((5, 3), {}, (2,)),
    "ReversibleEmbedding": ((5, 3), {"tie_weights": False}, (2,)),
    "Conv2D": ((2, 3), {}, (1, 8, 8, 4)),
    "Conv2DTranspose": ((2, 3), {}, (1, 8, 8, 4)),
    "Conv3D": ((2, 3), {"use_bias": False}, (1, 8, 8, 8, 4)),
    "DepthwiseConv1D": ((3,), {}, (1, 8, 4)),
    "SeparableConv1D": ((2, 3), {}, (1, 8, 4)),
    "BatchNormalization": ((), {}, (1, 4)),
    "LayerNormalization": ((), {"center": False}, (1, 4)),
    "GroupNormalization": ((2,), {}, (1, 4)),
    "RMSNormalization": ((), {}, (1, 4)),
    "Normalization": ((), {}, (1, 4)),
    "PReLU": ((), {}, (1, 4)),
    "LSTMCell": ((3,), {}, (1, 4)),
    "GRUCell": ((3,), {"use_bias": False}, (1, 4)),
    "SimpleRNNCell": ((3,), {}, (1, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_variables_have_the_order_of_keras(keras, name):
    from tpack.sources.keras_files.layers import layer_of

    args, options, shape = LAYERS[name]
    layer = getattr(keras.layers, name)(*args, **options)
    layer.build(shape)
    own = layer._trainable_variables + layer._non_trainable_variables
    known = layer_of(keras.saving.serialize_keras_object(layer))
    assert [row.name for row in known.variables(len(own))] == [one.name for one in own]


def test_what_only_a_config_tells_is_not_guessed():
    assert Layer("batch_normalization").variables(3) is None
    assert [row.name for row in Layer("batch_normalization").variables(4)] == [
        row.name for row in VARIABLES["batch_normalization"]
    ]
    assert Layer("my_layer").variables(2) is None


# ---- ternary weights


def trits(*shape):
    found = np.random.default_rng(len(shape)).integers(-1, 2, shape).astype(np.float32)
    found.reshape(-1, shape[-1])[:2] = [[1], [-1]]
    return found


def scales(count):
    return np.random.default_rng(count).random(count, dtype=np.float32) + 0.5


def ternary_model(keras, dtype="float32"):
    layers = keras.layers
    start = keras.Input((16, 16, 3))
    x = layers.Conv2D(32, 3, name="conv")(start)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(start, layers.Dense(33, name="dense")(x))
    model.get_layer("conv").kernel.assign(trits(3, 3, 3, 32) * scales(32))
    model.get_layer("depth").kernel.assign(trits(3, 3, 32, 2) * scales(64).reshape(32, 2))
    model.get_layer("dense").kernel.assign(trits(64, 33) * scales(33))
    return model


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_a_scale_for_each_output_is_exact(keras, tmp_path, suffix):
    model = ternary_model(keras)
    path, out = tmp_path / f"m{suffix}", tmp_path / "m.safetensors"
    (model.save_weights if suffix == ".weights.h5" else model.save)(path)
    report = tpack.convert(path, out, exact=True)
    packed = {t.name: t.scale for t in report.tensors if t.action == "packed"}
    assert packed == dict.fromkeys(("conv.kernel", "depth.kernel", "dense.kernel"), "column")
    assert tpack.verify(out, path).ok
    for name, tensor in tpack.unpack(out).items():
        assert tensor.numpy().tobytes() == of_model(keras, model, name).tobytes()


def test_bfloat16_is_stored_as_bytes(keras, tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, dtype="bfloat16", name="d")], name="m"
    )
    model.save(tmp_path / "m.keras")
    with open_source(tmp_path / "m.keras") as source:
        assert source.tensors["d.kernel"].dtype == "bfloat16"
    check_equal(keras, model, tmp_path / "m.keras")


def quantized_model(keras, mode):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Embedding(11, 16, name="table"),
            layers.Dense(33, name="dense"),
            layers.EinsumDense("abc,cde->abde", (None, 3, 5), bias_axes="de", name="einsum"),
        ]
    )
    model.get_layer("table").embeddings.assign(trits(11, 16) * scales(11)[:, None])
    model.get_layer("dense").kernel.assign(trits(16, 33) * scales(33))
    model.get_layer("einsum").kernel.assign(trits(33, 3, 5) * scales(15).reshape(3, 5))
    model.quantize(mode)
    return model


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_int8_codes_are_divided_by_their_scale(keras, tmp_path, suffix):
    model = quantized_model(keras, "int8")
    path, out = tmp_path / f"m{suffix}", tmp_path / "m.safetensors"
    model.save(path)
    report = tpack.convert(path, out, include=["*"], exclude=["*bias"], exact=True)
    assert {t.name: t.scale for t in report.tensors if t.action == "packed"} == {
        "table.embeddings": "row", "dense.kernel": "column", "einsum.kernel": "column"
    }  # fmt: skip
    assert tpack.verify(out, path).ok
    found = tpack.unpack(out)
    for layer, name in (("table", "embeddings"), ("dense", "kernel"), ("einsum", "kernel")):
        codes = array(keras, getattr(model.get_layer(layer), f"_{name}")).astype(np.float32)
        scale = array(keras, getattr(model.get_layer(layer), f"{name}_scale"))
        scale = scale[:, None] if layer == "table" else scale.reshape(codes.shape[1:])
        np.testing.assert_array_equal(found[f"{layer}.{name}"].numpy(), codes / scale)


def test_codes_that_are_not_ternary_keep_their_scales(keras, tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(9, name="a"), layers.Dense(33, name="b")], name="m"
    )
    model.get_layer("b").kernel.assign(trits(9, 33) * scales(33))
    model.quantize("int8")
    model.save(tmp_path / "m.keras")
    out = tmp_path / "m.safetensors"
    report = tpack.convert(tmp_path / "m.keras", out)
    assert [t.name for t in report.tensors if t.action == "packed"] == ["b.kernel"]
    assert "1 weight is packed by Keras's int8, and kept bit for bit" in report.warnings[0]
    found = tpack.unpack(out)
    for name in ("_kernel", "kernel_scale"):
        stored = array(keras, getattr(model.get_layer("a"), name))
        np.testing.assert_array_equal(found[f"a.{name.lstrip('_')}"].numpy(), stored)
    model.save_weights(tmp_path / "m.weights.h5")
    with open_source(tmp_path / "m.weights.h5") as source:
        assert set(source.floats) == set(source.tensors)
        assert "2 layers quantized by Keras kept as they are" in source.warnings[0]


def test_int4_with_a_scale_for_each_output(keras, tmp_path):
    from keras.quantizers import Int4QuantizationConfig

    layers = keras.layers
    model = keras.Sequential([keras.Input((16,)), layers.Dense(33, name="dense")], name="m")
    model.get_layer("dense").kernel.assign(trits(16, 33) * scales(33))
    model.quantize("int4", config=Int4QuantizationConfig(block_size=None))
    model.save(tmp_path / "m.keras")
    tpack.convert(tmp_path / "m.keras", tmp_path / "m.safetensors", exact=True)
    dense = model.get_layer("dense")
    codes = keras.quantizers.unpack_int4(dense._kernel, 33, axis=-1)
    wanted = array(keras, codes).astype(np.float32) / array(keras, dense.kernel_scale)
    found = tpack.unpack(tmp_path / "m.safetensors")["dense.kernel"].numpy()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", ["int4", "float8"])
def test_other_modes_keep_every_value(keras, tmp_path, mode):
    model = quantized_model(keras, mode)
    model.save(tmp_path / "m.keras")
    with open_source(tmp_path / "m.keras") as source:
        found = values(source)
        kernel = found["dense.kernel"]
    np.testing.assert_array_equal(kernel, array(keras, model.get_layer("dense")._kernel))


# ---- layers that round their weights as they run


def with_quantizer(path, package, described):
    """A file as Keras 2 writes it, whose config says how a layer rounds its kernel."""
    config = {
        "class_name": "Sequential",
        "config": {"layers": [{"class_name": package, "config": described | {"name": "q"}}]},
    }
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"q", b"p"]
        for name in "qp":
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
            layer[f"{name}/kernel:0"] = trits(64, 32)
            layer[f"{name}/bias:0"] = np.zeros(32, np.float32)


@pytest.mark.parametrize(
    ("package", "quantizer", "label"),
    [
        (
            "QuantDense",
            {
                "class_name": "SteTern",
                "config": {"threshold_value": 0.05, "ternary_weight_networks": True},
            },
            "SteTern",
        ),
        ("QuantDense", {"class_name": "Larq>SteSign", "config": {}}, "SteSign"),
        ("QuantDense", "ste_tern", "ste_tern"),
        ("QDense", {"class_name": "ternary", "config": {"alpha": 1}}, "ternary"),
    ],
)
def test_latent_weights_are_kept_and_their_quantizer_is_named(tmp_path, package, quantizer, label):
    with_quantizer(tmp_path / "m.h5", package, {"kernel_quantizer": quantizer})
    report = tpack.convert(tmp_path / "m.h5", tmp_path / "m.safetensors")
    assert [t.name for t in report.tensors if t.action == "packed"] == ["p.kernel"]
    assert report.warnings[0].startswith(
        f"1 weight kept as floats, though the layer rounds them by {label} as it runs: q.kernel."
    )


def test_larqs_threshold_is_applied_as_larq_does(tmp_path):
    """Larq 0.14.0 rounds these so; and 2 million others as the same formula in numpy does."""
    quantizer = {"threshold_value": 0.05, "ternary_weight_networks": False}
    described = {"kernel_quantizer": {"class_name": "SteTern", "config": quantizer}}
    with_quantizer(tmp_path / "m.h5", "QuantDense", described)
    limit = np.float32(0.05)
    below, above = np.nextafter(limit, np.float32(0)), np.nextafter(limit, np.float32(1))
    with h5py.File(tmp_path / "m.h5", "a") as file:
        edge = [limit, -limit, below, above, 0.049, 0, 0.1, -0.1]
        file["model_weights/q/q/kernel:0"][0, :8] = edge
    report = tpack.convert(tmp_path / "m.h5", tmp_path / "m.safetensors", exact=True)
    assert (
        "rounded to -1, 0 and 1 by SteTern with threshold 0.05, as the layer does when it runs: "
        "q.kernel" in report.notes
    )
    found = tpack.unpack(tmp_path / "m.safetensors")["q.kernel"]
    assert found[0, :8].tolist() == [1, -1, 0, 1, 0, 0, 1, -1]
    np.testing.assert_array_equal(found[1:], trits(64, 32)[1:])


def test_a_layer_of_larq_without_a_config_is_not_rounded(tmp_path):
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/quant_dense/vars/0"] = np.ones((8, 8), np.float32) / 3
        file["layers/dense/vars/0"] = trits(64, 32)
    report = tpack.convert(tmp_path / "m.weights.h5", tmp_path / "m.safetensors")
    assert [t.name for t in report.tensors if t.action == "packed"] == ["dense.kernel"]
    assert "by a quantizer that the file does not name as it runs" in report.warnings[0]


def test_a_layer_without_a_quantizer_has_weights(tmp_path):
    with_quantizer(tmp_path / "m.h5", "QuantDense", {"kernel_quantizer": None})
    report = tpack.convert(tmp_path / "m.h5", tmp_path / "m.safetensors")
    assert [t.name for t in report.tensors if t.action == "packed"] == ["q.kernel", "p.kernel"]


# ---- damage


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(keras, tmp_path, keep):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(256, name="d")])
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        data = archive.read("model.weights.h5")
    for name, whole in {"m.keras": (tmp_path / "m.keras").read_bytes(), "m.h5": data}.items():
        (tmp_path / name).write_bytes(whole[: int(len(whole) * keep)])
        with pytest.raises(InputError):
            open_source(tmp_path / name)


def test_a_keras_file_without_its_weights_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("model.weights.npz", b"")
        archive.writestr("config.json", b"{}")
    with pytest.raises(UnsupportedError, match=r"has no model\.weights\.h5"):
        open_source(tmp_path / "m.keras")


def test_compressed_archives_are_read_too(keras, tmp_path):
    model = ternary_model(keras)
    model.save(tmp_path / "m.keras")
    with (
        zipfile.ZipFile(tmp_path / "m.keras") as old,
        zipfile.ZipFile(tmp_path / "n.keras", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    check_equal(keras, model, tmp_path / "n.keras")
