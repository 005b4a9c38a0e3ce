"""Imports sqlglot without what it looks for plugins with.

`importlib.metadata`, with mail, sockets and archives behind it, would take a share of the time of each session's first
call, and nobody's plugins are wanted inside PostgreSQL. Whoever else imports it later gets it.
"""

import sys
from types import ModuleType

_METADATA = "importlib.metadata"

if _METADATA not in sys.modules:
    stand_in = ModuleType(_METADATA, "Knows of no packages.")
    stand_in.entry_points = dict  # type: ignore[attr-defined]
    sys.modules[_METADATA] = stand_in
    try:
        import sqlglot.dialects.dialect  # noqa: F401
    finally:
        del sys.modules[_METADATA]
