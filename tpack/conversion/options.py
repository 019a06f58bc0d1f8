"""What a conversion is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tpack.choices import MEANINGS, QUANTIZERS, Means
from tpack.codec import Scale, layout_named
from tpack.dtypes import KEEP_DTYPES
from tpack.errors import UsageError, unknown

#: Called with what is being done, and how far it is of how many bytes.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """The options of ``convert`` that decide what becomes of a tensor."""

    exact: bool = False
    quantize: str = "auto"
    scale: str = "auto"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    keep_dtype: str | None = None
    layout: str = "t2"
    scale_means: Means | None = None
    progress: Progress = field(default=lambda *_: None, compare=False)

    def __post_init__(self) -> None:
        for option, value, known in (
            ("keep_dtype", self.keep_dtype, (None, *KEEP_DTYPES)),
            ("quantize", self.quantize, ("auto", *QUANTIZERS)),
            ("scale_means", self.scale_means, (None, *MEANINGS)),
        ):
            if value not in known:
                raise unknown(option, value, filter(None, known))
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            if isinstance(patterns, str):  # its letters would be patterns
                raise UsageError(f"{option} is {patterns!r}, expected a list: [{patterns!r}].")
        layout_named(self.layout)
        if self.scale != "auto":
            Scale.parse(self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: what the output follows from, besides the source."""
        found = {
            option.name: getattr(self, option.name) for option in fields(self) if option.compare
        }
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
        }
