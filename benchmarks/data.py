"""The events every system is asked about: drawn once from a fixed seed, kept as one Parquet file per month.

Half a year of an app's captured events, fifty per user on average and far more of a few (log-normal), in sessions of
about eight. What an event is (`Kind`) has a fixed share of all events. Half of a tier's events of one kind follow one
of the kind before, a few events later in the same life, so that funnels have something to find. Times are whole seconds
and no user has two events in one second: no system needs a rule of its own for ties.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = ["END", "KINDS", "MONTHS", "START", "TIERS", "Dataset", "Kind", "ensure_dataset"]

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 7, 1, tzinfo=UTC)
MONTHS = tuple(f"2026-{month:02d}" for month in range(1, 7))

_SEED = 2026
_EVENTS_PER_USER = 50
_EVENTS_PER_SESSION = 8
_SECONDS = int((END - START).total_seconds())
_LAST_START = _SECONDS - 86_400
"""Sessions begin up to a day before the end, and none is that long."""


@dataclass(frozen=True)
class Kind:
    """What happened: the values that definitions ask for. `{n}` in one of them stands for `variants` numbers.

    Attributes:
        share: of all events.
        fixed: if not 0, how many events there are whatever the number of all events, up to one in a hundred.
    """

    type: str
    path: str
    share: float = 0.0
    target_text: str | None = None
    hierarchy: str | None = None
    variants: int = 1
    fixed: int = 0


_TOOLBAR = "@html;|@body;.app;|@main;|@div;.toolbar;|@button;.ghost;|"
_CHECKOUT = "@html;|@body;.app;|@main;|@form;.checkout;.wide;|@div;.row;|@button;#go{n};%s;|"


def _captured(share: float, *texts: str) -> tuple[Kind, ...]:
    """Pageviews by path and clicks by text in turns, as captured without anybody naming them."""
    return tuple(
        Kind("pageview", text, share) if text.startswith("/") else Kind("click", "/board", share, text, _TOOLBAR)
        for text in texts
    )


TIERS: dict[str, tuple[Kind, ...]] = {
    "fixed": tuple(Kind("pageview", path, fixed=5_000) for path in ("/status", "/changelog", "/roadmap")),
    "0.01 %": _captured(0.0001, "/demo", "Book", "/trial", "Upload", "/domain", "Verify", "/renewal", "Rate us"),
    "0.1 %": _captured(0.001, "/pricing", "Choose plan", "/signup", "Join", "/upgrade", "Buy", "/invoices", "Download"),
    "custom types": tuple(Kind(name, "/api", 0.001) for name in ("trial_started", "subscribed", "purchase")),
    "css": tuple(
        Kind("click", "/checkout", 0.001, text, _CHECKOUT % classes, variants=20)
        for text, classes in (("Continue", ".next;.primary"), ("Pay", ".pay;.primary"), ("Confirm", ".confirm"))
    ),
    "regex": tuple(
        Kind("pageview", f"/docs/{{n}}/{page}", 0.001, variants=400) for page in ("install", "usage", "support")
    ),
    "1 %": _captured(0.01, "/new", "Invite", "/import", "Share", "/export", "Assign", "/archive", "Print"),
    "10 %": _captured(0.1, "/", "Search", "/feed", "Open", "/projects", "Comment", "/reports", "Next"),
}
"""Kinds of a tier in the order users tend to do them. Of a tier named by a share, each is so much of all events."""

KINDS: tuple[Kind, ...] = tuple(kind for tier in TIERS.values() for kind in tier)
_REST = Kind("pageview", "/item/{n}", variants=2_000)
"""What all other events are."""

_COUNTRIES = ("US", "IN", "DE", "GB", "BR", "FR", "JP", "CA", "NL", "ES", "PL", "SE")
_PER_USER: dict[str, tuple[str, ...]] = {
    "country": _COUNTRIES,
    "device_type": ("desktop", "mobile", "tablet"),
    "os": ("Windows", "iOS", "Android", "macOS", "Linux"),
    "browser": ("Chrome", "Safari", "Firefox", "Edge"),
}
_PER_SESSION: dict[str, tuple[str, ...]] = {
    "referrer": ("", "https://www.google.com/", "https://news.ycombinator.com/", "https://duckduckgo.com/"),
    "utm_source": ("", "newsletter", "google", "linkedin"),
    "landing_page": ("/", "/pricing", "/docs", "/blog/launch", "/blog/funnels"),
}


@dataclass(frozen=True)
class Dataset:
    """The files of one number of events, each of a month, in the order in which the events happened."""

    events: int
    users: int
    folder: Path
    digest: str

    @property
    def files(self) -> list[Path]:
        return [self.folder / f"{month}.parquet" for month in MONTHS]

    @property
    def pattern(self) -> str:
        """All files, as systems that read Parquet themselves want them named."""
        return str(self.folder / "*.parquet")


def ensure_dataset(folder: Path, events: int) -> Dataset:
    """The dataset of so many events in `folder`, drawn unless it is there."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    dataset = Dataset(events, max(events // _EVENTS_PER_USER, 1), folder / f"{events}-{digest}", digest)
    if not dataset.folder.exists():
        unfinished = dataset.folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for month, table in _tables(events, dataset.users):
            pq.write_table(table, unfinished / f"{month}.parquet", compression="zstd", use_dictionary=True)
        unfinished.rename(dataset.folder)
    return dataset


