"""Fits on a simulated cluster, each compared with the undisturbed one, bit for bit.

``python -m tests.engine.simulated newton 17`` replays one schedule and shows all that happened;
``newton 0..9999`` tries many. Further numbers are those of `Schedule`.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

import dask
from dask.callbacks import Callback
from zarr.core.sync import sync

from daskdml import Engine
from daskdml.engine import checkpoint, factor_tasks, tasks
from daskdml.events import BlockEnd, PassEnd, PassStart
from daskdml.io import chunks, store
from tests.engine.simulated_cluster import ClientKilled, SimulatedCluster
from tests.engine.simulated_fits import (
    FITS,
    PLACE,
    RESUMABLE,
    bits,
    clear,
    small_blocks,
    undisturbed,
)
from tests.engine.simulated_store import SimulatedStore
from tests.engine.simulated_troubles import Troubles
from tests.engine.simulated_world import Wrong

KEPT_THREADS = ("asyncio_", "daskdml-blas")  # Zarr's, of which there are few, and our one


class AtOnce:
    """Stands for a pool of one thread: what is submitted is done before the call returns."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, act: Callable[..., Any], *of: Any) -> Future[Any]:
        """Do it."""
        done: Future[Any] = Future()
        try:
            done.set_result(act(*of))
        except Exception as error:
            done.set_exception(error)
        return done

    def shutdown(self, wait: bool = True) -> None:
        """Nothing is left to do."""


_LOOP = asyncio.new_event_loop()


def _sync(coroutine: Any, *_: Any, **__: Any) -> Any:
    """Zarr's way from asynchronous code, without a thread of its own."""
    return _LOOP.run_until_complete(coroutine)


def _in_order(fetches: Any, width: int) -> Iterator[Any]:
    """Stands for fetching side by side: one after the other, without a thread."""
    for make in fetches:
        try:
            got = _sync(make())
        except Exception as error:
            got = error
        yield got


@contextmanager
def simulation(cluster: SimulatedCluster, outage: float = 0.0) -> Iterator[Troubles]:
    """Let a cluster's clock, store and processes stand for the real ones."""
    troubles = Troubles(cluster, outage)
    pinned = SimpleNamespace(
        get=lambda *block: cluster.at.pinned.get(*block),
        offer=lambda *block: (
            cluster.random.random() >= cluster.habits.full and cluster.at.pinned.offer(*block)
        ),
    )
    changed: list[tuple[Any, str, Any]] = [
        (SimulatedStore, "answer", staticmethod(troubles)),
        (checkpoint, "ThreadPoolExecutor", AtOnce),
        (chunks, "in_order", _in_order),
        (store, "CHANCE", cluster.random),
        (store, "LONG_ENOUGH", math.inf),  # this clock's seconds pass for other reasons, too
    ]
    for module in (tasks, factor_tasks):
        changed += [(module, "PINNED", pinned), (module, "tell", cluster.hear)]
    for name, module in list(sys.modules.items()):
        if name.startswith("daskdml.") and vars(module).get("time") is time:
            changed.append((module, "time", cluster.clock))
        if name.startswith(("daskdml.", "zarr.")) and vars(module).get("sync") is sync:
            changed.append((module, "sync", _sync))
    before = [(of, name, vars(of)[name]) for of, name, _ in changed]
    for of, name, value in changed:
        setattr(of, name, value)
    try:
        yield troubles
    finally:
        for of, name, value in before:
            setattr(of, name, value)


@contextmanager
def on_simulated_cluster(
    seed: int, kind: type[SimulatedCluster] = SimulatedCluster
) -> Iterator[SimulatedCluster]:
    """A cluster for a fit of any data, on which nothing may stay."""
    cluster = kind(Random(seed))
    with simulation(cluster), dask.config.set(scheduler="synchronous"):
        yield cluster
        _check_rest(cluster, set(threading.enumerate()))


