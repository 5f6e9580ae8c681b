"""The command `daskdml`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from daskdml import __version__
from daskdml.engine.checkpoint import CheckpointPlace, checkpoint_place, list_checkpoints
from daskdml.engine.listing import CheckpointError
from daskdml.io.store import filesystem, retrying
from daskdml.units import bytes_text

COLUMNS = ("checkpoint", "written", "step", "objective", "gap", "size")
BUCKETS = ("s3", "s3a", "gs", "gcs")
"""Protocols whose URLs begin with a bucket."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 1 where there is nothing to tell.

    Parameters
    ----------
    arguments : sequence of str or None
        None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="daskdml", description="Tools of daskdml.")
    parser.add_argument("--version", action="version", version=f"daskdml {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    checkpoints = commands.add_parser("checkpoints", help="list the checkpoints of a fit")
    checkpoints.add_argument("url", help="the folder that Engine(checkpoint=) named")
    args = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", RuntimeWarning)
            fit, listed = _listed(checkpoint_place(args.url, 0, 1, None))
    except (OSError, ImportError, ValueError) as error:
        sys.stderr.write(f"daskdml: {error}\n")
        return 1
    for warning in told:
        sys.stderr.write(f"daskdml: {warning.message}\n")
    sys.stdout.write(", ".join(f"{key} {value}" for key, value in fit.items()) + "\n\n")
    rows = [COLUMNS, *(_row(entry) for entry in listed)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return 0


def _listed(place: CheckpointPlace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fit and its checkpoints; whatever a file system raises names the URL, in one sentence."""
    try:
        try:
            return list_checkpoints(place)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}{_no_bucket(place.url)}") from error
    except (CheckpointError, OSError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and place.url in str(error):
            raise
        why = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{place.url} cannot be read ({type(error).__name__}: {why}); check the URL, and the "
            "endpoint and credentials that the environment names"
        ) from error


def _no_bucket(url: str) -> str:
    """What to add where nothing is found because the bucket of a URL is not there."""
    protocol, _, rest = url.partition("://")
    if protocol not in BUCKETS:
        return ""
    bucket = rest.partition("/")[0]
    fs, path = filesystem(f"{protocol}://{bucket}")
    if retrying(lambda: fs.exists(path), f"looking for {protocol}://{bucket}"):
        return ""
    return (
        f", for the bucket {bucket!r} is not there, or may not be listed; check its name and the "
        "endpoint"
    )


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    written = datetime.fromtimestamp(entry["written"]).isoformat(" ", "seconds")
    objective, gap = (
        "" if entry[what] is None else format(entry[what], pattern)
        for what, pattern in (("objective", ".10g"), ("gap", ".2g"))
    )
    step = f"{entry['n_iter']}{', the end' if entry['ended'] else ''}"
    return entry["name"], written, step, objective, gap, bytes_text(entry["nbytes"])


if __name__ == "__main__":
    sys.exit(main())
