"""Kills without end: ``python -m tests.faults.soak --kills 200 --seed 0``.

Long fits, one after the other, while workers, schedulers and clients are killed at random moments.
Each must end with the bits that it has undisturbed, and leave nothing behind.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from unittest.mock import patch

from distributed.diskutils import WorkSpace
from psutil import Process

from tests.engine.processes import Processes, Server, fork_server
from tests.faults.matrix import Client, Site, Undisturbed, copy, undisturbed
from tests.faults.work import prepare

FITS = ("sgd", "als", "dsgd")
WEIGHTS = {"worker": 6, "client": 2, "scheduler": 1}
MEAN_GAP = 1.5  # seconds of work between two kills
LONG = 300.0  # seconds that nothing takes
MEMORY = 300_000_000  # bytes that no scheduler has in the end; a new one takes 100 MB


@dataclass
class Soak:
    """What happened.

    Parameters
    ----------
    seed : int
        Of who is killed, and when.
    works : tuple of str
        Fits that share the kills.
    kills : Counter
        Of each kind.
    fits : list of str
        That have ended.
    orphans : list of Server
        Workers whose scheduler was killed; they have to end by themselves.
    """

    seed: int
    works: tuple[str, ...] = FITS
    kills: Counter[str] = field(default_factory=Counter)
    fits: list[str] = field(default_factory=list)
    orphans: list[Server] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def run(self, n: int, base: Path, scratch: Path, times: int) -> None:
        """Kill n processes."""
        wholes: dict[str, Undisturbed] = {}
        while self.kills.total() < n:
            work = self.works[len(self.fits) % len(self.works)]
            if work not in wholes:
                wholes[work] = undisturbed(work, base, scratch / f"whole-{work}", times)
            folder, before = scratch / f"fit-{len(self.fits)}", children()
            site = Site(copy(base, folder), times=times)
            with site.stack:
                end = self._fit(site, work, self._share(n))
                self._check_scheduler(site, work)
                for worker in self.orphans:
                    worker.wait(LONG)
            self.orphans.clear()
            if processes := left_running(before):
                raise AssertionError(f"seed {self.seed}, {work}: {processes} still run")
            if end["digest"] != wholes[work].digest or end["left"]:
                raise AssertionError(f"seed {self.seed}, {work}: {end} is not {wholes[work]}")
            left = sorted(path.name for path in (folder / f"{work}.fit").iterdir())
            if len(left) != 3 or "latest.json" not in left:
                raise AssertionError(f"seed {self.seed}, {work}: files left behind: {left}")
            print(f"{work}: the same bits after {self.kills.total()} kills", flush=True)
            shutil.rmtree(folder)
            self.fits.append(work)

    def _share(self, n: int) -> int:
        """After how many kills of n the next fit is left alone."""
        return min(n * (len(self.fits) + 1) // len(self.works), n)

    def _fit(self, site: Site, work: str, n: int) -> dict[str, object]:
        client = site.call(work)
        while True:
            gap = self.random.expovariate(1 / MEAN_GAP)
            client.begins.wait(LONG)
            end = time.monotonic() + (gap if self.kills.total() < n else LONG)
            while client.process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            if client.process.poll() is not None:
                client.wait()
                if client.end is not None:
                    return client.end
                self._explain(client)
                client = site.call(work)
            elif self.kills.total() < n:
                client = self._kill(site, client, work)
            else:
                raise AssertionError(f"seed {self.seed}, {work}: no end after {LONG:g} s")

    def _kill(self, site: Site, client: Client, work: str) -> Client:
        (what,) = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        self.kills[what] += 1
        if what == "worker":
            k = self.random.randrange(len(site.cluster.workers))
            site.cluster.workers[k].kill()
            site.cluster.workers[k] = site.cluster.worker()
            return client
        if what == "client":
            client.process.kill()
            client.wait()
        else:
            self._check_scheduler(site, work)
            site.cluster.scheduler.kill()
            self.orphans += site.cluster.workers
            client.wait(LONG)
            self._explain(client)
            site.cluster = site.stack.enter_context(Processes(2))
        return site.call(work)

    def _check_scheduler(self, site: Site, work: str) -> None:
        """At its end it has not grown, however often fits began on it, and clients left it."""
        memory = Process(site.cluster.scheduler.pid).memory_info().rss
        if memory > MEMORY:
            raise AssertionError(f"seed {self.seed}, {work}: the scheduler has {memory} bytes")

    def _explain(self, client: Client) -> None:
        """A client that was not killed ends for one reason alone."""
        if client.end is None and "LostScheduler" not in client.errors:
            raise AssertionError(f"seed {self.seed}: {client.errors[-3000:]}")


def children() -> set[Process]:
    """Processes that this one has started, those that they have, and so on."""
    return set(Process().children(recursive=True))


def left_running(before: set[Process]) -> list[Process]:
    """Which of them have come since, and do not end."""
    end = time.monotonic() + 10
    while (left := children() - before) and time.monotonic() < end:
        time.sleep(0.1)
    return list(left)


@contextmanager
def temporary(folder: Path) -> Iterator[None]:
    """Have workers and clients put what is temporary there; nothing may stay.

    Folders of dead workers are removed by the next one: so none is held by a living process.
    """
    folder.mkdir()
    fork_server()  # it outlives the folder
    worker = partialmethod(Processes.worker, local_directory=str(folder))
    with (
        patch.object(Processes, "worker", worker),
        patch.dict(os.environ, {"TMPDIR": str(folder), "DASK_TEMPORARY_DIRECTORY": str(folder)}),
    ):
        yield
    WorkSpace(str(folder / "dask-scratch-space")).new_work_dir(name="last").release()
    left = [path.name for path in folder.rglob("*")]
    if set(left) - {"dask-scratch-space", "global.lock", "purge.lock"}:
        raise AssertionError(f"temporary files left behind: {left}")


def soak(kills: int, seed: int, times: int, works: tuple[str, ...] = FITS) -> Soak:
    """Kill so many processes; gives what happened."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        base.mkdir()
        prepare(base)
        done = Soak(seed, works)
        with temporary(Path(scratch) / "temporary"):
            done.run(kills, base, Path(scratch), times)
        return done


def main() -> None:
    """Soak, and tell what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=int, default=4, help="how much longer the fits are")
    args = parser.parse_args()
    began = time.monotonic()
    done = soak(args.kills, args.seed, args.times)
    print(
        f"{done.kills.total()} kills ({dict(done.kills)}) in {time.monotonic() - began:.0f} s over "
        f"{', '.join(done.fits)}, each with the bits it has undisturbed, and nothing left behind"
    )


if __name__ == "__main__":
    main()
