"""Faults x work: what happens, and what it costs; ``python -m tests.faults.matrix`` writes it down.

Each cell is a cluster of processes of its own: a scheduler, two workers, and a client that does the
work. The fault strikes at a random moment of it. Where that ends the client, another one is called
with the same words, on a new cluster where the old one is gone.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from s3fs import S3FileSystem

from tests.engine.processes import Processes, Proxy, Unreliable, freeze
from tests.faults.work import WORK, prepare
from tests.servers.s3 import s3

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- fault matrix: begin -->\n", "<!-- fault matrix: end -->\n"
LIMITS = {"DASK_DASKDML__WORKER_SILENCE": "5s", "DASK_DASKDML__SCHEDULER_SILENCE": "10s"}
ON_RATINGS = ("als", "dsgd")
ENDS_CLIENT = 3  # calls of the client that a cell may take


class Client:
    """A client process; its lines are read as they come."""

    def __init__(self, work: str, folder: Path, scheduler: str, rows: str, options: str = "null",
                 limit: int = 0, times: int = 1) -> None:  # fmt: skip
        command = [sys.executable, "-m", "tests.faults.work", work, str(folder), scheduler]
        self.process = subprocess.Popen(
            [*command, rows, options, str(limit), str(times)], cwd=ROOT, env=os.environ | LIMITS,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.begins = threading.Event()
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
            else:
                self.end = told
        self.begins.set()

    def _err(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def wait(self, seconds: float = 120) -> None:
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
    rows : str
        URL of the rows.
    options : str
        JSON of its storage options.
    """

    folder: Path
    rows: str
    options: str = "null"
    limit: int = 0
    times: int = 1
    stack: ExitStack = field(default_factory=ExitStack)
    proxied: bool = False
    remote: bool = False

    def __post_init__(self) -> None:
        self.unreliable: Unreliable | None = None
        if self.remote:
            self._move_rows()
        self.cluster = self.stack.enter_context(Processes(0))
        self.proxy: Proxy | None = None
        first = None
        if self.proxied:
            self.proxy = Proxy(self.cluster.address)
            self.stack.callback(self.proxy.close)
            first = self.proxy.address
        self.cluster.workers = [self.cluster.worker(first), self.cluster.worker()]

    def _move_rows(self) -> None:
        server = self.stack.enter_context(s3())
        fs = S3FileSystem(**server.storage_options)
        fs.put(self.rows, server.url("rows.zarr").removeprefix("s3://"), recursive=True)
        self.unreliable = Unreliable(server.endpoint.removeprefix("http:"))
        self.stack.callback(self.unreliable.close)
        endpoint = self.unreliable.address.replace("tcp", "http")
        self.rows = server.url("rows.zarr")
        self.options = json.dumps(server.storage_options | {"endpoint_url": endpoint})

    def call(self, work: str) -> Client:
        """Call the work."""
        return Client(
            work, self.folder, self.cluster.address, self.rows, self.options, self.limit,
            self.times,
        )  # fmt: skip


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

    @property
    def remote(self) -> bool:
        """Whether it concerns the store of the rows alone."""
        return bool(self.prepare.get("remote"))


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
    """Files cannot grow in the first call (a limit of the process); they can in the second."""
    client.wait()
    site.limit = 0


def be_patient(site: Site, client: Client) -> None:
    """The rows lie on S3, behind a proxy that resets connections and holds up others."""
    client.wait(300)
    assert site.unreliable is not None and site.unreliable.resets > 0


FAULTS = (
    Fault("worker killed", kill_a_worker),
    Fault("worker frozen (found after 5 s)", freeze_a_worker),
    Fault("all workers killed, new ones come", kill_all_workers),
    Fault("scheduler killed, called again", kill_the_scheduler),
    Fault("client killed, called again", kill_the_client, local=True),
    Fault("network cut", cut_the_network, prepare={"proxied": True}),
    Fault("network silent (found after 5 s)", silence_the_network, prepare={"proxied": True}),
    Fault("S3 resets and stalls", be_patient, prepare={"remote": True}),
    Fault("disk full, called again", fill_the_disk, local=True, prepare={"limit": 3000}),
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
    begins : float
        Seconds until the work began.
    """

    digest: str
    parts: dict[str, str]
    seconds: float
    begins: float


def copy(base: Path, folder: Path) -> Path:
    """The data at a place of its own."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    return folder


def undisturbed(work: str, base: Path, folder: Path, times: int = 1) -> Undisturbed:
    """Do a piece of work without faults."""
    site = Site(copy(base, folder), str(folder / "rows.zarr"), times=times)
    with site.stack:
        began = time.monotonic()
        client = site.call(work)
        client.begins.wait()
        begins = time.monotonic() - began
        client.wait(120 * times)
        assert client.end is not None, client.errors
        assert not client.end["left"], client.end["left"]
        return Undisturbed(
            str(client.end["digest"]), dict(client.end["parts"]), time.monotonic() - began, begins,  # type: ignore[call-overload]
        )  # fmt: skip


def strike(
    fault: Fault, work: str, base: Path, folder: Path, whole: Undisturbed, random: random.Random
) -> tuple[bool, float, int]:
    """Whether the bits are the same, the seconds lost, and how often the client was called."""
    site = Site(copy(base, folder), str(folder / "rows.zarr"), **fault.prepare)  # type: ignore[arg-type]
    with site.stack:
        began, calls, client = time.monotonic(), 1, site.call(work)
        client.begins.wait()
        time.sleep(random.uniform(0.1, 0.8) * (whole.seconds - whole.begins))
        fault.strike(site, client)
        client.wait()
        while client.end is None and calls < ENDS_CLIENT:
            calls, client = calls + 1, site.call(work)
            client.wait()
        if client.end is None:
            raise RuntimeError(f"{work}, {fault.name}: {client.errors[-2000:]}")
        lost = time.monotonic() - began - whole.seconds
        if client.end["digest"] != whole.digest:
            print(f"{work}, {fault.name}: {client.end} is not {whole}", flush=True)
        return client.end["digest"] == whole.digest, lost, calls


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
                if (w == "convert" and not fault.local) or (fault.remote and w in ON_RATINGS):
                    cells.append("-")
                    continue
                folder = Path(scratch) / f"cell-{len(rows)}-{w}"
                same, lost, _ = strike(fault, w, base, folder, wholes[w], rng)
                shutil.rmtree(folder)
                cells.append(f"{'same bits' if same else 'OTHER BITS'}, {lost:+.1f} s")
                print(f"{fault.name}, {w}: {cells[-1]}", flush=True)
            rows.append([fault.name, *cells])
    return [["", *work], ["undisturbed", *(f"{wholes[w].seconds:.1f} s" for w in work)], *rows]


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def main() -> None:
    """Write the whole matrix into the documentation."""
    text = table(matrix(FAULTS, WORK, 0))
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
