"""What a fit will hold in a worker process, promised before the run and refused if too much."""

from __future__ import annotations

from dataclasses import dataclass, replace

from daskdml.units import bytes_text

FAN_IN = 16  # children of a node of the reduction tree
_SLACK = 16 * 2**20  # interpreter, allocator and messages, beside what is counted
_THREAD = 8 * 2**20  # stacks and arenas of a compute slot and of those who read for it
LEFT_BEHIND = _SLACK + _THREAD  # of these two, what may stay in a process for the next fit
_SHARE_OF_WORKER = 0.7  # of a Dask worker's limit: beyond it, Dask begins to spill and to pause


def promisable(limit: int) -> int:
    """Bytes that a fit may promise of a worker that Dask lets use `limit`."""
    return int(_SHARE_OF_WORKER * limit)


@dataclass(frozen=True)
class Needs:
    """Bytes that a solver holds beside the blocks.

    Parameters
    ----------
    work : int
        Scratch of one block's computation.
    part : int
        One block's result.
    row : int
        Scratch for each row of the block that is computed on.
    held : int
        What a worker process holds all the time.
    """

    work: int = 0
    part: int = 0
    row: int = 0
    held: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per worker process: what is promised, and what the fit will hold at most.

    Parameters
    ----------
    limit : int
        The promise: bytes of resident memory that one worker process may reach.
    baseline : int
        Resident bytes of the fullest worker process before the fit.
    block : int
        Decoded bytes of the largest block of rows.
    encoded : int
        Bytes of encoded chunks that one read holds at a time.
    threads : int
        Compute slots of the worker process with most of them.
    prefetch : int
        Blocks that each slot reads ahead.
    needs : Needs
        What the solver holds.
    """

    limit: int
    baseline: int
    block: int
    encoded: int
    threads: int
    prefetch: int
    needs: Needs
    cure: str = (
        "write the data in smaller chunks (daskdml.io.write_dataset(..., chunks=rows)) or as "
        "float32, or run fewer threads per worker"
    )

    @property
    def streaming(self) -> int:
        """Bytes that a fit without pinned blocks reaches."""
        alive = self.threads * (self.prefetch + 1) * (self.block + self.encoded)
        solver = self.threads * self.needs.work + (FAN_IN + 2 * self.threads) * self.needs.part
        return (
            self.baseline
            + _SLACK
            + self.threads * _THREAD
            + int(1.05 * (alive + solver + self.needs.held))
        )

    @property
    def spare(self) -> int:
        """Bytes of free buffers that a process may keep for the next read."""
        return self.threads * (self.block + self.encoded)

    @property
    def pinned(self) -> int:
        """Bytes left for blocks that stay in memory between passes."""
        return max(0, int((self.limit - self.streaming) / 1.05))

    def __str__(self) -> str:
        return (
            f"{bytes_text(self.streaming)} of {bytes_text(self.limit)} promised per worker: "
            f"{bytes_text(self.baseline)} before the fit, "
            f"{self.threads} x {self.prefetch + 1} blocks of {bytes_text(self.block)}; "
            f"{bytes_text(self.pinned)} for pinned blocks"
        )


def fit_plan(plan: MemoryPlan) -> MemoryPlan:
    """The plan with the deepest prefetch that the promise allows, or a MemoryError.

    Raises
    ------
    MemoryError
        If even reading one block at a time does not fit; states the smallest limit that would.

    Examples
    --------
    >>> mb = 10**6
    >>> plan = MemoryPlan(400 * mb, 150 * mb, 40 * mb, 10 * mb, 1, 1, Needs())
    >>> fit_plan(plan).prefetch
    1
    >>> fit_plan(MemoryPlan(200 * mb, 150 * mb, 40 * mb, 10 * mb, 1, 1, Needs()))
    Traceback (most recent call last):
    ...
    MemoryError: memory_limit=200 MB per worker is too small: ...
    """
    for prefetch in range(plan.prefetch, -1, -1):
        tried = replace(plan, prefetch=prefetch)
        if tried.streaming <= tried.limit:
            return tried
    smallest = replace(plan, prefetch=0)
    raise MemoryError(
        f"memory_limit={bytes_text(plan.limit)} per worker is too small: this fit needs "
        f"{bytes_text(smallest.streaming)}, of which {bytes_text(plan.baseline)} are in use "
        f"before it and {plan.threads} x {bytes_text(plan.block + plan.encoded)} are the blocks "
        f"of rows being read; raise memory_limit to {-(-smallest.streaming // 10**6)}MB, "
        f"{plan.cure}"
    )
