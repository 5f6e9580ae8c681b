"""Whatever dies, the work ends with the same bits: some cells of the matrix, and a short soak."""

import random
import re

import pytest

from tests.faults.matrix import BEGIN, DISK_FULL, END, FAULTS, LIMITS, PAGE, strike, undisturbed
from tests.faults.soak import soak
from tests.faults.work import FITS, WORK, prepare

CELLS = [
    ("worker frozen (found after 5 s)", "newton"),
    ("all workers killed, new ones come", "dsgd"),
    ("client killed, called again", "lbfgs"),
    (DISK_FULL, "convert"),
    (DISK_FULL, "sgd"),
]
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What the work is done on."""
    folder = tmp_path_factory.mktemp("base")
    prepare(folder)
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "work"), CELLS)
def test_the_bits_are_the_same(name, work, base, tmp_path, monkeypatch):
    """A fault in the midst of the work changes nothing of what comes out."""
    monkeypatch.setitem(LIMITS, "DASK_DASKDML__WORKER_SILENCE", "10s")  # however slow the machine
    monkeypatch.setitem(LIMITS, "DASK_DASKDML__SCHEDULER_SILENCE", "60s")
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    whole = undisturbed(work, base, tmp_path / "whole")
    struck = strike(fault, work, base, tmp_path / "cell", whole, random.Random(1))
    assert struck.within and struck.same
    if name == DISK_FULL:
        assert struck.calls == (1 if work in FITS else 2)
    else:
        assert (struck.calls > 1) <= name.endswith("called again")


@pytest.mark.timeout(900)
def test_a_short_soak():
    """Workers, schedulers and clients die, and the fit neither changes nor leaves anything."""
    done = soak(kills=4, seed=9, times=6, works=("als",))
    assert done.kills == {"worker": 2, "client": 1, "scheduler": 1} and done.fits


def test_the_documentation_has_the_matrix():
    """Each fault has its row, each work its column: the same bits wherever it can strike."""
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    head, _, whole, *rows = [line.strip("|").split(" | ") for line in table.split("\n") if line]
    names = [row.pop(0).strip() for row in (head, whole, *rows)]
    assert names == ["", "undisturbed", *(fault.name for fault in FAULTS)]
    assert [work.strip() for work in head] == list(WORK)
    assert all(re.fullmatch(r"\d+\.\d s", cell.strip()) for cell in whole)
    for fault, row in zip(FAULTS, rows, strict=True):
        for work, cell in zip(WORK, row, strict=True):
            found = r"same bits, [+-]\d+\.\d s" if fault.concerns(work) else "-"
            assert re.fullmatch(found, cell.strip()), f"{fault.name}, {work}: {cell}"
    assert [work for work in WORK if not FAULTS[0].concerns(work)] == ["convert"]
