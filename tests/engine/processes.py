"""A Dask cluster of processes that tests can kill, freeze and cut off, one by one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing import forkserver, get_context
from unittest.mock import patch

import dask

FORKED, FRESH = get_context("forkserver"), get_context("spawn")


def fork_server():
    """Start, once, the process that others are forked from: it has imported what workers need.

    Their environment is its own, so it has what Dask's nannies set for those they spawn.
    """
    modules = ("engine.tasks", "engine.factor_tasks", "io.dataset", "kernels.linear", "kernels.sgd")
    needed = ["distributed.nanny", "scipy.linalg", *(f"daskdml.{name}" for name in modules)]
    forkserver.set_forkserver_preload(needed)  # no scikit-learn: workers never have it
    environment = dask.config.get("distributed.nanny.pre-spawn-environ")
    with patch.dict(os.environ, {name: str(value) for name, value in environment.items()}):
        forkserver.ensure_running()


def serve(kind, before, options, log, told):
    """Be a scheduler or a worker, after the code `before`."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), sys.stderr.fileno())
    exec(before, {})
    asyncio.run(_serve(kind, options, told))


async def _serve(kind, options, told):
    import distributed

    async with getattr(distributed, kind)(**options) as server:
        if kind == "Scheduler":
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell, server)
        told.send(server.address)
        await server.finished()


def tell(scheduler):
    """Print what a scheduler knows of its workers and has done last."""
    lines = [*scheduler.workers.values(), *list(scheduler.transition_log)[-200:]]
    sys.stderr.write("\n".join(map(str, lines)) + "\n")
    sys.stderr.flush()


class Server:
    """A process that serves, fresh if it is to run the code `before`; it ends with this one."""

    def __init__(self, kind, before, options):
        self.log = tempfile.NamedTemporaryFile("r", prefix=f"{kind}-")  # noqa: SIM115 - `close`
        context = FRESH if before else FORKED
        self._told, tell = context.Pipe(duplex=False)
        about = (kind, before, options, self.log.name, tell)
        self._process = context.Process(target=serve, args=about, daemon=True)
        fork_server()
        self._process.start()
        tell.close()
        self.pid, self.kill = self._process.pid, self._process.kill

    def address(self):
        """Where it listens, once it does."""
        return self._told.recv()

    def poll(self):
        """Its exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, seconds):
        """Until it has ended."""
        self._process.join(seconds)
        if self.poll() is None:
            raise TimeoutError(f"the process {self.pid} has not ended within {seconds:g} s")

    def close(self):
        """End it, and let go of it."""
        self.kill()
        self.wait(20)
        self._told.close()
        self.log.close()


class Processes:
    """A scheduler and workers, a process each; use as a context manager."""

    def __init__(self, n=0, before="", **options):
        self._started = []
        about = {"port": 0, "dashboard": False, "host": "127.0.0.1"}
        self.scheduler = self.start("Scheduler", before, **about)
        self.address = self.scheduler.address()
        self.workers = [self.worker(**options) for _ in range(n)]  # clients wait for them

    def worker(self, scheduler=None, **options):
        """One more worker with one thread."""
        about = {"nthreads": 1, "memory_limit": 10**9, "host": "127.0.0.1"} | options
        return self.start("Worker", scheduler_ip=scheduler or self.address, **about)

    def ready(self, client, n):
        """Have exactly n workers that work, old ones as far as they do; gives pids by address."""
        pids = client.run(os.getpid, on_error="ignore")
        for worker in self.workers:
            if worker.pid not in pids.values() or len(pids) > n:
                worker.kill()  # also if it is frozen
                worker.wait(20)
                pids = {a: pid for a, pid in pids.items() if pid != worker.pid}
        self.workers = [worker for worker in self.workers if worker.pid in pids.values()]
        while len(self.workers) < n:
            self.workers.append(self.worker())
        for _ in range(600):
            if len(pids := client.run(os.getpid, on_error="ignore")) == n:
                return pids
            time.sleep(0.1)
        raise TimeoutError(f"{len(pids)} workers instead of {n}")

    def start(self, kind, before="", **options):
        """Start a server in a process that first runs the code `before`."""
        self._started.append(Server(kind, before, options))
        return self._started[-1]

    def _tell(self):
        """Print, for a test that failed, what the servers said and what the scheduler knows."""
        if self.scheduler.poll() is None:
            os.kill(self.scheduler.pid, signal.SIGUSR1)
            time.sleep(1)
        for server in self._started:
            sys.stdout.write(f"--- {server.pid}, {server.poll()}:\n{server.log.read()[-30_000:]}\n")

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        if kind is not None:
            self._tell()
        for server in self._started:
            server.kill()
        for server in self._started:
            server.close()


class Proxy:
    """Forwards TCP connections to an address, until they are to be cut or frozen."""

    def __init__(self, to):
        host, port = to.rpartition("/")[2].split(":")
        self._to = host, int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._flows, self._pairs = threading.Event(), []
        self._flows.set()
        self._open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                here, _ = self._server.accept()
                if not self._open:
                    here.close()
                    continue
                there = socket.create_connection(self._to)
                self._pairs.append((here, there))
                for a, b in ((here, there), (there, here)):
                    threading.Thread(target=self._forward, args=(a, b), daemon=True).start()

    def _forward(self, a, b):
        with suppress(OSError):
            while data := a.recv(65536):
                self._flows.wait()
                b.sendall(data)
        for end in (a, b):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def freeze(self):
        """From now on packets vanish, and connections stay."""
        self._flows.clear()

    def cut(self):
        """Close all connections, and refuse new ones."""
        self._open = False
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Let go of everything."""
        self._flows.set()
        self.cut()
        self._server.close()


class Unreliable(Proxy):
    """Now and then resets a connection, or holds up what goes through it."""

    def __init__(self, to, seed=0, share=0.03, seconds=0.3):
        self._random, self._share, self._seconds = random.Random(seed), share, seconds
        self.resets = self.pauses = 0
        super().__init__(to)

    def _forward(self, a, b):
        with suppress(OSError):
            while data := a.recv(65536):
                drawn = self._random.random()
                if drawn < self._share:
                    self.resets += 1
                    break
                if drawn < 2 * self._share:
                    self.pauses += 1
                    time.sleep(self._seconds)
                b.sendall(data)
        for end in (a, b):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def freeze(pid):
    """SIGSTOP, and wait until it holds."""
    os.kill(pid, signal.SIGSTOP)
    for _ in range(100):
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "T":
                return
        time.sleep(0.01)


def closed_port():
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
