"""The same kills for daskdml and its peers: ``python -m benchmarks.peer_kills [--folder F]``.

``--prepare`` writes the rows and ends (Spark may live in another environment, which reads them).

Each cell has a scheduler and two workers, processes of their own, and a client that fits. A kill
strikes in the midst of the fit; where the client ends, it is called again with the same words, on a
new cluster where the old one is gone. A client that has not ended after two minutes hangs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.engine.processes import Processes, closed_port

ROOT = Path(__file__).parents[1]
ROWS, FEATURES, CHUNK = 500_000, 50, 20_000
HANGS = 120.0
MEMORY = {"memory_limit": 4_000_000_000}


def prepare(path: Path) -> None:
    """Rows as a Zarr group, with labels."""
    from daskdml.io import write_dataset

    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, FEATURES), dtype=np.float32) * np.geomspace(1, 10, FEATURES)
    z = X @ rng.standard_normal(FEATURES) / 10 + 2 * rng.standard_normal(ROWS)
    write_dataset(path, X.astype(np.float32), (z > 0).astype(np.int8), chunks=CHUNK)


def prepare_table(path: Path) -> None:
    """The same rows as a Parquet file, for Spark."""
    import pyarrow
    import pyarrow.parquet
    import zarr

    group = zarr.open_group(path, mode="r")
    columns = dict(zip([f"x{k}" for k in range(FEATURES)], np.asarray(group["X"]).T, strict=True))
    table = pyarrow.table(columns | {"label": np.asarray(group["y"]).astype(np.float64)})
    pyarrow.parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=CHUNK)


def _arrays(path: str) -> tuple[Any, Any]:
    import dask.array as da

    return da.from_zarr(f"{path}/X"), da.from_zarr(f"{path}/y")


def fit_daskdml(path: str, client: Any, place: str, solver: str) -> np.ndarray:
    """LogisticRegression, or SGD for several epochs."""
    import daskdml
    from daskdml.engine import run

    run.GROUP_BYTES = 1  # a chunk is a block, as for the others
    model: Any = daskdml.LogisticRegression(solver="lbfgs", tol=1e-9)
    if solver == "sgd":
        model = daskdml.SGDClassifier(max_iter=15, tol=None, random_state=0, n_replicas=2)
    with daskdml.Engine(client, checkpoint=place, every=1.0):
        model.fit(path)
    return np.append(model.coef_, model.intercept_)


def fit_dask_ml(path: str, client: Any, place: str, solver: str) -> np.ndarray:
    """dask-ml's LogisticRegression on persisted arrays."""
    from dask_ml.linear_model import LogisticRegression

    X, y = (array.persist() for array in _arrays(path))
    model = LogisticRegression(solver=solver, tol=1e-6, max_iter=60).fit(X, y)
    return np.append(model.coef_, model.intercept_)


def fit_xgboost(path: str, client: Any, place: str, solver: str) -> np.ndarray:
    """xgboost.dask, 60 rounds of histograms."""
    from xgboost import dask as xgboost

    X, y = _arrays(path)
    data = xgboost.DaskDMatrix(client, X, y)
    options = {"objective": "binary:logistic", "tree_method": "hist", "nthread": 1, "seed": 0}
    found = xgboost.train(client, options, data, num_boost_round=60)
    return np.frombuffer(found["booster"].save_raw("ubj"), np.uint8)


def fit_lightgbm(path: str, client: Any, place: str, solver: str) -> np.ndarray:
    """lightgbm.dask, 60 rounds."""
    import lightgbm

    X, y = _arrays(path)
    model = lightgbm.DaskLGBMClassifier(client=client, n_estimators=60, n_jobs=1, verbose=-1)
    model.fit(X, y)
    return np.frombuffer(model.booster_.model_to_string().encode(), np.uint8)


