import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import daskdml

ROOT = Path(__file__).resolve().parent.parent
LIGHT = ("daskdml", "daskdml.events", "daskdml.kernels", "daskdml.io", "daskdml.engine")


def modules_after(imports):
    """Return the top-level modules loaded in a new interpreter after `imports`."""
    code = f"import json, sys; {imports}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize("module", LIGHT)
def test_what_workers_import_is_light(module):
    """The package and its lower floors load neither scikit-learn nor anything that draws."""
    loaded = modules_after(f"import {module}")
    assert not loaded & {"sklearn", "distributed", "matplotlib", "pandas", "s3fs", "bokeh"}


def test_diagnostics_import_what_draws_only_to_draw():
    """A progress bar in a script costs no plotting library."""
    loaded = modules_after("import daskdml.diagnostics")
    assert not loaded & {"sklearn", "distributed", "matplotlib", "pandas", "IPython", "dask"}


def test_public_names_exist():
    """Every name in `__all__` can be had, and `dir` lists it."""
    for name in daskdml.__all__:
        assert getattr(daskdml, name) is not None
        assert name in dir(daskdml)


def test_the_package_is_typed():
    """Type checkers of those who use the package find its marker."""
    assert Path(daskdml.__file__).with_name("py.typed").exists()


def test_no_floor_knows_the_one_above():
    """The contracts of import-linter are kept."""
    command = "from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-logo", "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


def test_each_dependency_has_a_lower_bound():
    """No release is installed that the tests never ran on, as far back as that can be said."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    for requirement in [*project["dependencies"], *extras]:
        assert ">=" in requirement or requirement.startswith("daskdml["), requirement


def test_run_says_what_it_knows():
    """A command that does not exist is named, with those that do, and nothing is installed."""
    done = subprocess.run(
        [sys.executable, "run.py", "tset"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "'tset'" in done.stdout
    assert "demo, test, bench, docs" in done.stdout
