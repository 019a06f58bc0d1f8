"""What rows of several topics share: their type, and how results keep a name."""

from __future__ import annotations

#: Overloads, op, arguments, and perhaps a naming.
Rows = tuple[tuple[str, str, str] | tuple[str, str, str, str], ...]

#: The result is x in another form, and keeps its name.
KEEPS = "="
