"""The two tables of ops are all that is known of one: a row in each adds an op everywhere."""

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from captured_functions import Function
from running import from_text, readings

import tpack
from tpack.capturing import capture
from tpack.capturing.aten import ATEN, PSEUDO, parse_row
from tpack.capturing.aten_rows.shared import KEEPS
from tpack.capturing.graph import CACHE, CONSTANT, INPUT, ITEM, STORED
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import BinaryOp, FunctionCall, Identifier, LayerDef, Literal, Param, Return
from tpack.layerdef.ops import BINARY, OPS, PACKED_OPS, UNARY, parse_op
from tpack.readback import read_program

X = torch.randn((3, 4, 6), generator=torch.Generator().manual_seed(0))

# ---- an op that no release has

NEW = {
    "hardshrink.default": (
        ("bent", "x:tensor *slope@lambd:float=0.5", "F.hardshrink", "0 near 0"),
        ("bent", "self>x lambd>slope", "curve"),
        lambda m, x: (F.hardshrink(x), F.hardshrink(x, 0.25)),
        "curve2 = F.hardshrink(x, lambd=0.25)",
    ),
    "kthvalue.default": (
        ("kth", "x:tensor k:int dim:int=-1", "torch.kthvalue", "a value, its index", "several"),
        ("kth", "self>x k dim keepdim=False"),
        lambda m, x: x - torch.kthvalue(x, 2, 1)[0].unsqueeze(1),
        "hidden, _ = torch.kthvalue(x, 2, 1)",
    ),
    "diagonal.default": (
        ("diagonal", "x:tensor *dim1:int=0 *dim2:int=1", ".diagonal", "x where two dims agree"),
        ("diagonal", "self>x offset=0 dim1 dim2", KEEPS),
        lambda m, x: (x @ m.w).diagonal(dim1=-2, dim2=-1) * 2,
        "(x @ self.w).diagonal(dim1=-2, dim2=-1) * 2",
    ),
    "tril_indices.default": (
        ("corner", "rows@row:int columns@col:int *device:device=None", "torch.tril_indices", ""),
        ("corner", "row>rows col>columns offset=0 dtype~ layout~ device~ pin_memory~"),
        lambda m, x: x.sum() + torch.tril_indices(2, 2),
        "torch.tril_indices(2, 2, device=x.device)",
    ),
}


@pytest.mark.parametrize("overload", NEW)
def test_two_rows_add_an_op_everywhere(monkeypatch, overload):
    row, aten, function, source = NEW[overload]
    monkeypatch.setitem(OPS, row[0], parse_op(*row))
    monkeypatch.setitem(ATEN, overload, parse_row(*aten))
    module = Function(function).eval()
    program = capture(module, (X,))
    texts = [generate_pytorch_code(program, standalone=alone) for alone in (False, True)]
    again = [read_program(from_text(text, program.root)) for text in texts]
    for one in (program, *again):
        assert source in generate_pytorch_code(one)
        for reading in readings(one).values():  # build, source and standalone source
            reading.load_state_dict(module.state_dict(), strict=True)
            torch.testing.assert_close(reading(X), module(X), rtol=1e-6, atol=1e-6)


def test_a_composite_is_a_row_too(monkeypatch):
    cube = BinaryOp("**", Identifier("x"), Identifier("power"))
    monkeypatch.setitem(OPS, "cube", parse_op("cube", "x:tensor power:int=3", cube, "x³"))
    body = [Return(FunctionCall("cube", [Identifier("x")]))]
    layer = LayerDef("L", [Param("x", "Tensor")], body)
    for module in readings(layer).values():
        torch.testing.assert_close(module(X), X**3)
    fourth = FunctionCall("cube", [Identifier("x"), Literal(4)])
    assert "return x**4" in generate_pytorch_code(
        LayerDef("L", [Param("x", "Tensor")], [Return(fourth)])
    )


# ---- the rules

ROOT = Path(tpack.__file__).parent
RULES = [
    *(
        p
        for room in ("build", "capturing", "codegen", "layerdef", "readback")
        for p in (ROOT / room).glob("*.py")
    ),
]
#: Words that ``op`` of a node of torch.fx may be, and of a value that no op computes.
OTHERS = {"placeholder", "output", "get_attr", "call_function", "call_method", "call_module"}
OTHERS |= {INPUT, STORED, CONSTANT, CACHE, ITEM}
#: Functions → the position of the argument that is an op.
MAKES = {"like": 0, "made": 0, "FunctionCall": 0, "_is": 1, "_with_number": 1, "has_trait": 0}


