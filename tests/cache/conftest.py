"""Tests of the cache write hundreds of small caches; a real fsync of each file would make the disk the test."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync returns at once: a killed process loses nothing of the page cache, only a power cut does, and that fsync is
    called where it must be is a test of its own (test_crash.py)."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
