"""One command for each thing a newcomer wants; it sets up all that it needs by itself.

    python3 run.py demo [--size 2.4GB] ...    the main job: train on data larger than memory
    python3 run.py test [pytest arguments]    everything that CI runs
    python3 run.py bench ...                  the benchmarks
    python3 run.py docs                       the documentation, into docs/_build/html

The first run makes a virtual environment beside this file (.venv, or where the environment
variable DASKDML_VENV says) and installs the project into it; later runs install again only after
pyproject.toml changed. `--fresh` before the command uses a new environment, thrown away afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST = (3, 11)
EXTRAS = {"demo": "plot", "test": "dev", "bench": "dev", "docs": "dev"}


class SetupError(Exception):
    """The environment could not be made; the text says why and what to do."""


def environment_python(venv: Path) -> Path:
    """Return the interpreter inside the virtual environment `venv`."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def works(python: Path) -> bool:
    """Tell whether `python` is there and has pip, so that a half-made environment is made again."""
    try:
        done = subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def make_environment(venv: Path) -> None:
    """Make the virtual environment, unless a working one is there."""
    if works(environment_python(venv)):
        return
    if venv.exists() and not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
        raise SetupError(
            f"{venv} is not empty and no virtual environment; name another place in DASKDML_VENV."
        )
    print(f"Making a virtual environment in {venv}", flush=True)
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)])
    if done.returncode:
        raise SetupError(
            "Python could not make a virtual environment (see above); on Debian and Ubuntu "
            "the package python3-venv provides what is missing."
        )


def install(venv: Path, extra: str) -> None:
    """Install the project with `extra`, unless that was done for this pyproject.toml."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + bytes(ROOT)).hexdigest()
    stamp = venv / "daskdml-stamp.json"
    try:
        before = json.loads(stamp.read_text())
    except (OSError, ValueError):
        before = {"digest": "", "extras": []}
    if before["digest"] == digest and extra in before["extras"]:
        return
    extras = sorted({extra, *before["extras"]})
    print(f"Installing daskdml[{','.join(extras)}] (a minute or two, once)", flush=True)
    start = time.perf_counter()
    command = [str(environment_python(venv)), "-m", "pip", "install", "-qq"]
    command += ["--disable-pip-version-check", "--editable", f"{ROOT}[{','.join(extras)}]"]
    if subprocess.run(command).returncode:
        raise SetupError("pip could not install the project (see above); is there a network?")
    stamp.write_text(json.dumps({"digest": digest, "extras": extras}))
    print(f"Installed in {time.perf_counter() - start:.0f} s", flush=True)


def docs_command() -> list[str]:
    """Return the arguments that build the documentation; a warning is a failure."""
    return ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html"]


def run_python(python: Path, arguments: list[str]) -> int:
    """Run `python` with `arguments` at the project's root and return its exit code."""
    env = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of workers would compile the package anew
    return subprocess.run([str(python), *arguments], cwd=ROOT, env=env).returncode


def test(python: Path, arguments: list[str]) -> int:
    """Run every check, go on after failures, and end with one line for each."""
    lint_imports = "from importlinter.cli import lint_imports_command as c; c()"
    steps = {
        "lint": ["-m", "ruff", "check"],
        "format": ["-m", "ruff", "format", "--check"],
        "types": ["-m", "mypy"],
        "layers": ["-c", lint_imports, "--no-logo"],
        # Two at a time, as many as the machine that CI has can run; a free one takes over.
        "tests": ["-m", "pytest", "-n", "2", "--dist", "worksteal", *arguments],
        "docs": docs_command(),
    }
    lines = []
    failed = False
    for name, command in steps.items():
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        code = run_python(python, command)
        failed = failed or code != 0
        verdict = "ok" if code == 0 else f"FAILED (exit code {code})"
        lines.append(f"{name:<8}{time.perf_counter() - start:>8.1f} s  {verdict}")
    print("\n" + "\n".join(lines), flush=True)
    return int(failed)


def run(command: str, arguments: list[str], venv: Path) -> int:
    """Prepare the environment in `venv` and run one of the commands in it."""
    make_environment(venv)
    install(venv, EXTRAS[command])
    python = environment_python(venv)
    if command == "test":
        return test(python, arguments)
    if command == "demo":
        return run_python(python, ["examples/main_job.py", *arguments])
    if command == "bench":
        return run_python(python, ["-m", "benchmarks", *arguments])
    return run_python(python, [*docs_command(), *arguments])


def main(arguments: list[str]) -> int:
    """Read the command line; return the exit code."""
    if sys.version_info < OLDEST:
        print(
            "daskdml needs Python {}.{} or newer and this is {}.{}; start run.py with a newer one, "
            "for example: python3.12 run.py demo".format(*OLDEST, *sys.version_info)
        )
        return 1
    fresh = arguments[:1] == ["--fresh"]
    command, rest = (arguments[fresh:] or ["--help"])[0], arguments[1 + fresh :]
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command not in EXTRAS:
        print(f"run.py knows no command {command!r}, only {', '.join(EXTRAS)}; see run.py --help.")
        return 2
    scratch = tempfile.mkdtemp(prefix="daskdml-") if fresh else None
    venv = Path(scratch or os.environ.get("DASKDML_VENV") or ROOT / ".venv")
    try:
        return run(command, rest, venv.absolute())
    except SetupError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
