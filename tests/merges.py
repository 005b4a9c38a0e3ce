"""Merging users in tests, and what a merge means in the simplest Python there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from heap_extension.maintain.merges import UserMerges
from heap_extension.maintain.nodes import connect_node
from tests.oracle import Event

__all__ = ["finish_merges", "person", "relabelled"]


def finish_merges(connection: psycopg.Connection[Any], app: str, *, late_users: bool = False) -> None:
    """What `heap maintain` does with the merges asked for, and with users that were written for after their merge.

    Args:
        connection: any to the database; the work is done over others.
    """
    dsn = make_conninfo(connection.info.dsn, password=connection.info.password)
    with connect_node(dsn, None) as leader:
        merges = UserMerges(dsn, app, leader, timedelta(seconds=10))
        if late_users:
            merges.merge_late_users()
        while merges.advance() is not None:
            pass


def person(user: int, merges: Iterable[tuple[int, int]]) -> int:
    """Who a user is after these merges, in order: whoever was one with the merged user follows."""
    for merged, into in _resolved(merges):
        user = into if user == merged else user
    return user


def _resolved(merges: Iterable[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """The merges between users who have not ended."""
    done: list[tuple[int, int]] = []
    for pair in merges:
        merged, into = pair
        for ended, became in done:
            merged, into = (became if user == ended else user for user in (merged, into))
        if merged != into:
            done.append((merged, into))
    return done


def relabelled(events: Iterable[Event], merges: Sequence[tuple[int, int]]) -> list[Event]:
    """The events as those of the persons the users are."""
    return [replace(event, user_id=person(event.user_id, merges)) for event in events]
