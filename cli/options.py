"""Options that several commands share."""

from __future__ import annotations

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Print results only.")
verbose = click.option("-v", "--verbose", is_flag=True, help="Print every tensor.")
force = click.option("-f", "--force", is_flag=True, help="Replace an existing output.")
