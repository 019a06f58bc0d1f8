"""Changes of a part of a tensor, such as ``x[:, 0] = y``, as new tensors.

The graph of values is functional: what is written through a view is a new tensor, which stands
for the old one from there on.
"""

from __future__ import annotations

from tpack.capturing.graph import Value, same_size, same_sizes

#: Views that a change is written through, with the arguments that say what they show.
_VIEWS = {
    "slice": ("dim", "start", "end", "step"),
    "select": ("dim", "index"),
    "transpose": ("dim0", "dim1"),
    "unsqueeze": ("dim",),
}
#: Those that show the whole tensor, with the op that turns it back.
_INVERSE = {"transpose": "transpose", "unsqueeze": "squeeze"}


def written(view: Value, new: Value) -> Value | None:
    """Return the tensor that a view shows, as it is after the view was changed.

    Args:
        new: the content of the view after the change.

    Returns:
        None if the value is no such view.
    """
    if view.op not in _VIEWS:
        return None
    whole = view.args["x"]
    shown = {name: view.args[name] for name in _VIEWS[view.op] if name in view.args}
    inverse = _INVERSE.get(view.op)
    if inverse is not None:
        args = {"x": new} | shown
    else:
        inverse, args = f"{view.op}_scatter", {"x": whole, "src": new} | shown
    return new.like(inverse, args, shape=whole.shape, dtype=whole.dtype, asked={})


def copied(value: Value) -> Value:
    """Write what is copied into a tensor in its dtype and shape."""
    x: Value = value.args["x"]
    if x.dtype != value.dtype:
        x = value.like("to", {"x": x, "dtype": value.dtype}, shape=x.shape, asked={})
    if not same_sizes(x.shape, value.shape):
        x = value.like("expand", {"x": x, "shape": value.shape})
    return x


def scattered(value: Value) -> Value | None:
    """Simplify a slice that is written: all of a tensor, or two parts that make the whole."""
    args = value.args
    x, src, dim = args["x"], args["src"], args.get("dim", 0) % len(value.shape)
    size, width = value.shape[dim], src.shape[dim]
    if same_size(size, width):
        return src  # type: ignore[no-any-return]
    start, end, step = args.get("start") or 0, args.get("end"), args.get("step", 1)
    if isinstance(size, int):
        start = start + size if isinstance(start, int) and start < 0 else start
        end = None if isinstance(end, int) and end >= size else end
    if end is not None and same_size(end, size):
        end = None
    if step == 1 and end is None and x.op == "slice_scatter":  # the first part was written before
        before = x.args
        first = before["src"]
        from_start = before.get("start") in (0, None) and before.get("step", 1) == 1
        whole = same_size(first.shape[dim] + width, size) and same_size(start, first.shape[dim])
        if from_start and whole and before.get("dim", 0) % len(value.shape) == dim:
            return value.like("cat", {"tensors": (first, src), "dim": dim})
    simple = {"x": x, "src": src, "dim": dim, "start": start, "end": end, "step": step}
    return None if simple == args else value.like("slice_scatter", simple)
