"""A reshape rewritten as flatten, unflatten, unsqueeze or squeeze, if it is one of them."""

from __future__ import annotations

from tpack.capturing.graph import Size, Value, same_size, same_sizes


def reshaped(value: Value, x: Value) -> Value:
    """Bring ``x`` into the shape of ``value`` without naming sizes that stay.

    Example: ``(batch, length, 64)`` → ``(batch, length, 4, 16)`` is ``unflatten(-1, (4, 16))``.
    """
    old, new = x.shape, value.shape
    if same_sizes(old, new):
        return x
    first = 0
    while first < min(len(old), len(new)) and same_size(old[first], new[first]):
        first += 1
    last = 0
    limit = min(len(old), len(new)) - first
    while last < limit and same_size(old[-1 - last], new[-1 - last]):
        last += 1
    gone = old[first : len(old) - last]
    come = new[first : len(new) - last]
    if len(gone) > 1 and len(come) == 1:
        end = -1 if not last else first + len(gone) - 1
        return value.like("flatten", {"x": x, "start_dim": first, "end_dim": end})
    if len(gone) == 1 and len(come) > 1:
        dim = -1 if not last else first
        return value.like("unflatten", {"x": x, "dim": dim, "sizes": _inferred(come)})
    if not gone and come == (1,) * len(come):
        made = x
        for i in range(len(come)):
            shape = (*new[: first + i + 1], *new[first + len(come) :])
            made = value.like("unsqueeze", {"x": made, "dim": first}, shape=shape)
        return made
    if not come and len(gone) == 1:
        return value.like("squeeze", {"x": x, "dim": first})
    return value.like("reshape", {"x": x, "shape": _inferred(new)})


def _inferred(sizes: tuple[Size, ...]) -> tuple[Size, ...]:
    """Replace the last free size by -1, which torch infers."""
    free = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    if not free:
        return sizes
    return tuple(-1 if i == free[-1] else size for i, size in enumerate(sizes))
