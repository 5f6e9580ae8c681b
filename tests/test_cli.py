"""The command `daskdml`, as it is installed."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import daskdml


def run(*arguments):
    """The command's exit code, output and errors."""
    command = [str(Path(sys.executable).parent / "daskdml"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