def _tables(events: int, users: int) -> Iterator[tuple[str, pa.Table]]:
    """The events of each month, in the order of time."""
    rng = np.random.default_rng(_SEED)
    user, time, session = _lives(rng, events, users)
    kind = _kinds(rng, user)
    path, target, hierarchy = _texts(rng, kind)
    of_user = {name: _drawn(rng, values, users) for name, values in _PER_USER.items()}
    of_session = {name: _drawn(rng, values, int(session.max()) + 1) for name, values in _PER_SESSION.items()}
    amounts = pa.array([json.dumps({"amount": cents / 100}) for cents in range(500, 20_500, 50)] + ["{}"])
    paid = np.array([each.type == "purchase" for each in (*KINDS, _REST)])[kind]
    amount = np.where(paid, rng.integers(0, len(amounts) - 1, events), len(amounts) - 1).astype(np.int32)
    types = sorted({each.type for each in (*KINDS, _REST)})
    type_of_kind = np.array([types.index(each.type) for each in (*KINDS, _REST)], dtype=np.int32)

    order = np.argsort(time, kind="stable")
    starts = [np.datetime64(f"{month}-01", "s") for month in (*MONTHS, "2026-07")]
    offsets = [(start - np.datetime64(START.replace(tzinfo=None), "s")).astype(int) for start in starts]
    bounds = np.searchsorted(time[order], offsets)
    for month, first, last in zip(MONTHS, bounds[:-1], bounds[1:], strict=True):
        rows = order[first:last]
        seconds = time[rows] + int(START.timestamp())
        columns: dict[str, Any] = {
            "user_id": pa.array(user[rows] + 1),
            "time": pa.array(seconds).cast(pa.timestamp("s", "UTC")),
            "event_id": pa.array(np.arange(first, last, dtype=np.int64) + 1),
            "session_id": pa.array(session[rows] + 1),
            "type": _texts_of(type_of_kind[kind[rows]], types),
            "path": _texts_of(path.codes[rows], path.texts),
            "target_text": _texts_of(target.codes[rows], target.texts),
            "hierarchy": _texts_of(hierarchy.codes[rows], hierarchy.texts),
            **{name: _texts_of(of_user[name][user[rows]], values) for name, values in _PER_USER.items()},
            **{name: _texts_of(of_session[name][session[rows]], values) for name, values in _PER_SESSION.items()},
            "properties": pa.DictionaryArray.from_arrays(amount[rows], amounts),
        }
        yield month, pa.table(columns)


