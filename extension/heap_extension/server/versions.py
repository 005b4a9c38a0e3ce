"""The version of an app's catalog, which sessions keep compiled statements by."""

from __future__ import annotations

from heap_extension.server.quote import literal

__all__ = ["new_version"]


def new_version(app: str) -> str:
    """The command that gives the app a version no compiled statement was kept under."""
    return f"UPDATE heap.app SET version = nextval('heap.catalog_version') WHERE name = {literal(app)}"
