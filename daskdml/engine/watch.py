"""Waits for a cluster's answers, and meanwhile sees to it that they can come.

Whatever a fit waits for, it looks at the cluster every other second: a worker that is frozen or
cut off is removed, so that others do its work; one that joins is asked what it computes with; and
a wait that cannot end becomes an error.
"""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from daskdml.engine.limits import Reminder, TimeLimits
from daskdml.engine.memory import promisable
from daskdml.engine.share import Share
from daskdml.engine.survey import Fact, build, check_build, facts_of, greet, terminal
from daskdml.units import bytes_text

TICK = 0.25  # seconds between two checks of whether the scheduler is there
ASK = 10.0  # seconds that a worker may take to say what it computes with

T = TypeVar("T")


class LostScheduler(ConnectionError):
    """The scheduler is gone, and with it whatever the cluster was doing for this fit."""


class Watch:
    """Looks at a cluster while a fit waits for it.

    Parameters
    ----------
    client : distributed.Client
    share : Share
        Which workers the fit may use.
    limits : TimeLimits
    tell : callable
        Told sentences for people.
    checkpoint : str or None
        URL of the fit's checkpoints.
    looked : callable
        Called after each look at a cluster that has usable workers.
    """

    def __init__(
        self, client: Any, share: Share, limits: TimeLimits, tell: Callable[[str], None],
        checkpoint: str | None, looked: Callable[[], None],
    ) -> None:  # fmt: skip
        self.client = client
        self.address = str(client.scheduler.address)
        self.checkpoint = checkpoint
        self.looked = looked
        self.share = share
        self.limits = limits
        self.tell = tell
        self.facts: list[Fact] = []
        self._comm = client.scheduler_comm
        self._looked = 0.0
        self._looking = threading.RLock()
        self._heard: dict[str, tuple[float, float]] = {}  # when it was seen; and by this clock
        self._vetted: dict[str, str] = {}  # those that were asked what they compute with
        self._full: dict[str, float] = {}  # workers that take no tasks, and since when
        self._told_of: set[str] = set()  # workers that are left out, and why: as people were told
        self.promised = 0  # bytes of a worker, once there is a plan
        self.given_up = False
        self._cpus: set[str] = set()
        self._none_since: float | None = None
        self._none = Reminder()

    @property
    def interval(self) -> float:
        """Seconds between two looks at the cluster: more on large ones, as between heartbeats."""
        return max(self.limits.interval, len(self.facts) / 100)

    @property
    def lost(self) -> bool:
        """Whether the connection to the scheduler has broken since the fit began."""
        client = self.client
        return client.status != "running" or client.scheduler_comm is not self._comm

    def gone(self) -> LostScheduler:
        """What to raise where the scheduler is lost."""
        self.given_up = True
        kept = "; fits go on from where they stood if the engine has a checkpoint="
        if self.checkpoint is not None:
            kept = (
                f"; nothing is lost that the last checkpoint in {self.checkpoint} has: call fit "
                "again with a client of a cluster that runs"
            )
        return LostScheduler(
            f"the Dask scheduler at {self.address} is gone, or has not answered for "
            f"{self.limits.scheduler_silence:g} s (daskdml.scheduler-silence){kept}"
        )

    def wait(
        self, answer: Coroutine[Any, Any, T], seconds: float | None = None,
        look: Callable[[], Any] | None = None, ended: Callable[[], Any] | None = None,
    ) -> T:  # fmt: skip
        """What a coroutine of the client gives, for `seconds` at most; looks meanwhile.

        `look` is how, if not by `mind` alone; where it waits itself, `ended` ends that.

        Raises
        ------
        LostScheduler
            If the scheduler is gone.
        TimeoutError
            If nothing came for so long.
        """
        return self._wait(answer, seconds, look or self.mind, ended)

    def ask(self, answer: Coroutine[Any, Any, T]) -> T:
        """The same without looking, for what the scheduler itself answers."""
        try:
            return self._wait(answer, self.limits.scheduler_silence, lambda: None)
        except TimeoutError as error:
            raise self.gone() from error

    def _wait(
        self, answer: Coroutine[Any, Any, T], seconds: float | None, look: Callable[[], Any],
        ended: Callable[[], Any] | None = None,
    ) -> T:  # fmt: skip
        if self.lost:
            answer.close()
            raise self.gone()
        future = asyncio.run_coroutine_threadsafe(answer, self.client.loop.asyncio_loop)
        end = None if seconds is None else time.monotonic() + seconds
        tick = TICK
        if ended is not None:
            tick = 0.0
            future.add_done_callback(lambda _: ended())
        try:
            while True:
                try:
                    return future.result(tick)
                except TimeoutError:
                    if future.done():
                        return future.result()
                    if end is not None and time.monotonic() > end:
                        raise
                except OSError as error:  # of a connection, or of a task
                    if self._is_soon_lost():
                        raise self.gone() from error
                    raise
                if self.lost:
                    raise self.gone()
                look()
        except BaseException:
            future.cancel()
            raise

    def _is_soon_lost(self) -> bool:
        """Whether the client notices within half a second that it has lost the scheduler."""
        for _ in range(10):
            if self.lost:
                return True
            time.sleep(0.05)
        return False

    def look(self, now: bool = False) -> bool:
        """Look at the cluster, if the last look is old enough or one is asked for `now`.

        Returns
        -------
        looked : bool

        Raises
        ------
        LostScheduler
            If it is gone, or has not answered for too long.
        RuntimeError
            If a worker computes with other versions.
        """
        began, interval = time.monotonic(), self.interval
        if not now and began - self._looked < interval:
            return False
        if not self._looking.acquire(blocking=now):
            return False  # another thread, which writes a checkpoint, does
        try:
            self._look(began, interval)
        finally:
            self._looking.release()
        return True

    def _look(self, began: float, interval: float) -> None:
        self._survey()
        took, since = time.monotonic() - began, began - self._looked
        slow = took > max(1.0, interval) or (self._looked > 0 and since > 2 * interval + 1.0)
        for fact in self._silent(slow):
            self._remove(fact)
        self._note_left_out()
        self._vet()
        self._looked = time.monotonic()

    def _survey(self) -> None:
        """Note the workers that there are, by the scheduler, which alone is asked.

        Raises
        ------
        LostScheduler
            If it is gone, or has not answered for too long.
        """
        end = time.monotonic() + self.limits.scheduler_silence
        while True:
            try:
                # Not scheduler_info: what the client keeps may be replaced before it is read.
                self.facts = facts_of(self.ask(self.client.scheduler.identity(n_workers=-1)))
                return
            except LostScheduler:
                raise
            except OSError as error:  # one connection of several may break
                if time.monotonic() > end:
                    raise self.gone() from error
                time.sleep(TICK)

    def _silent(self, slow: bool) -> list[Fact]:
        """Workers not heard of for too long.

        Where this look was `slow`, the scheduler or this process may have been busy rather than a
        worker silent: the count begins anew.
        """
        now, found, heard = time.monotonic(), [], {}
        for fact in self.facts:
            seen, at = self._heard.get(fact.address, (None, now))
            heard[fact.address] = (fact.seen, now if slow or seen != fact.seen else at)
            if now - heard[fact.address][1] > self.limits.worker_silence:
                found.append(fact)
        self._heard = heard
        return [fact for fact in found if self.share.names(fact)]

    def _remove(self, fact: Fact) -> None:
        """Have the scheduler forget a worker: others run its tasks, and make its results anew."""
        self.tell(
            f"The worker {fact.address} has not been heard of for "
            f"{self.limits.worker_silence:g} s; it is removed from the cluster, and others do its "
            "work."
        )
        answer = self.client.scheduler.unregister(
            address=fact.address, stimulus_id="daskdml-silent-worker", expected=True, close=True
        )
        self.ask(answer)
        self.facts = [other for other in self.facts if other.address != fact.address]

    def _note_left_out(self) -> None:
        """Remember since when workers take no tasks: mostly, Dask has paused a full one.

        Tell of these, and of others that are left out, once.
        """
        now = time.monotonic()
        idle = [fact for fact in self.facts if not fact.running and self.share.names(fact)]
        self._full = {fact.address: self._full.get(fact.address, now) for fact in idle}
        told = {
            f"The worker {address} has begun no task for {self.limits.worker_silence:g} s: it is "
            "paused, most often because its memory is full; others do its work."
            for address in self.full()
        } | {
            f"The worker {address} may use {bytes_text(nbytes)}, and this fit is planned for "
            f"{bytes_text(self.promised)} per worker; it is left out."
            for address, nbytes in self.small.items()
        }
        for text in sorted(told - self._told_of):
            self.tell(text)
        self._told_of = told

    @property
    def small(self) -> dict[str, int]:
        """Workers that have less memory than the fit is planned for, and what they may use."""
        may = {
            f.address: promisable(f.limit) for f in self.facts if f.limit and self.share.names(f)
        }
        return {address: nbytes for address, nbytes in may.items() if nbytes < self.promised}

    def full(self) -> set[str]:
        """Workers that have taken no tasks for too long."""
        now, patience = time.monotonic(), self.limits.worker_silence
        return {address for address, since in self._full.items() if now - since > patience}

    def _vet(self) -> None:
        """Ask workers that have joined what they compute with.

        Raises
        ------
        RuntimeError
            If that is not what this process computes with: the bits would differ.
        """
        new = {f.address: f.home for f in self.share.usable(self.facts) if not self._known(f)}
        if not new:
            return
        ask = self.client.run(
            greet, terminal(), workers=list(new), on_error="return", asynchronous=True
        )
        try:
            answers = self._wait(ask, ASK, lambda: None)
        except TimeoutError:
            return  # asked again at the next look, unless it is silent and removed by then
        ours = build()
        for address, theirs in sorted(answers.items()):
            if isinstance(theirs, OSError):
                continue  # it has just gone
            check_build(address, ours, theirs)
            self._vetted[address] = new[address]
            self._cpus.add(theirs["CPU"])
            if len(self._cpus) == 2:
                self.tell(
                    f"The workers' CPUs differ ({', '.join(sorted(self._cpus))}): the last bits of "
                    "the result may depend on who did what."
                )
                self._cpus.add("")  # said once

    def usable(self) -> list[Fact]:
        """The workers that tasks may be given now: those that compute as this process does."""
        small = self.small
        usable = self.share.usable(self.facts)
        return [fact for fact in usable if self._known(fact) and fact.address not in small]

    def _known(self, fact: Fact) -> bool:
        """Whether this very worker was asked; another one may have come at its address."""
        return self._vetted.get(fact.address) == fact.home

    def heard_of(self, address: str) -> None:
        """A worker has done something: make sure that it has been asked what it computes with."""
        if address not in self._vetted:
            self.look(now=True)

    def mind(self) -> None:
        """Look; and if there has been nobody to work for too long, give up.

        Raises
        ------
        TimeoutError
            If there has been no usable worker for too long.
        """
        if not self.look():
            return
        now = time.monotonic()
        if self.usable():
            self._none_since = None
            self.looked()
            return
        if self._none_since is None:
            self._none_since, self._none = now, Reminder()
        elif now - self._none_since > self.limits.wait_for_workers:
            raise TimeoutError(self.absence(1))
        elif self._none.due():
            self.tell(
                f"No worker is left to go on with; waiting for {now - self._none_since:.0f} s."
            )

    def absence(self, least: int) -> str:
        """Why a fit gives up for want of workers."""
        usable, asks = self.usable(), self.share.asks
        scheduler = self.address
        waited = f"within {self.limits.wait_for_workers:g} s (daskdml.wait-for-workers)"
        if self.share.resources and not usable:
            for name, amount in self.share.resources.items():
                if not any(fact.resources.get(name, 0) >= amount for fact in self.facts):
                    return (
                        f"no worker of the Dask cluster at {scheduler} has the resource {name!r} "
                        f"({amount:g} of it), and none came {waited}; start workers with "
                        f"--resources {name}={amount:g}, or leave it out of resources="
                    )
        if usable:
            return (
                f"the Dask cluster at {scheduler} has {len(usable)} workers"
                f"{' ' * bool(asks)}{asks}, and min_workers={least} were not there {waited}; start "
                "more (cluster.scale(...)), or ask for fewer"
            )
        if small := self.small:
            return (
                f"all workers of the Dask cluster at {scheduler}{' ' * bool(asks)}{asks} have less "
                f"memory ({bytes_text(max(small.values()))}) than the {bytes_text(self.promised)} "
                f"per worker that this fit is planned for, and none with more came {waited}; start "
                "larger ones, or call fit again, with a lower memory_limit"
            )
        if self._full:
            return (
                f"all workers of the Dask cluster at {scheduler}{' ' * bool(asks)}{asks} are "
                f"paused, or about to close, and none went on {waited}; they are paused where "
                "their memory is full: free some, start others, or lower memory_limit"
            )
        return (
            f"the Dask cluster at {scheduler} has no workers{' ' * bool(asks)}{asks}, and none "
            f"came {waited}; start some (cluster.scale(2))"
        )

    def await_workers(self, least: int) -> None:
        """Wait until so many workers can be used.

        Raises
        ------
        TimeoutError
            If they do not come in time.
        """
        self.look(now=True)
        began, wish, again = time.monotonic(), None, False
        reminder = Reminder(at_once=True)
        asks = f" {self.share.asks}" if self.share.asks else ""
        try:
            while len(usable := self.usable()) < least:
                if time.monotonic() - began > self.limits.wait_for_workers:
                    raise TimeoutError(self.absence(least))
                if wish is None:
                    wish = self._wish()
                if reminder.due():
                    text = f"Waits for workers{asks}: {len(usable)} of {least} are there."
                    self.tell(text)
                    if again:  # it takes long, and perhaps nobody hears messages
                        warnings.warn(text, RuntimeWarning, stacklevel=2)
                    again = True
                time.sleep(TICK)
                self.look(now=True)
        finally:
            if wish is not None and not self.lost:
                wish.cancel()

    def _wish(self) -> Any:
        """A task that can only run on a usable worker: what makes an adaptive cluster start one."""
        resources = dict(self.share.resources) or None
        return self.client.submit(
            bool, pure=False, resources=resources, priority=self.share.priority
        )
