"""From a source and its targets to a `Problem`: what is known before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.run import Data, scan_groups
from daskdml.kernels.block import Block
from daskdml.kernels.linear import Coordinates, Moments, moments
from daskdml.kernels.targets import LabelSummary, check_rows, summarise_labels

SAMPLE_SHARE = 0.1
SAMPLE_GROUPS = 8  # at most: some hundred thousand rows know the optimum to a per mille


@dataclass(frozen=True)
class ScanOf:
    """Block -> `LabelSummary`."""

    classification: bool

    def __call__(self, block: Block) -> LabelSummary:
        """Scan a block that has its targets."""
        return summarise_labels(block, self.classification)


def scan_targets(data: Data, classification: bool, label: str) -> LabelSummary:
    """Distinct labels, their counts and weights, from one reading of the targets alone."""
    groups = scan_groups(data.groups, data.source.row_nbytes)
    summary, totals = data.map_reduce(
        ScanOf(classification), f"{label}-targets", groups, ("y", "sample_weight")
    )
    data.leave_out(totals)
    data.end_pass(f"{label}-targets", totals)
    return summary


def sample_groups(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Groups spread over the data for a warm start; a function of the data alone."""
    if len(groups) < 3:
        return ()
    return spread(groups, min(SAMPLE_GROUPS, max(1, round(SAMPLE_SHARE * len(groups)))))


def spread(groups: Sequence[Group], n: int) -> tuple[Group, ...]:
    """n of the groups, at equal distances.

    Examples
    --------
    >>> spread("abcdef", 2)
    ('b', 'e')
    """
    return tuple(groups[int((i + 0.5) * len(groups) / n)] for i in range(n))


def _moments(block: Block) -> Moments:
    found = moments(block)
    if not np.isfinite(found.m2).all():
        check_rows(block.X)
    return found


def find_coordinates(data: Data, groups: Sequence[Group], center: bool, label: str) -> Coordinates:
    """Standardising coordinates from the moments of some groups."""
    found, totals = data.map_reduce(_moments, f"{label}-moments", groups)
    data.end_pass(f"{label}-moments", totals)
    return found.coordinates(center)
