"""Faults x work: what happens, and what it costs; ``python -m tests.faults.matrix`` writes it down.

``--fault "disk full"`` only shows the rows of faults whose names begin so.

Each cell is a cluster of processes of its own: a scheduler, two workers, and a client that does the
work. The fault strikes at a random moment of it, and again where that was too late. Where that ends
the client, another one is called with the same words, on a new cluster where the old one is gone.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from s3fs import S3FileSystem

from tests.engine.processes import Processes, Proxy, Unreliable, freeze
from tests.faults.work import FITS, WORK, prepare
from tests.servers.s3 import s3

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- fault matrix: begin -->\n", "<!-- fault matrix: end -->\n"
LIMITS = {"DASK_DASKDML__WORKER_SILENCE": "5s", "DASK_DASKDML__SCHEDULER_SILENCE": "10s"}
DISK_FULL = "disk full (fits go on, writes are called again)"
FULL = os.strerror(errno.EFBIG)
ENDS_CLIENT = 3  # calls of the client that a cell may take
STRIKES = 3  # of which one must fall within the work


class Client:
    """A client process; its lines are read as they come."""

    def __init__(self, work: str, *about: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.work", work, *about], cwd=ROOT,
            env=os.environ | LIMITS, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.work = work
        self.begins = threading.Event()
        self.over: float | None = None  # when the work was, by time.monotonic()
        self.end: dict[str, object] | None = None
        self.errors = ""
        self._readers = [threading.Thread(target=t, daemon=True) for t in (self._out, self._err)]
        for reader in self._readers:
            reader.start()

    def _out(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            if "begins" in told:
                self.begins.set()
            elif "over" in told:
                self.over = told["over"]
            else:
                self.end = told
        self.begins.set()

    def _err(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def wait(self, seconds: float = 600) -> None:
        """Until it has ended."""
        self.process.wait(seconds)
        for reader in self._readers:
            reader.join()


@dataclass
class Site:
    """A cluster with its client, for a fault to strike.

    Parameters
    ----------
    folder : Path
        With the data.
    times : int
        How long the work is.
    proxied : bool
        Whether a worker's connection to the scheduler can be cut.
    remote : bool
        Whether everything lies on S3, behind a proxy that resets connections and holds up others.
    """

    folder: Path
    times: int = 1
    stack: ExitStack = field(default_factory=ExitStack)
    proxied: bool = False
    remote: bool = False

    def __post_init__(self) -> None:
        self.place, self.options = str(self.folder), "{}"
        self.unreliable: Unreliable | None = None
        if self.remote:
            self._move()
        self.cluster = self.stack.enter_context(Processes(0))
        self.proxy: Proxy | None = None
        first = None
        if self.proxied:
            self.proxy = Proxy(self.cluster.address)
            self.stack.callback(self.proxy.close)
            first = self.proxy.address
        self.cluster.workers = [self.cluster.worker(first), self.cluster.worker()]

    def _move(self) -> None:
        server = self.stack.enter_context(s3())
        self.place = server.url("faults")
        fs = S3FileSystem(**server.storage_options)
        fs.put(f"{self.folder}/", self.place, recursive=True)
        self.unreliable = Unreliable(server.endpoint.removeprefix("http:"))
        self.stack.callback(self.unreliable.close)
        endpoint = self.unreliable.address.replace("tcp", "http")
        self.options = json.dumps(server.storage_options | {"endpoint_url": endpoint})

    def call(self, work: str) -> Client:
        """Call the work."""
        return Client(work, self.place, self.options, self.cluster.address, str(self.times))


@dataclass(frozen=True)
class Fault:
    """Something that happens.

    Parameters
    ----------
    name : str
    strike : callable
        Given the site and the client.
    local : bool
        Whether it concerns work that uses no cluster.
    prepare : dict
        Of the site.
    """

    name: str
    strike: Callable[[Site, Client], None]
    local: bool = False
    prepare: dict[str, object] = field(default_factory=dict)

    def concerns(self, work: str) -> bool:
        """Whether it can strike a piece of work."""
        return work != "convert" or self.local


def kill_a_worker(site: Site, client: Client) -> None:
    """One of two, at once."""
    site.cluster.workers[0].kill()


def freeze_a_worker(site: Site, client: Client) -> None:
    """It keeps its connections, and does nothing."""
    freeze(site.cluster.workers[0].pid)


def kill_all_workers(site: Site, client: Client) -> None:
    """Two new ones come after a second."""
    for worker in site.cluster.workers:
        worker.kill()
    time.sleep(1)
    site.cluster.workers = [site.cluster.worker(), site.cluster.worker()]


def kill_the_scheduler(site: Site, client: Client) -> None:
    """And with it the cluster: a new one is started, and the client called again."""
    site.cluster.scheduler.kill()
    client.wait()
    site.cluster = site.stack.enter_context(Processes(2))


def kill_the_client(site: Site, client: Client) -> None:
    """It is called again."""
    client.process.send_signal(signal.SIGKILL)


def cut_the_network(site: Site, client: Client) -> None:
    """Between a worker and the scheduler."""
    assert site.proxy is not None
    site.proxy.cut()


def silence_the_network(site: Site, client: Client) -> None:
    """Packets between a worker and the scheduler vanish."""
    assert site.proxy is not None
    site.proxy.freeze()


def fill_the_disk(site: Site, client: Client) -> None:
    """No file of the client and the workers can grow, until the client has ended.

    A fit that could never write a checkpoint is refused: one is there already.
    """
    kept = site.folder / f"{client.work}.fit/latest.json"
    while client.work in FITS and client.process.poll() is None and not kept.exists():
        time.sleep(0.01)
    struck = [client.process.pid, *(worker.pid for worker in site.cluster.workers)]
    before = [limit_files(pid, 0) for pid in struck]
    client.wait()
    for pid, nbytes in zip(struck[1:], before[1:], strict=True):
        limit_files(pid, nbytes)


def limit_files(pid: int, nbytes: int) -> int:
    """Let a process write up to so many bytes to a file; gives how many it was allowed before."""
    with suppress(ProcessLookupError):  # it has just ended
        before, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (nbytes, most))
        return before
    return resource.RLIM_INFINITY


def be_patient(site: Site, client: Client) -> None:
    """What is read and written, checkpoints too, lies on S3 behind an unreliable network."""
    client.wait()
    assert site.unreliable is not None and site.unreliable.resets > 0


FAULTS = (
    Fault("worker killed", kill_a_worker),
    Fault("worker frozen (found after 5 s)", freeze_a_worker),
    Fault("all workers killed, new ones come", kill_all_workers),
    Fault("scheduler killed, called again", kill_the_scheduler),
    Fault("client killed, called again", kill_the_client, local=True),
    Fault("network cut", cut_the_network, prepare={"proxied": True}),
    Fault("network silent (found after 5 s)", silence_the_network, prepare={"proxied": True}),
    Fault("S3 resets and stalls", be_patient, local=True, prepare={"remote": True}),
    Fault(DISK_FULL, fill_the_disk, local=True),
)


@dataclass(frozen=True)
class Undisturbed:
    """A piece of work without faults.

    Parameters
    ----------
    digest : str
        Of what came out.
    parts : dict
        Of each part of it.
    seconds : float
        From the start of the client to its end.
    begins, over : float
        Seconds until the work began, and until it was over.
    """

    digest: str
    parts: dict[str, str]
    seconds: float
    begins: float
    over: float


@dataclass(frozen=True)
class Struck:
    """What became of a piece of work that a fault has struck.

    Parameters
    ----------
    same : bool
        Whether the bits are those of undisturbed work.
    lost : float
        Seconds more than undisturbed.
    calls : int
        How often the client was called.
    within : bool
        Whether the fault fell within the work; a full disk, whether a write failed, too.
    """

    same: bool
    lost: float
    calls: int
    within: bool


def copy(base: Path, folder: Path) -> Path:
    """The data at a place of its own."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    return folder


