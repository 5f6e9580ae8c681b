"""Damaged stores are a clear error or the right result: never a crash, a hang or a wrong number.

Mutations are drawn from seeds, so that each failure can be repeated. They are made in a process of
its own, whose end would be noticed.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from random import Random

import numpy as np
import pytest

from daskdml import Engine, LogisticRegression, MatrixFactorization
from daskdml.engine.run import Threads
from daskdml.io import convert_ratings, open_dataset, open_ratings, write_dataset

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = [None, True, -1, 0, 1, 2**31, 2**60, 0.5, 1e300, "", "x", "../x", [], [[]], {}, {"a": 1}]


UNTOLD = {
    "attributes", "daskdml",  # without these, it is somebody else's Zarr group
    "sum", "least", "largest", "times",  # numbers of which no checksum tells
}  # fmt: skip


def mutated_json(text, r):
    """JSON of which one value is another, is gone, or has a neighbour."""
    whole = json.loads(text)
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            if key not in UNTOLD:
                places.append((node, key))
            if isinstance(node[key], dict | list) and key != "class_names":
                walk(node[key])

    walk(whole)
    node, key = r.choice(places)
    kind = r.choice(("other", "other", "gone", "new"))
    if kind == "gone":
        del node[key]
    elif kind == "new" and isinstance(node, dict):
        node[r.choice(("shape", "codecs", "x", "data_type"))] = r.choice(HOSTILE)
    else:
        node[key] = r.choice(HOSTILE)
    return json.dumps(whole).encode()


def mutated_bytes(data, r):
    """Bytes that are cut off, longer, or of which some are others."""
    kind = r.choice(("cut", "longer", "flip", "flip", "zeros", "empty"))
    at = r.randrange(max(len(data), 1))
    if kind == "cut":
        return data[:at]
    if kind == "longer":
        return data + r.randbytes(r.randrange(1, 40))
    if kind == "flip" and data:
        return data[:at] + bytes([data[at] ^ (1 << r.randrange(8))]) + data[at + 1 :]
    return bytes(len(data)) if kind == "zeros" else b""


def mutate(folder, r, chunks):
    """Change one object of a store, of `chunks` too."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    metadata = [p for p in files if p.suffix == ".json"]
    others = [p for p in files if p.suffix != ".json"]
    file = r.choice(others if chunks and others and r.random() < 0.6 else metadata)
    data = file.read_bytes()
    if r.random() < 0.1:
        file.unlink()
        return f"{file.relative_to(folder)} removed"
    json_alone = file.suffix == ".json" and r.random() < 0.8
    file.write_bytes(mutated_json(data, r) if json_alone else mutated_bytes(data, r))
    return f"{file.relative_to(folder)} changed"


def rows(folder):
    """Rows in a few chunks."""
    X = np.arange(40.0).reshape(20, 2)
    write_dataset(folder, X, np.where(X[:, 0] > 9, "b", "a"), chunks=5)


def read_rows(folder):
    """All that there is in rows, and the bits of a fit."""
    ds = open_dataset(folder)
    block, _ = ds.read(0, ds.n_rows)
    model = LogisticRegression(C=0.1, tol=1e-2).fit(ds)
    found = [block.X, block.y.astype("U1"), model.coef_, model.classes_.astype("U1")]
    return [np.asarray(x).tobytes() for x in found]


def ratings(folder):
    """Ratings, likewise."""
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((12, 9)) < 0.6)
    convert_ratings((users, items, users * 1.0 + items), folder, grid=(2, 2))


def read_ratings(folder):
    """All blocks in both walks, the ids, and the bits of a fit."""
    stored = open_ratings(folder)
    found = [stored.users.ids, stored.items.ids, np.array([stored.mean(), stored.count()])]
    for walk in ("user", "item"):
        for i, j in np.ndindex(stored.grid):
            block, _ = stored.read(walk, i, j)
            found += [block.indptr, block.indices, block.values]
    model = MatrixFactorization(2, random_state=0, max_iter=1, tol=0).fit(stored)
    return [np.asarray(x).tobytes() for x in (*found, np.asarray(model.user_factors_))]


def checkpoints(folder):
    """A fit that was broken off, with two checkpoints."""
    X = np.random.default_rng(0).standard_normal((60, 3))
    write_dataset(f"{folder}-rows", X, X[:, 0] + X[:, 1] > 0.1, chunks=20, overwrite=True)
    with Engine(Threads(1), checkpoint=folder, every=0):
        LogisticRegression(tol=1e-8, C=10).fit(f"{folder}-rows")


def go_on(folder):
    """The bits of the fit, taken up from what is there."""
    origin = ORIGIN["checkpoints"]
    with Engine(Threads(1), checkpoint=folder, every=1e6), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        model = LogisticRegression(tol=1e-8, C=10).fit(f"{origin}-rows")
    return [model.coef_.tobytes(), model.intercept_.tobytes()]


ORIGIN = {}
KINDS = {
    "rows": (rows, read_rows, True),
    "ratings": (ratings, read_ratings, True),
    "checkpoints": (checkpoints, go_on, True),
}


def try_all(kind, first, last, folder):
    """Mutate and read; what went wrong, as lines."""
    make, read, chunks = KINDS[kind]
    origin = ORIGIN[kind] = Path(folder) / f"{kind}.zarr"
    make(origin)
    expected, wrong = read(origin), []
    for seed in range(first, last):
        r, changed = Random(f"{kind} {seed}"), Path(folder) / f"{kind}-{seed}.zarr"
        sys.stderr.write(f"{kind} {seed}\n")
        shutil.copytree(origin, changed)
        what = mutate(changed, r, chunks)
        try:
            if read(changed) != expected:
                wrong.append(f"{kind} {seed}: {what}: another result")
        except (ValueError, OSError, MemoryError) as error:
            text = str(error)
            if changed.stem not in text and "memory_limit" not in text:
                wrong.append(
                    f"{kind} {seed}: {what}: {type(error).__name__} without a name: {text}"
                )
        except Exception as error:
            wrong.append(f"{kind} {seed}: {what}: {type(error).__name__}: {error}")
        shutil.rmtree(changed)
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_an_error_or_changes_nothing(kind, tmp_path):
    """Whatever happens to an object of a store, in a hundred ways."""
    code = "import sys; from tests.io.test_fuzz import *; kind, n, to = sys.argv[1:]\n"
    code += "print(json.dumps(try_all(kind, 0, int(n), to)))"
    done = subprocess.run(
        [sys.executable, "-c", code, kind, "120", str(tmp_path)],
        capture_output=True, text=True, timeout=120, cwd=ROOT, check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    wrong = json.loads(done.stdout.splitlines()[-1])
    assert not wrong, "\n".join(wrong)
