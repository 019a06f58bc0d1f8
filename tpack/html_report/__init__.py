"""A checkpoint as one page: charts, a table, the LayerDefs with their source. Needs no torch.

The page is a single file without network. ``facts`` reads the checkpoint, ``program`` prints
its LayerDefs, ``page`` puts both into HTML out of ``parts``, ``markup`` escapes and seals it;
``comparison`` is the page of two checkpoints;
``d3/`` holds modules of D3 as npm has them, ``script/`` what draws with them.
"""

from __future__ import annotations

import os

from tpack.html_report.comparison import render_comparison
from tpack.html_report.facts import gather
from tpack.html_report.page import render

__all__ = ["gather", "html_report", "render", "render_comparison"]


def html_report(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    i2s_order: str | None = None,
) -> str:
    """Return the page of a checkpoint as HTML; every byte of the file is read and verified.

    Equal files of one name give equal pages.

    Args:
        path: the checkpoint.
        against: its source; the page then says what equals it, compared as ``verify`` does.
        key: which nested dict of weights of ``against`` to compare with.
        i2s_order: the order of weights in I2_S of ``against``: ``x86``, ``arm`` or ``rows``.

    Raises:
        InputError: it cannot be read, or its structure is broken.
    """
    return render(gather(path, against, key=key, i2s_order=i2s_order))
