"""Whatever dies, the work ends with the same bits: some cells of the matrix, and a short soak."""

import random

import pytest

from tests.faults.matrix import DISK_FULL, END, FAULTS, PAGE, strike, undisturbed
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


@pytest.mark.parametrize(("name", "work"), CELLS)
def test_the_bits_are_the_same(name, work, base, tmp_path):
    """A fault in the midst of the work changes nothing of what comes out."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    whole = undisturbed(work, base, tmp_path / "whole")
    struck = strike(fault, work, base, tmp_path / "cell", whole, random.Random(1))
    assert struck.within and struck.same
    if name == DISK_FULL:
        assert struck.calls == (1 if work in FITS else 2)
    else:
        assert (struck.calls > 1) <= name.endswith("called again")


def test_a_short_soak():
    """Workers, schedulers and clients die, and the fit neither changes nor leaves anything."""
    done = soak(kills=4, seed=9, times=6, works=("als",))
    assert done.kills == {"worker": 2, "client": 1, "scheduler": 1} and done.fits


def test_the_documentation_has_the_matrix():
    """Every fault has its row in docs/reliability.md, with the same bits wherever it can strike."""
    text = PAGE.read_text().split(END)[0]
    for fault in FAULTS:
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {fault.name} |"))
        cells = dict(zip(WORK, row.strip("| ").split(" | ")[1:], strict=True))
        assert "same bits" in row
        for work, cell in cells.items():
            assert cell.startswith("same bits, ") if fault.concerns(work) else cell == "-"
