"""Trees for the tests of the generator."""

from trees import W, X, block, call, layer, network

from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
    UnaryOp,
    mirror,
    slots,
)


def ternary(name="w", shape=(4, 4), **options):
    return Param(name, "TernaryTensor", shape, **options)


def encoder():
    net = LayerDef("Net", [Param("blocks", "Layer", layer="Block", repeat=2)])
    return mirror(list(slots(Program([block(), net], "Net"))), "Encoder")


def convolution():
    return layer(
        Assignment(
            "x",
            call(
                "conv2d",
                X,
                W,
                bias=Identifier("bias"),
                stride=Tuple([Literal(2), Literal(1)]),
                padding=Literal(1),
                groups=Literal(2),
            ),
        ),
        Assignment("x", call("max_pool2d", call("relu", X), Literal(2))),
        Return(Tuple([call("flatten", X, Literal(1)), call("mean", X, Literal(-1))])),
        params=[
            ternary("w", (6, 2, 3, 3), scale="row", layout="t5", dtype="bfloat16"),
            Param("bias", "Tensor", [6]),
            Param("seen", "Buffer", [], dtype="int64"),
        ],
        name="Convolution",
    )


def awkward_lines():
    """Everything that has to break over lines."""
    a, b = "a" * 50, "b" * 50
    A, B = Identifier(a), Identifier(b)
    return layer(
        Assignment("sum", BinaryOp("+", A, B)),
        Assignment("power", BinaryOp("**", UnaryOp("-", A), Literal(2))),
        Assignment("product", BinaryOp("*", BinaryOp("+", A, Identifier("sum")), call("relu", B))),
        Assignment("joined", call("cat", Tuple([A, B, Identifier("product")]), dim=Literal(-1))),
        Assignment(
            "moved", call("transpose", call("flatten", call("relu", A)), Literal(0), Literal(1))
        ),
        Assignment("called", LayerCall("c" * 50, [BinaryOp("-", A, B)])),
        Return(
            Tuple([Identifier(n) for n in ("sum", "power", "product", "joined", "moved", "called")])
        ),
        params=[
            ternary("t" * 50, (2, 2), scale="row"),
            Param("c" * 50, "Layer", layer="Linear", args={"in_features": 2, "out_features": 2}),
        ],
        inputs=(a, b),
        name="AwkwardLines",
    )


GOLDENS = {
    "network": network,
    "convolution": convolution,
    "awkward_lines": awkward_lines,
    "encoder": encoder,
    "affine": lambda: LayerDef(
        "MyTernaryLayer",
        [
            ternary("weights", (256, 512)),
            ternary("bias", (512,)),
            Param("x", "Tensor"),
        ],
    ),
}
