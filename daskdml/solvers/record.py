"""What a fit's history holds; apart, so that unpickling a model needs no Dask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One pass or round in a fit's history.

    Parameters
    ----------
    label : str
        What it was.
    seconds : float
        Since `fit` was called, at the end of the pass: checks and planning count.
    nbytes : int
        Encoded bytes read since the fit began.
    passes : float
        Data sets' worth of rows visited since the fit began.
    objective, gap, relative : float or None
        f at the point visited, and its certified distance to the optimum.
    read, decode, compute, wait, transfer : float
        Seconds of this pass, summed over workers.
    gradient : float or None
        Norm of the (projected) gradient, where the problem is not convex.
    validation : float or None
        Score of the ratings held out for early stopping.
    """

    label: str
    seconds: float
    nbytes: int
    passes: float
    objective: float | None
    gap: float | None
    relative: float | None
    read: float
    decode: float
    compute: float
    wait: float
    transfer: float
    gradient: float | None = None
    validation: float | None = None