def _lives(
    rng: np.random.Generator, events: int, users: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """User, time in seconds after `START`, and session of every event, in the order of user and time."""
    sessions = max(2 * events // _EVENTS_PER_SESSION, 2)
    weights = np.cumsum(rng.lognormal(0, 1.2, users))
    owner = np.searchsorted(weights, rng.random(sessions) * weights[-1])
    began = (_LAST_START * rng.random(sessions) ** 0.8).astype(np.int64)
    lengths = rng.geometric(1 / _EVENTS_PER_SESSION, sessions)
    # Enough sessions for all events: the last one is cut off.
    session = np.repeat(np.arange(sessions), lengths)[:events]
    assert len(session) == events
    gaps = rng.integers(3, 120, events)
    gaps[np.flatnonzero(np.diff(session, prepend=-1))] = 0
    elapsed = np.cumsum(gaps)
    first = np.searchsorted(session, np.arange(session[-1] + 1))
    user = owner[session]
    time = began[session] + elapsed - elapsed[first][session]
    order = np.lexsort((time, user))
    user, time, session = user[order], time[order], session[order]
    # One event a second: each user's seconds become strictly increasing, in stretches of a line that do not meet.
    stretch = 4 * _SECONDS + events
    rank = np.arange(events)
    line = np.maximum.accumulate(user * stretch + time - rank) + rank
    return user, line - user * stretch, session


def _kinds(rng: np.random.Generator, user: NDArray[np.int64]) -> NDArray[np.int16]:
    """The number in `KINDS` of every event, or that of `_REST`. `user` is in the order of each user's life."""
    events = len(user)
    rest = len(KINDS)
    kind = np.full(events, rest, dtype=np.int16)
    shuffled = rng.permutation(events)
    for tier in TIERS.values():
        before = np.empty(0, dtype=np.int64)
        for each in tier:
            wanted = min(each.fixed, events // 100) if each.fixed else round(events * each.share)
            follows = before[rng.random(len(before)) < 0.5]
            follows = follows + rng.integers(1, 6, len(follows))
            follows = follows[follows < events]
            same = user[follows] == user[np.maximum(follows - 5, 0)]
            follows = np.unique(follows[same & (kind[follows] == rest)])[:wanted]
            kind[follows] = KINDS.index(each)
            free = shuffled[kind[shuffled] == rest][: wanted - len(follows)]
            kind[free] = KINDS.index(each)
            before = np.concatenate([follows, free])
    return kind


@dataclass(frozen=True)
class _Coded:
    """A text per event, as its number among `texts`."""

    codes: NDArray[np.int32]
    texts: list[str | None]


def _texts(rng: np.random.Generator, kind: NDArray[np.int16]) -> tuple[_Coded, _Coded, _Coded]:
    """Path, target text and hierarchy of every event."""
    kinds = (*KINDS, _REST)
    variants = np.array([each.variants for each in kinds])
    drawn = (rng.random(len(kind)) * variants[kind]).astype(np.int32)

    def coded(templates: Sequence[str | None]) -> _Coded:
        texts: list[str | None] = []
        first, many = [], []
        for template, count in zip(templates, variants, strict=True):
            varied = template is not None and "{n}" in template
            first.append(len(texts))
            many.append(varied)
            texts += [template.replace("{n}", str(n)) for n in range(count)] if template and varied else [template]
        codes = np.array(first, dtype=np.int32)[kind] + np.where(np.array(many)[kind], drawn, 0)
        return _Coded(codes.astype(np.int32), texts)

    return (
        coded([each.path for each in kinds]),
        coded([each.target_text for each in kinds]),
        coded([each.hierarchy for each in kinds]),
    )


def _drawn(rng: np.random.Generator, values: Sequence[str], size: int) -> NDArray[np.int32]:
    """Numbers of values, the first more frequent than the second, and so on."""
    weights = 1 / np.arange(1, len(values) + 1)
    return rng.choice(len(values), size, p=weights / weights.sum()).astype(np.int32)


def _texts_of(codes: NDArray[np.int32], texts: Sequence[str | None]) -> pa.Array:
    """Texts by number; an empty one is missing."""
    known = sorted({text for text in texts if text})
    numbers = {text: number for number, text in enumerate(known)}
    to_known = np.array([numbers.get(text or "", -1) for text in texts], dtype=np.int32)[codes]
    return pa.DictionaryArray.from_arrays(pa.array(to_known, mask=to_known < 0), pa.array(known, pa.string()))
