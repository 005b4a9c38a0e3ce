"""What the topics of the log are called, where nobody says otherwise."""

from __future__ import annotations

__all__ = ["DEAD_LETTERS", "EVENTS"]

EVENTS = "heap-events"
"""Messages, keyed by app and user."""
DEAD_LETTERS = "heap-dead-letters"
"""Records that could not be stored, as they were, with the reason and where they came from as headers."""
