"""What posttrain/compat/glibc.py relies on in the C library."""

import ctypes
from types import SimpleNamespace

from posttrain.compat.glibc import keep_freed_memory


def test_glibc_accepts_both_options(monkeypatch):
    """mallopt returns 1 on success. Another C library has no mallopt, and nothing happens."""
    results, library = [], ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        real = library.mallopt
        fake = SimpleNamespace(mallopt=lambda *options: results.append((options, real(*options))))
        monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
        keep_freed_memory.__wrapped__()
        assert results == [((-3, 2**30), 1), ((-1, 2**30), 1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory.__wrapped__()
