"""The command `daskdml`, as it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import daskdml


def run(*arguments, **environment):
    """The command's exit code, output and errors."""
    command = [str(Path(sys.executable).parent / "daskdml"), *map(str, arguments)]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_checkpoints_are_listed(tmp_path):
    """A fit's parameters and a line for each checkpoint, newest first; or that there are none."""
    code, _, told = run("checkpoints", tmp_path)
    assert code == 1 and f"there are no checkpoints at {tmp_path}" in told
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 4))
    y = (X[:, 0] + rng.standard_normal(500) > 0).astype(int)
    with daskdml.Engine(checkpoint=tmp_path / "fit", every=0, keep=2):
        daskdml.LogisticRegression(solver="newton", tol=1e-10).fit(X, y)
    code, told, _ = run("checkpoints", tmp_path / "fit")
    lines = told.splitlines()
    assert code == 0 and "estimator logistic" in lines[0] and "shape 500 x 4" in lines[0]
    assert lines[2].split() == ["checkpoint", "written", "step", "objective", "gap", "size"]
    assert len(lines) == 5 and "the end" in lines[3] and "the end" not in lines[4]


def test_versions_and_mistakes():
    """The version is told; an unknown command is told with what there is."""
    assert run("--version")[:2] == (0, f"daskdml {daskdml.__version__}\n")
    code, _, told = run("chekpoints")
    assert code == 2 and "checkpoints" in told


@pytest.mark.s3
def test_checkpoints_in_a_bucket(s3_server):
    """A bucket that is not there, or whose name none can have, is told in one sentence."""
    server = {"AWS_ENDPOINT_URL": s3_server.endpoint}
    server |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    for url, expected in (
        (s3_server.url("none"), f"there are no checkpoints at {s3_server.url('none')}\n"),
        ("s3://nobucket/ck", "no checkpoints at s3://nobucket/ck, for the bucket 'nobucket' is"),
        ("s3://a:b:c/ck", "s3://a:b:c/ck cannot be read (ParamValidationError: "),
    ):
        code, _, told = run("checkpoints", url, **server)
        assert code == 1 and expected in told and told.count("\n") == 1


def test_checkpoints_on_a_cluster_that_is_not_there():
    """What Hadoop's client raises is told in one sentence that names the URL."""
    pytest.importorskip("hdfs_native")
    code, _, told = run("checkpoints", "hdfs://nosuchservice/ck")
    assert code == 1 and told.startswith("daskdml: hdfs://nosuchservice/ck cannot be read (")
    assert told.count("\n") == 1 and "check the URL" in told