@dataclass(frozen=True)
class Schedule:
    """What a seed stands for.

    Parameters
    ----------
    name : str
        Of the fit.
    seed : int
    breaks : int
        How often the client is killed, and the same fit begun again, elsewhere.
    outage : float
        Chance, at each request, that the store never answers for that object again.
    """

    name: str
    seed: int
    breaks: int = 0
    outage: float = 0.0

    def __str__(self) -> str:
        more = [self.breaks, self.outage] if self.outage else [self.breaks] if self.breaks else []
        return " ".join(map(str, [self.name, self.seed, *more]))

    def run(self, trace: Callable[[str], None] = lambda line: None) -> bool:
        """Fit, and compare.

        Returns
        -------
        ended : bool
            Whether there were bits to compare, not the error that names what never answers.

        Raises
        ------
        Wrong
            If the bits are not those of the undisturbed fit, or anything is left behind.
        """
        expected = undisturbed(self.name)
        clear()
        for attempt in range(self.breaks + 1):
            draw = Random(f"{self} {attempt}")
            killed_at = int(draw.expovariate(1 / 150)) + 1 if attempt < self.breaks else None
            cluster = SimulatedCluster(draw, killed_at, trace)
            found = self._attempt(cluster)
            if found is None:
                continue
            wrong = [what for what in expected if found[what] != expected[what]]
            if wrong:
                raise Wrong(f"other bits than the undisturbed fit's: {', '.join(wrong)}")
            return True
        return False

    def _attempt(self, cluster: SimulatedCluster) -> dict[str, bytes] | None:
        """The bits of a fit on this cluster, which is left as it was; None where it broke off."""
        events: list[Any] = []
        threads = set(threading.enumerate())
        resumed = self.breaks and self.name in RESUMABLE
        kept = {"checkpoint": PLACE, "every": cluster.random.choice((0, 20))} if resumed else {}
        with small_blocks(), simulation(cluster, self.outage) as troubles:
            found = None
            try:
                with Engine(cluster, callbacks=[events.append], **kept):
                    found = bits(FITS[self.name]())
            except (Exception, ClientKilled) as error:
                if not cluster.dead and not _named(troubles.down, error):
                    raise
            if cluster.dead:
                return None
            _check_rest(cluster, threads)
            _check_events(events)
            return found


def _named(down: str | None, error: BaseException) -> bool:
    """Whether it is the error that names what has an object that never answers."""
    if down is None or not isinstance(error, ConnectionError):
        return False
    return f"simulated://{'/'.join(down.split('/')[:2])}" in str(error)


def _check_rest(cluster: SimulatedCluster, threads: set[threading.Thread]) -> None:
    """Nothing is left of a fit that has ended."""
    left = cluster.left()
    if left:
        gc.collect()  # of what cycles keep alive
        left = cluster.left()
    begun = set(threading.enumerate()) - threads
    left += [f"the thread {t.name}" for t in begun if not t.name.startswith(KEPT_THREADS)]
    left += [f"the callback {c}" for c in Callback.active]
    if left:
        raise Wrong(f"left behind: {', '.join(left[:5])}")


def _check_events(events: list[Any]) -> None:
    """Each pass has told of each of its blocks once."""
    announced = {(e.label, e.index): e.n_blocks for e in events if isinstance(e, PassStart)}
    told = Counter((e.label, e.index) for e in events if isinstance(e, BlockEnd))
    ended = {(e.label, e.index) for e in events if isinstance(e, PassEnd)}
    for key in ended:
        if key in announced and told[key] != announced[key]:
            raise Wrong(f"of {announced[key]} blocks of {key[0]}, {told[key]} were told")


def main(arguments: list[str]) -> int:
    """Replay a schedule, or try many: FIT SEED [BREAKS [OUTAGE]], or FIT FIRST..LAST [...]."""
    if len(arguments) < 2 or arguments[0] not in FITS:
        sys.stdout.write(f"{main.__doc__}\nFits: {', '.join(FITS)}\n")
        return 2
    name, seeds, *more = arguments
    first, _, last = seeds.partition("..")
    rest = (int(more[0]) if more else 0, float(more[1]) if more[1:] else 0.0)
    show = sys.stdout.write if not last else len
    for seed in range(int(first), int(last or first) + 1):
        schedule = Schedule(name, seed, *rest)
        try:
            schedule.run(lambda line: show(line + "\n"))
        except Exception:
            sys.stdout.write(f"{schedule}\n{traceback.format_exc()}")
            return 1
    sys.stdout.write("The same bits as the undisturbed fit's, and nothing left behind.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
