"""How an identity becomes a user's number: the same in the server, the importer and whatever else writes events."""

from __future__ import annotations

import hashlib

__all__ = ["hash_bigint"]


def hash_bigint(text: str) -> int:
    """A signed 64-bit hash of the text, the same on every machine: how string ids become bigint ones."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )
