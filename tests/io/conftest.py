"""What several tests of reading and writing share."""

from __future__ import annotations

import pytest

from daskdml.io import store as store_module
from tests.faulty import FaultyFileSystem


@pytest.fixture
def faulty(monkeypatch):
    """Give the file system's class, quiet, with short pauses between attempts."""
    monkeypatch.setattr(store_module, "FIRST_PAUSE", 0.0005)
    FaultyFileSystem.store.clear()
    FaultyFileSystem.quiet()
    yield FaultyFileSystem
    FaultyFileSystem.quiet()
