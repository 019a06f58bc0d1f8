"""Say what a conversion would do, without writing, also of a source that it would refuse."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from tpack.conversion import convert
from tpack.conversion.outputs import Job, measure
from tpack.errors import InputError, NotTernaryError
from tpack.options import Options, Progress
from tpack.report import ConversionReport
from tpack.sources import open_source


def foresee(
    source: str | os.PathLike[str], *, progress: Progress | None = None, **reading: Any
) -> ConversionReport:
    """Report what ``convert`` would make of a source by default.

    If it would refuse the weights, the report shows all tensors as they are, those that it
    refuses as ``refused``, and the first warning says why.

    Args:
        source: path of a file or folder.
        progress: called with a phase, bytes done and bytes in all.
        reading: the fields of ``Reading``.

    Raises:
        TpackError: the source cannot be opened.
    """
    try:
        return convert(source, dry_run=True, progress=progress, **reading)
    except (InputError, NotTernaryError) as error:
        refusal = error
    options = Options(dry_run=True, **reading)
    with open_source(source, options) as opened:  # fails again if that was the reason
        report = measure(Job.of(opened, options, as_it_is=True))
    names = refusal.tensors if isinstance(refusal, NotTernaryError) else (refusal.tensor,)
    return replace(
        report,
        tensors=tuple(
            replace(t, action="refused", reason="") if t.name in names else t
            for t in report.tensors
        ),
        warnings=(f"convert refuses it: {refusal}", *report.warnings),
    )