def fit_spark(path: str, scheduler: str) -> np.ndarray:
    """Spark MLlib's LogisticRegression (L-BFGS) on cached rows."""
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import SparkSession

    local = "127.0.0.1"
    spark = (
        SparkSession.builder.master(scheduler)
        .config("spark.driver.host", local)
        .config("spark.driver.bindAddress", local)
        .config("spark.executor.memory", "2g")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    print("begins", flush=True)
    rows = spark.read.parquet(path.replace(".zarr", ".parquet"))
    gather = VectorAssembler(inputCols=[f"x{k}" for k in range(FEATURES)], outputCol="features")
    rows = gather.transform(rows).select("features", "label").repartition(25).cache()
    fit = LogisticRegression(maxIter=100, tol=1e-9, standardization=False).fit(rows)
    return np.append(fit.coefficients.toArray(), fit.intercept)


class SparkProcesses:
    """A Spark master and two workers, a group of processes each."""

    def __init__(self, n: int, **options: Any) -> None:
        self._stack = ExitStack()
        self.address = f"spark://127.0.0.1:{closed_port()}"
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("master.Master", "--port", port, "--webui-port", "0")
        time.sleep(4)
        self.workers = [self.worker() for _ in range(n)]
        time.sleep(4)

    def worker(self, **options: Any) -> Any:
        """One more worker with one core."""
        more = ("--cores", "1", "--memory", "2g", "--webui-port", "0", self.address)
        return self._start("worker.Worker", *more)

    def _start(self, kind: str, *options: str) -> Any:
        import pyspark

        script = Path(pyspark.__file__).parent / "bin/spark-class"
        command = [str(script), f"org.apache.spark.deploy.{kind}", "--host", "127.0.0.1", *options]
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env=os.environ | {"SPARK_WORKER_DIR": folder},
        )  # fmt: skip
        process.kill = partial(_kill_group, process.pid)  # type: ignore[method-assign]
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def __enter__(self) -> SparkProcesses:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def _kill_group(pid: int) -> None:
    """A worker's executors are in its group."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


FITS = {
    "daskdml lbfgs": (fit_daskdml, "lbfgs"),
    "daskdml sgd": (fit_daskdml, "sgd"),
    "dask-ml lbfgs": (fit_dask_ml, "lbfgs"),
    "xgboost.dask": (fit_xgboost, ""),
    "lightgbm.dask": (fit_lightgbm, ""),
    "Spark MLlib": (fit_spark, "spark"),
}


def client_main(what: str, path: str, scheduler: str, place: str, out: str) -> None:
    """What the client process does."""
    fit, solver = FITS[what]
    if solver == "spark":
        began = time.monotonic()
        np.save(out, fit(path, scheduler))  # type: ignore[call-arg]
        print(json.dumps({"seconds": time.monotonic() - began}), flush=True)
        return
    from distributed import Client

    with Client(scheduler, timeout=30) as client:
        print("begins", flush=True)
        began = time.monotonic()
        np.save(out, fit(path, client, place, solver))
        print(json.dumps({"seconds": time.monotonic() - began}), flush=True)


class _Call:
    def __init__(self, what: str, path: Path, cluster: Any, place: Path, out: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.peer_kills", "--client", what]
        command += [str(path), cluster.address, str(place), str(out)]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.begins, self.seconds = threading.Event(), None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.begins.set()
            if line.startswith("{"):
                self.seconds = json.loads(line)["seconds"]
        self.begins.set()

    def wait(self, seconds: float) -> bool:
        """Whether it ended in time; it is killed if not."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        self._reader.join()
        return True

    @property
    def error(self) -> str:
        """Name of what it was ended by."""
        self.log.seek(0)
        named = re.findall(r"\b\w*(?:Error|Exception|LostScheduler)\b", self.log.read())
        return named[-1] if named else "no reason given"


def _cluster(what: str) -> Any:
    return SparkProcesses(2) if what.startswith("Spark") else Processes(2, **MEMORY)


def _kill(what: str, fault: str, cluster: Any, call: _Call, stack: ExitStack) -> Any:
    """Strike; gives the cluster of the next call."""
    if fault.startswith("a worker"):
        cluster.workers[0].kill()
        cluster.workers[0] = cluster.worker(**MEMORY)
    elif fault.startswith("client"):
        call.process.kill()
    else:
        cluster.scheduler.kill()
        call.wait(HANGS)
        return stack.enter_context(_cluster(what))
    return cluster


def cell(what: str, fault: str, path: Path, scratch: Path, at: float) -> tuple[str, np.ndarray]:
    """What happens, `at` seconds into the fit; the result where there is one."""
    scratch.mkdir()
    out = scratch / "found.npy"
    with ExitStack() as stack:
        cluster = stack.enter_context(_cluster(what))
        began = time.monotonic()
        call = _Call(what, path, cluster, scratch / "fit", out)
        call.begins.wait(60)
        told = []
        if fault:
            time.sleep(at)
            cluster = _kill(what, fault, cluster, call, stack)
        if not call.wait(HANGS):
            return f"hangs (> {HANGS:g} s)", np.zeros(0)
        if not out.exists() and fault.startswith("a worker"):
            return f"fails: {call.error}", np.zeros(0)
        if not out.exists():
            if not fault.startswith("client"):
                told.append(f"fails: {call.error}; ")
            call = _Call(what, path, cluster, scratch / "fit", out)
            if not call.wait(HANGS):
                return f"hangs when called again (> {HANGS:g} s)", np.zeros(0)
        seconds = time.monotonic() - began
        if not out.exists():
            return f"fails: {call.error}", np.zeros(0)
        return "".join(told) + f"{seconds:.1f} s", np.load(out)


def compare(found: np.ndarray, whole: np.ndarray) -> str:
    """In words."""
    if len(found) == 0:
        return ""
    if found.shape == whole.shape and np.array_equal(found, whole):
        return ", same bits"
    if found.dtype == np.uint8 or found.shape != whole.shape:
        return ", another model"
    return f", differs by {np.abs(found - whole).max() / np.abs(whole).max():.1e}"


def main() -> None:
    """All cells, as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--only", default="", help="fits whose names have this")
    parser.add_argument("--prepare", action="store_true", help="write the rows, no more")
    args = parser.parse_args()
    path = args.folder.resolve() / "kills.zarr"
    if not path.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        prepare(path)
        prepare_table(path)
    if args.prepare:
        return
    faults = ("a worker, another comes", "client, called again", "scheduler, called again")
    print("| | undisturbed | once more | " + " | ".join(faults) + " |")
    print("|---" * (3 + len(faults)) + "|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for what in FITS:
            if args.only not in what:
                continue
            place = Path(scratch) / what.replace(" ", "-")
            place.mkdir()
            told, whole = cell(what, "", path, place / "whole", 0.0)
            again, second = cell(what, "", path, place / "again", 0.0)
            cells = [told, again + compare(second, whole)]
            if told.startswith(("hangs", "fails")):
                print(f"| {what} | {told} | " + " | " * (1 + len(faults)), flush=True)
                continue
            at = 0.5 * max(float(told.split()[0]) - 4.0, 1.0)
            for n, fault in enumerate(faults):
                said, found = cell(what, fault, path, place / str(n), at)
                cells.append(said + compare(found, whole))
            print(f"| {what} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client_main(*sys.argv[2:])
    else:
        main()