def undisturbed(work: str, base: Path, folder: Path, times: int = 1) -> Undisturbed:
    """Do a piece of work without faults."""
    site = Site(copy(base, folder), times=times)
    with site.stack:
        began = time.monotonic()
        client = site.call(work)
        client.begins.wait()
        begins = time.monotonic() - began
        client.wait()
        assert client.end is not None, client.errors
        assert not client.end["left"], client.end["left"]
        assert client.over is not None
        return Undisturbed(
            str(client.end["digest"]), dict(client.end["parts"]), time.monotonic() - began, begins,  # type: ignore[call-overload]
            client.over - began,
        )  # fmt: skip


def strike(
    fault: Fault, work: str, base: Path, folder: Path, whole: Undisturbed, random: random.Random
) -> Struck:
    """Strike a piece of work, again and earlier where the fault came too late."""
    for n in range(STRIKES):
        wait = random.uniform(0.1, 0.8) / 2**n * (whole.over - whole.begins)
        struck = _strike(fault, work, base, folder / str(n), whole, wait)
        if struck.within:
            return struck
    raise RuntimeError(f"{work}, {fault.name}: not struck within the work {STRIKES} times")


def _strike(
    fault: Fault, work: str, base: Path, folder: Path, whole: Undisturbed, wait: float
) -> Struck:
    site = Site(copy(base, folder), **fault.prepare)  # type: ignore[arg-type]
    with site.stack:
        began, calls, client = time.monotonic(), 1, site.call(work)
        client.begins.wait()
        time.sleep(wait)
        at = time.monotonic()
        fault.strike(site, client)
        client.wait()
        within = client.over is None or at < client.over
        if fault.strike is fill_the_disk:
            felt = bool(client.end and client.end["unwritten"])
            within = felt if work in FITS else FULL in client.errors
        while client.end is None and calls < ENDS_CLIENT:
            calls, client = calls + 1, site.call(work)
            client.wait()
        if client.end is None:
            raise RuntimeError(f"{work}, {fault.name}: {client.errors[-2000:]}")
        lost = time.monotonic() - began - whole.seconds
        if client.end["digest"] != whole.digest:
            print(f"{work}, {fault.name}: {client.end} is not {whole}", flush=True)
        return Struck(client.end["digest"] == whole.digest, lost, calls, within)


