"""The roles of an app: heap_<app>_read, and heap_<app>_write, which also changes it."""

from __future__ import annotations

from heap_extension.server.quote import literal

__all__ = ["grant_roles"]


def grant_roles(app: str) -> str:
    """The command that gives the app's roles their rights on the tables made before it."""
    return f"SELECT heap.grant_roles({literal(app)})"
