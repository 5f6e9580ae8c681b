"""The command `daskdml`, as it is installed."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import fsspec
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

import daskdml
from daskdml.units import bytes_text


def run(*arguments, **environment):
    """The command's exit code, output and errors."""
    command = [str(Path(sys.executable).parent / "daskdml"), *map(str, arguments)]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


def fitted(place, **options):
    """A fit with two checkpoints; the cells of their rows, newest first, but for name and date.

    They are those of a fit that ends a step earlier, and of this one.
    """
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 4))
    y = (X[:, 0] + rng.standard_normal(500) > 0).astype(int)
    with daskdml.Engine(checkpoint=place, every=0, keep=2, **options):
        model = daskdml.LogisticRegression(solver="newton", tol=1e-10).fit(X, y)
    n = model.n_iter_
    before = daskdml.LogisticRegression(solver="newton", tol=1e-10, max_iter=n - 1)
    with pytest.warns(ConvergenceWarning):
        before.fit(X, y)
    return [
        [step, f"{fit.certificate_.objective:.10g}", f"{fit.certificate_.gap:.2g}"]
        for step, fit in ((f"{n}, the end", model), (f"{n - 1}", before))
    ]


def assert_listed(told, rows, sizes, began):
    """The parameters, a header, and a row for each checkpoint, with the date of its writing."""
    lines = told.splitlines()
    assert "estimator logistic" in lines[0] and "shape 500 x 4" in lines[0] and lines[1] == ""
    cells = [re.split(" {2,}", line) for line in lines[2:]]
    assert cells[0] == ["checkpoint", "written", "step", "objective", "gap", "size"]
    assert [row[0] for row in cells[1:]] == sorted(sizes, reverse=True)
    assert [row[2:] for row in cells[1:]] == [
        [*row, bytes_text(sizes[name])]
        for row, name in zip(rows, sorted(sizes, reverse=True), strict=True)
    ]
    dates = [datetime.fromisoformat(row[1]).timestamp() for row in cells[1:]]
    assert int(began) <= dates[1] <= dates[0] <= time.time()


def test_checkpoints_are_listed(tmp_path):
    """A fit's parameters and a line for each checkpoint, newest first; or that there are none."""
    code, _, told = run("checkpoints", tmp_path)
    assert code == 1 and f"there are no checkpoints at {tmp_path}" in told
    began, place = time.time(), tmp_path / "fit"
    rows = fitted(place)
    sizes = {file.name: file.stat().st_size for file in place.glob("*.state")}
    code, listed, told = run("checkpoints", place)
    assert code == 0 and told == ""
    assert_listed(listed, rows, sizes, began)
    text = (place / "latest.json").read_text()
    (place / "latest.json").write_text(text[:-9])
    code, again, told = run("checkpoints", place)
    assert (code, again) == (0, listed) and (place / "latest.json").read_text() == text[:-9]
    assert told.startswith(f"daskdml: {place}/latest.json is no list") and told.count("\n") == 1


def test_a_list_that_says_too_little(tmp_path):
    """An entry that lacks what a row shows, under a right checksum, is told in one sentence."""
    fitted(tmp_path)
    pointer = json.loads((tmp_path / "latest.json").read_text())
    del pointer["checkpoints"][0]["ended"], pointer["sha256"]
    canonical = json.dumps(pointer, sort_keys=True, separators=(",", ":")).encode()
    pointer["sha256"] = hashlib.sha256(canonical).hexdigest()
    (tmp_path / "latest.json").write_text(json.dumps(pointer))
    for file in tmp_path.glob("*.state"):
        file.unlink()
    code, listed, told = run("checkpoints", tmp_path)
    assert (code, listed) == (1, "") and told.count("\n") == 1
    assert told.startswith(f"daskdml: {tmp_path}/latest.json is no list of checkpoints, or a damag")


def test_versions_and_mistakes():
    """The version is told; an unknown command is told with what there is."""
    assert run("--version")[:2] == (0, f"daskdml {daskdml.__version__}\n")
    code, _, told = run("chekpoints")
    assert code == 2 and "checkpoints" in told


@pytest.mark.s3
def test_checkpoints_in_a_bucket(s3_server):
    """They are listed; a bucket that is not there, or cannot be, is told in one sentence."""
    server = {"AWS_ENDPOINT_URL": s3_server.endpoint}
    server |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    for url, expected in (
        (s3_server.url("none"), f"there are no checkpoints at {s3_server.url('none')}\n"),
        ("s3://nobucket/ck", "no checkpoints at s3://nobucket/ck, for the bucket 'nobucket' is"),
        ("s3://a:b:c/ck", "s3://a:b:c/ck cannot be read (ParamValidationError: "),
    ):
        code, _, told = run("checkpoints", url, **server)
        assert code == 1 and expected in told and told.count("\n") == 1
    began, place = time.time(), s3_server.url("listed")
    rows = fitted(place, storage_options=s3_server.storage_options)
    fs = fsspec.filesystem("s3", **s3_server.storage_options)
    sizes = {file["name"].rpartition("/")[2]: file["size"] for file in fs.ls(place, detail=True)}
    del sizes["latest.json"]
    code, listed, told = run("checkpoints", place, **server)
    assert code == 0 and told == ""
    assert_listed(listed, rows, sizes, began)


def test_checkpoints_on_a_cluster_that_is_not_there():
    """What Hadoop's client raises is told in one sentence that names the URL."""
    pytest.importorskip("hdfs_native")
    code, _, told = run("checkpoints", "hdfs://nosuchservice/ck")
    assert code == 1 and told.startswith("daskdml: hdfs://nosuchservice/ck cannot be read (")
    assert told.count("\n") == 1 and "check the URL" in told