def matrix(faults: tuple[Fault, ...], work: tuple[str, ...], seed: int) -> list[list[str]]:
    """A row for each fault, with a cell for each work."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        base.mkdir()
        prepare(base)
        wholes = {w: undisturbed(w, base, Path(scratch) / f"whole-{w}") for w in work}
        rows = []
        for fault in faults:
            cells = []
            for w in work:
                if not fault.concerns(w):
                    cells.append("-")
                    continue
                folder = Path(scratch) / f"cell-{len(rows)}-{w}"
                struck = strike(fault, w, base, folder, wholes[w], rng)
                shutil.rmtree(folder)
                bits = "same bits" if struck.same else "OTHER BITS"
                cells.append(f"{bits}, {struck.lost:+.1f} s")
                print(f"{fault.name}, {w}: {cells[-1]}, calls: {struck.calls}", flush=True)
            rows.append([fault.name, *cells])
    return [["", *work], ["undisturbed", *(f"{wholes[w].seconds:.1f} s" for w in work)], *rows]


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def main() -> None:
    """Write the whole matrix into the documentation, or show some of its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", default="", help="how the faults' names begin; only shows them")
    some = parser.parse_args().fault
    text = table(matrix(tuple(f for f in FAULTS if f.name.startswith(some)), WORK, 0))
    if some:
        print(text)
        return
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
