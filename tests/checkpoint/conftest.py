import os

import pytest


@pytest.fixture
def quick_sync(monkeypatch):
    """Skip the disk in tests that are not about it: a sync takes as long as a hundred saves."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
