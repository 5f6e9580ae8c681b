"""What a loss costs: work that is done twice after a worker died, and after the client did.

python -m benchmarks.losses [--runs 5] [--folder out/benchmarks] [--sweeps 24]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.data import W1
from benchmarks.ratings_data import W4

EVERY = "1s"
FITS = ("newton", "sgd", "als")


def make(name: str, sweeps: int) -> Any:
    """A model whose fit takes half a minute or so."""
    import daskdml

    if name == "newton":
        return daskdml.LogisticRegression(tol=1e-12, solver="newton", max_iter=sweeps)
    if name == "sgd":
        return daskdml.SGDClassifier(
            loss="log_loss", max_iter=sweeps, tol=None, n_replicas=2, random_state=0
        )
    return daskdml.MatrixFactorization(32, max_iter=sweeps, tol=0.0, random_state=0)


def fit(name: str, path: str, sweeps: int, scheduler: str, checkpoint: str) -> None:
    """Fit in this process, and tell what the segments took and which blocks were computed when."""
    from dask.distributed import Client

    import daskdml
    from daskdml.engine.place import TOPIC
    from daskdml.io import open_dataset, open_ratings

    data = open_ratings(path) if name == "als" else open_dataset(path)
    keep = {"checkpoint": checkpoint, "every": EVERY} if checkpoint else {}
    with Client(scheduler, set_as_default=False) as client:
        print("began", flush=True)
        with daskdml.Engine(client, **keep):
            start, began = time.time(), time.perf_counter()
            model = make(name, sweeps).fit(data)
            seconds = time.perf_counter() - began
        blocks = [b for _, b in client.get_events(TOPIC) if b["load_began"] > start]
    found = model.user_factors_ if name == "als" else model.coef_
    history = model.history_.to_frame()
    told = {"seconds": seconds, "segment": float(history.seconds.diff().median())}
    print("RESULT " + json.dumps(told | {"bits": found.tobytes().hex()[:200], "blocks": blocks}))


class Child:
    """A process that fits."""

    def __init__(self, *arguments: Any) -> None:
        command = [sys.executable, "-m", "benchmarks.losses", "fit", json.dumps(arguments)]
        self.began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def result(self) -> dict[str, Any]:
        """What it tells at its end, with the seconds of the whole process."""
        assert self.process.stdout is not None
        lines = self.process.stdout.read().splitlines()
        self.process.wait()
        seconds = time.perf_counter() - self.began
        found = json.loads(next(line[7:] for line in lines if line.startswith("RESULT ")))
        return {**found, "process": seconds}


@contextmanager
def cluster() -> Iterator[Any]:
    """Two worker processes with nannies, which start them again."""
    import dask
    from dask.distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": "4GB"}
    # Else a worker that is killed twice, 15 s apart, is closed for good.
    patient = {"distributed.deploy.lost-worker-timeout": "1h"}
    with (
        dask.config.set(patient),
        LocalCluster(dashboard_address=None, silence_logs=50, **options) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


def repeated(blocks: list[dict[str, Any]]) -> tuple[int, float]:
    """How many blocks were computed twice, and the seconds of that."""
    seen: set[Any] = set()
    twice, seconds = 0, 0.0
    for block in blocks:
        key = block["graph"], block["index"]
        if key in seen:
            twice += 1
            seconds += block["compute"] + block["load_ended"] - block["load_began"]
        seen.add(key)
    return twice, seconds


def losses(name: str, path: Path, runs: int, sweeps: int) -> None:
    """Kill a worker, then a client, at random moments of a fit, and print what it cost."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, cluster() as client:
        results = [Child(name, str(path), sweeps, client.scheduler.address, "").result()]
        with_checkpoints = []
        for run in range(runs):
            results.append(Child(name, str(path), sweeps, client.scheduler.address, "").result())
            place = f"{folder}/whole-{run}"
            with_checkpoints.append(
                Child(name, str(path), sweeps, client.scheduler.address, place).result()
            )
        plain = statistics.median(r["seconds"] for r in results[1:])
        alone = statistics.median(r["process"] for r in with_checkpoints)
        segment = statistics.median(r["segment"] for r in results[1:])
        n = len(results[-1]["blocks"]) - repeated(results[-1]["blocks"])[0]
        print(f"{name}: undisturbed {plain:.1f} s, a step {segment:.2f} s, {n} blocks", flush=True)
        bits = results[0]["bits"]

        cost, twice, spent = [], [], []
        for _ in range(runs):
            child = Child(name, str(path), sweeps, client.scheduler.address, "")
            pid = draw.choice(list(client.run(os.getpid).values()))
            moment = draw.uniform(0.2, 0.8) * plain
            threading.Timer(moment, os.kill, (pid, signal.SIGKILL)).start()
            found = child.result()
            assert found["bits"] == bits
            again, seconds = repeated(found["blocks"])
            cost.append(found["seconds"] - plain)
            twice.append(again)
            spent.append(seconds)
            client.wait_for_workers(2, timeout=60)
        tell("a worker killed", cost, twice, spent)

        cost = []
        for run in range(runs):
            place = f"{folder}/killed-{run}"
            child = Child(name, str(path), sweeps, client.scheduler.address, place)
            time.sleep(draw.uniform(0.2, 0.8) * plain)
            child.kill()
            first = time.perf_counter() - child.began
            found = Child(name, str(path), sweeps, client.scheduler.address, place).result()
            assert found["bits"] == bits
            cost.append(first + found["process"] - alone)
        tell("the client killed, called again", cost)


def tell(what: str, cost: list[float], *more: list[float]) -> None:
    """Print medians, with the smallest and the largest."""
    texts = [
        f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) {unit}"
        for values, unit in zip(
            (cost, *more), ("s more", "blocks twice", "s of their work"), strict=False
        )
    ]
    print(f"  {what}: {', '.join(texts)}", flush=True)


def main() -> None:
    """Parse the command line and run all fits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--sweeps", type=int, default=24, help="passes of each fit")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows, ratings = W1.write(args.folder), W4.write_grid(args.folder)
    for name in FITS:
        losses(name, ratings if name == "als" else rows, args.runs, args.sweeps)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:
        fit(*json.loads(sys.argv[2]))
    else:
        main()
