"""Scratch files are gone on with, as far as their journal can be believed."""

from __future__ import annotations

import pytest

from daskdml.io.scratch import JOURNAL, Scratch


def noted(folder, run="run"):
    """What a scratch folder says of earlier attempts, once it is opened again."""
    with Scratch(folder, run) as scratch:
        return list(scratch.lines())


@pytest.fixture
def journal(tmp_path):
    """Of a folder in which three things were noted, and a file has bytes."""
    with Scratch(tmp_path / "scratch", "run") as scratch:
        scratch.open("file").write(b"bytes")
        for at in range(3):
            scratch.note(at=at)
    return tmp_path / "scratch" / JOURNAL


def test_the_same_run_goes_on(journal):
    """What was noted is there again, and so are the files."""
    assert noted(journal.parent) == [{"at": 0}, {"at": 1}, {"at": 2}]
    assert (journal.parent / "file").read_bytes() == b"bytes"


@pytest.mark.parametrize("run", ["other", None])
def test_another_run_begins_anew(run, journal):
    """Neither notes nor files of one run are taken for those of another."""
    assert noted(journal.parent, run) == [] and not (journal.parent / "file").exists()


@pytest.mark.parametrize("bad", [b"{", b"", b"[1]", b"\xff\xfe", b"1" * 5000, b"[" * 100_000])
@pytest.mark.parametrize("line", [0, 2, 3])
def test_a_damaged_journal(line, bad, journal):
    """What comes before a line that cannot be read counts, and what comes later is done again."""
    lines = journal.read_bytes().split(b"\n")
    lines[line] = bad
    journal.write_bytes(b"\n".join(lines))
    assert noted(journal.parent) == [{"at": at} for at in range(line - 1)]
    with Scratch(journal.parent, "run") as scratch:
        scratch.note(at="new")
    assert noted(journal.parent)[-1] == {"at": "new"}


def test_a_line_that_was_cut(journal):
    """The last line of a process that was killed may be half of one."""
    journal.write_bytes(journal.read_bytes()[:-4])
    assert noted(journal.parent) == [{"at": 0}, {"at": 1}]
