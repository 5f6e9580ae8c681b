import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PNG = b"\x89PNG\r\n\x1a\n"


def run(name, *arguments):
    """Run an example as a user does, and return what it prints."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def relative_gap(text):
    """Return the relative gap that a certificate printed says is proven."""
    found = re.search(r"objective \S+ is at most \S+ \((\S+) of it\) above the optimum", text)
    assert found, text
    return float(found[1])


@pytest.mark.cluster
@pytest.mark.slow
def test_the_main_job_keeps_its_promises(tmp_path):
    """Small or large, the main job certifies its tolerance within the memory it promised."""
    out = tmp_path / "out"
    text = run("main_job.py", "--size", "120MB", "--tol", "1e-6", "--out", out)
    assert relative_gap(text) <= 1e-6
    peaks = re.findall(r"Peak memory: .* \((kept|BROKEN)\)", text)
    assert peaks == ["kept", "kept"], text
    assert float(re.search(r"Test accuracy: +(\S+)", text)[1]) > 0.75
    assert "\r" not in text  # no terminal, no line that is written over
    assert (out / "convergence.png").read_bytes().startswith(PNG)
    assert [path.name for path in out.iterdir()] == ["convergence.png"]


def test_the_main_job_asks_the_disk_first(tmp_path):
    """More rows than the disk has room for are refused before anything is written."""
    command = [sys.executable, str(ROOT / "examples/main_job.py"), "--size", "1000TB"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode != 0
    assert "name a smaller --size" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_quick_start_is_certified_and_predicts():
    """Twenty lines write, fit, certify and predict."""
    text = run("quickstart.py")
    assert relative_gap(text) <= 1e-6
    assert float(re.search(r"accuracy: (\S+)", text)[1]) > 0.85


@pytest.mark.s3
def test_the_example_on_s3_predicts_as_in_memory():
    """What is streamed to a bucket is what NumPy rows get."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    text = run("s3.py")
    assert relative_gap(text) <= 1e-4
    assert float(re.search(r"largest difference to NumPy: (\S+)", text)[1]) <= 1e-12


def test_notebooks_are_saved_without_outputs():
    """A notebook in the repository holds no output: running it makes them (nbmake does)."""
    notebooks = list((ROOT / "examples").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") for cell in cells), path.name


PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


@pytest.mark.cluster
@pytest.mark.parametrize("page", [p for p in PAGES if "```python\n" in (ROOT / p).read_text()])
def test_what_a_page_shows_runs(page, tmp_path):
    """The Python of the README and of each page of the documentation runs, from top to bottom."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
