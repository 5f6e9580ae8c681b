"""The command `daskdml`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from daskdml import __version__
from daskdml.engine.checkpoint import CheckpointError, checkpoint_place, list_checkpoints
from daskdml.units import bytes_text

COLUMNS = ("checkpoint", "written", "step", "objective", "gap", "size")


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
        fit, listed = list_checkpoints(checkpoint_place(args.url, 0, 1, None))
    except (CheckpointError, OSError, ImportError, ValueError) as error:
        sys.stderr.write(f"daskdml: {error}\n")
        return 1
    sys.stdout.write(", ".join(f"{key} {value}" for key, value in fit.items()) + "\n\n")
    rows = [COLUMNS, *(_row(entry) for entry in listed)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return 0


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