def words(node, constants):
    """The words in a constant, or in a set, tuple or dict of them."""
    if isinstance(node, ast.Name):
        node = constants.get(node.id, node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Set | ast.Tuple | ast.List):
        for item in node.elts:
            yield from words(item, constants)
    elif isinstance(node, ast.Dict):
        for key in node.keys:
            yield from words(key, constants)
    elif isinstance(node, ast.BinOp):
        yield from words(node.left, constants)
        yield from words(node.right, constants)
    elif isinstance(node, ast.Call):
        for arg in node.args:
            yield from words(arg, constants)


def is_op(node):
    """Whether an expression is the op of a value or the function of a call."""
    return (isinstance(node, ast.Attribute) and node.attr in ("op", "function")) or (
        isinstance(node, ast.Attribute)
        and node.attr == "name"
        and isinstance(node.value, ast.Name)
        and node.value.id == "op"
    )


def named_ops(path):
    """Every op that a rule of a file names, and its line."""
    tree = ast.parse(path.read_text())
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        found = []
        match node:
            case ast.Compare(left, _, [right]) if is_op(left) or is_op(right):
                found = [right if is_op(left) else left]
            case ast.Subscript(table, key) if is_op(key):
                found = [table]
            case ast.Call(ast.Attribute(table, "get"), [key, *_]) if is_op(key):
                found = [table]
            case ast.Call(ast.Attribute(_, name) | ast.Name(name), args) if (
                name in MAKES and len(args) > MAKES[name]
            ):
                found = [args[MAKES[name]]]
            case ast.MatchClass(ast.Name("FunctionCall"), [ast.MatchValue(value), *_]):
                found = [value]
        for part in found:
            if not (isinstance(part, ast.Name) and part.id not in constants):
                yield from ((node.lineno, word) for word in words(part, constants))


def test_every_op_that_a_rule_names_is_a_row():
    known = {*OPS, *PACKED_OPS, *BINARY, *UNARY, *PSEUDO, *OTHERS}
    found = {(path.name, line, op) for path in RULES for line, op in named_ops(path)}
    assert not {place for place in found if place[2] not in known}
    names = {op for _, _, op in found}
    assert {"lstm_cell", "rms_norm", "chunk", "one_hot", "dequantize", "cumsum", "**"} <= names
    assert len(found) > 150


def test_every_row_of_aten_makes_something_that_is_known():
    assert {row.op for row in ATEN.values()} <= {*OPS, *BINARY, *UNARY, *PSEUDO}
    assert {row.op for row in ATEN.values()} >= PSEUDO.keys()
    assert not PSEUDO.keys() & {*OPS, *BINARY, *UNARY}


@pytest.mark.parametrize("word", PSEUDO)
def test_what_layerdef_has_no_op_for_is_spelled_out_where_its_row_says(word):
    room, _ = PSEUDO[word]
    path = ROOT / "capturing" / f"{room}.py"
    assert word in {op for _, op in named_ops(path)}


def test_arguments_of_rows_are_those_of_torch_and_of_the_op():
    own = {}
    for name, row in ATEN.items():
        base, _, kind = name.partition(".")
        schema = getattr(getattr(torch.ops.aten, base), kind)._schema
        own.setdefault((row.op, *row.taken), set()).update(one.name for one in schema.arguments)
    for row in ATEN.values():
        assert {*row.taken, *row.fixed, *row.ignored, *row.shared} <= own[row.op, *row.taken], row
        if row.op in OPS:
            params = {param.name for param in OPS[row.op].params}
            params |= {"start", "step"} if row.op == "arange" else set()  # LayerDef counts from 0
            assert {*row.taken.values()} <= params, row


def test_spellings_are_of_one_op_each():
    spelled = [op.spelling for op in (*OPS.values(), *PACKED_OPS.values()) if op.spelling]
    assert len(spelled) == len(set(spelled))
    assert [op.name for op in OPS.values() if not op.spelling and op.expansion is None] == [
        op.plain for op in PACKED_OPS.values() if op.plain == "bit_linear"
    ]
    assert {op.plain for op in PACKED_OPS.values()} <= {*OPS, ""}


def test_traits_are_those_that_the_page_of_the_table_explains():
    text = (ROOT / "layerdef" / "ops.py").read_text().partition('"""\n\nfrom')[0]
    explained = {part.split("``")[0] for part in text.partition("Traits")[2].split("``")[1::2]}
    assert {trait for op in OPS.values() for trait in op.traits} == explained
