"""What the partial indexes of definitions are called."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

__all__ = ["index_suffix"]

_SLUG_LENGTH = 24


def index_suffix(name: str, predicate: str, covering: Sequence[str] = ()) -> str:
    """What follows the partition in an index's name: the event, readable, and a digest of it, its predicate and what
    it covers. Another predicate makes another index, so that both can exist while one takes over.

    >>> index_suffix("Viewed pricing", "type = 'pageview'")
    'viewed_pricing_d01fd1f0'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")[:_SLUG_LENGTH].rstrip("_") or "event"
    digest = hashlib.sha256("\0".join((name, predicate, *covering)).encode()).hexdigest()[:8]
    return f"{slug}_{digest}"
