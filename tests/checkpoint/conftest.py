import os
import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def quick_sync(monkeypatch):
    """Skip the disk in tests that are not about it: a sync takes as long as a hundred saves."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def memory_path():
    """Return a directory in memory where there is one: hundreds of crashes need no real disk."""
    memory = Path("/dev/shm")
    directory = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
    yield Path(directory)
    shutil.rmtree(directory)
