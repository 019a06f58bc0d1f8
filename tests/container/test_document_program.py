"""The program of a description: it names the tensors that the file stores."""

import hashlib
import json

import pytest
from descriptions import SHARD, described, parsed, refusal

from tpack.container.document import program_digest
from tpack.errors import LayerDefError
from tpack.layerdef import Identifier, LayerDef, Param, Program, Return

LAYER = LayerDef(
    "L",
    [
        Param("w", "TernaryTensor", [3, 10], scale="row"),
        Param("b", "Buffer", [5], dtype="int64"),
        Param("x", "Tensor"),
    ],
    [Return(Identifier("x"))],
)


def with_program(*params, **fields):
    layer = LAYER if not params else LayerDef("L", [*params, LAYER.params[2]], LAYER.body)
    return described(program=Program([layer], "L").to_dict(), **fields)


def test_a_program_stores_what_the_file_has():
    assert parsed(with_program())[0].program == Program([LAYER], "L")
    parsed(with_program(shard=SHARD))
    parsed(with_program(LAYER.params[0], shard=SHARD))  # checked once all shards are known


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3, 11]},
        {"shape": [3, 2, 5]},
        {"scale": "tensor"},
        {"layout": "t5"},
        {"dtype": "float16"},
        {"split": 0},
    ],
)
def test_a_program_with_another_weight(change):
    weight = Param(
        **{"name": "w", "param_type": "TernaryTensor", "shape": [3, 10], "scale": "row"} | change
    )
    with pytest.raises(LayerDefError, match="in the LayerDefs") as caught:
        parsed(with_program(weight, LAYER.params[1]))
    assert caught.value.tensor == "w"


@pytest.mark.parametrize(
    ("other", "tensor"),
    [
        (Param("b", "Buffer", [6], dtype="int64"), "b"),
        (Param("b", "Buffer", [5], dtype="int32"), "b"),
        (Param("w", "Buffer", [5], dtype="int64"), "w"),
        (Param("c", "Buffer", [5], dtype="int64"), "c"),
        (Param("b", "TernaryTensor", [5]), "b"),
        (Param("w_packed", "Buffer", [3, 3], dtype="uint8"), "w_packed"),
    ],
)
def test_a_program_with_another_tensor(other, tensor):
    params = [other] if other.name in ("w", "w_packed") else [LAYER.params[0], other]
    with pytest.raises(LayerDefError, match=r"is (not a \w+|\(.*\)) in the file") as caught:
        parsed(with_program(*params))
    assert caught.value.tensor == tensor


@pytest.mark.parametrize(("left_out", "name"), [(0, "w"), (1, "b")])
def test_a_program_that_leaves_a_tensor_out(left_out, name):
    params = [param for i, param in enumerate(LAYER.params[:2]) if i != left_out]
    assert refusal(with_program(*params)) == ("R13", name, "is in no LayerDef.")


def test_the_first_of_several_tensors_that_are_left_out_is_named():
    program = Program([LayerDef("L", [LAYER.params[2]], LAYER.body)], "L")
    found = refusal(described(program=program.to_dict()))
    assert found == ("R13", "b", "is in no LayerDef.")


def test_the_digest_of_a_program():
    program = Program([LAYER], "L")
    text = json.dumps(program.to_dict(), sort_keys=True, separators=(",", ":"))
    assert program_digest(program) == hashlib.sha256(text.encode()).hexdigest()
    assert program_digest(None) == hashlib.sha256(b"null").hexdigest()
