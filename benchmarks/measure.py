"""Run a case in a process of its own; wall time, and peak memory of its whole process tree."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr


def run_case(
    name: str, *, module: str = "benchmarks.cases", python: str = sys.executable, **arguments: Any
) -> dict[str, Any]:
    """Result of one run, with `peak`: the largest sum of resident bytes over its processes.

    `module` has the case, and `python` runs it: one that has the peers, say.
    """
    for file in Path(arguments["path"]).rglob("*"):  # as far as memory allows, none reads the disk
        if file.is_file():
            file.read_bytes()
    arguments["path"] = str(arguments["path"])
    command = [python, "-m", module, name, json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True)
        peak = _Peak(process.pid)
        peak.start()
        code = process.wait()
        peak.join()
        out.seek(0)
        lines = [line for line in out if line.startswith("RESULT ")]
        if code or not lines:
            err.seek(0)
            raise RuntimeError(f"{name} failed:\n{err.read()[-3000:]}")
    return {**json.loads(lines[-1][7:]), "peak": peak.peak}


class _Peak(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak = 0

    def run(self) -> None:
        while self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            total = 0
            try:
                for p in [self.process, *self.process.children(recursive=True)]:
                    total += p.memory_info().rss
            except psutil.Error:
                pass
            self.peak = max(self.peak, total)
            time.sleep(0.05)


def spread_of(times: list[float]) -> dict[str, Any]:
    """The median of some seconds, with the smallest and the largest of them."""
    return {"seconds": statistics.median(times), "spread": (min(times), max(times))}


def median_run(times: int, name: str, **arguments: Any) -> dict[str, Any]:
    """The run of median `seconds` of several, with the smallest and the largest of them."""
    runs = sorted((run_case(name, **arguments) for _ in range(times)), key=lambda r: r["seconds"])
    return {**runs[len(runs) // 2], **spread_of([r["seconds"] for r in runs])}


def objective(path: Path, result: dict[str, Any], C: float = 1.0) -> float:
    """Mean log-loss + |w|^2 / (2 C n) of a solution, in float64, read chunk by chunk."""
    group = zarr.open_group(path, mode="r")
    X, y = group["X"], group["y"][:]
    w, b = np.atleast_2d(result["coef"]), np.ravel(result["intercept"])
    total = 0.0
    for start in range(0, X.shape[0], X.chunks[0]):
        rows = X[start : start + X.chunks[0]].astype(np.float64)
        labels = y[start : start + len(rows)].astype(int)
        z = rows @ w.T + b
        if len(w) == 1:
            total += float(np.logaddexp(0, np.where(labels > 0, -1, 1) * z[:, 0]).sum())
        else:
            top = z.max(axis=1)
            total += float((np.log(np.exp(z - top[:, None]).sum(1)) + top).sum())
            total -= float(z[np.arange(len(z)), labels].sum())
    return total / X.shape[0] + float((w**2).sum()) / (2 * C * X.shape[0])


def covariance(path: Path) -> np.ndarray:
    """Covariance of the rows (divided by their number), in float64, read chunk by chunk."""
    X = zarr.open_group(path, mode="r")["X"]
    n, d = X.shape
    total, products, shift = np.zeros(d), np.zeros((d, d)), X[: X.chunks[0]].mean(0, np.float64)
    for start in range(0, n, X.chunks[0]):
        rows = X[start : start + X.chunks[0]] - shift
        total += rows.sum(axis=0)
        products += rows.T @ rows
    return products / n - np.outer(total / n, total / n)


def inertia_of_labels(path: Path) -> float:
    """Sum of squared distances of the rows X to the means of those with the same y, in float64."""
    group = zarr.open_group(path, mode="r")
    X, y = group["X"], group["y"][:]
    k, d = int(y.max()) + 1, X.shape[1]
    counts, sums, squares = np.bincount(y, minlength=k), np.zeros((k, d)), 0.0
    for start in range(0, X.shape[0], X.chunks[0]):
        rows = X[start : start + X.chunks[0]].astype(np.float64)
        np.add.at(sums, y[start : start + len(rows)], rows)
        squares += float(np.square(rows).sum())
    return squares - float((np.square(sums).sum(axis=1) / counts).sum())
