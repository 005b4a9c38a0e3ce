"""Every strategy gives the rows of merge: probing, whichever steps it is chosen for, changes no answer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_compiler import CompiledQuery, compile_statement
from tests.dictionary_catalog import DictionaryCatalog
from tests.extension.shop_app import ensure_shop
from tests.extension.shop_app import settle as settle_shop
from tests.histories import DEFINITIONS, histories, insert
from tests.semantics_app import APP

_RARE, _FREQUENT = 1, 1_000_000


def _sql(statement: str, sizes: dict[str, int]) -> str:
    catalog = DictionaryCatalog({name: definition for name, (definition, _) in DEFINITIONS.items()}, sizes)
    catalog.schema = APP
    catalog.now = datetime(2025, 11, 5, 11, tzinfo=UTC)
    compiled = compile_statement(statement, catalog)
    assert isinstance(compiled, CompiledQuery)
    return compiled.sql


@settings(max_examples=80)
@given(data=st.data())
def test_probing_changes_no_answer(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    names = data.draw(st.lists(st.sampled_from(list(DEFINITIONS)), min_size=2, max_size=4))
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    window = data.draw(st.sampled_from(["1 second", "1 day", "30 days"]))
    grouped = data.draw(st.sampled_from(["", "group by country, user.plan"]))
    statement = f"funnel {' -> '.join(quoted)} within {window} {grouped}"
    rare = data.draw(st.sampled_from(names[:-1]))
    sizes = {name: _RARE if name == rare else _FREQUENT for name in names}
    probed = _sql(statement, sizes)
    if set(names[names.index(rare) + 1 :]) - {rare}:
        assert "AS probe" in probed
    insert(asked, APP, events)
    try:
        assert asked.execute(probed).fetchall() == asked.execute(_sql(statement, {})).fetchall(), statement
    finally:
        asked.rollback()


def test_a_rare_first_step_is_probed_on_real_volumes(dsn: str, connection: psycopg.Connection[Any]) -> None:
    """The database's own counts choose probing where it pays; the answer is that of reading everything."""
    ensure_shop(dsn)
    settle_shop(connection)
    connection.execute("SELECT heap.define_event('Rare', 'purchase where path = ''/checkout'' and amount > 120')")
    statement = 'funnel "Rare" -> "Viewed product" within 7 days over last 60 days'
    (chosen,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
    distributed = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone()
    assert ("AS probe" in chosen) is (not distributed), "a coordinator does not know its shards' counts"
    found = connection.execute(chosen).fetchall()
    raw = statement.replace('"Rare"', "purchase where path = '/checkout' and amount > 120")
    (read,) = connection.execute("SELECT heap.sql(%s)", (raw,)).fetchone() or ("",)
    assert "AS probe" not in read
    everything = connection.execute(read).fetchall()
    assert [row[3:] for row in found] == [row[3:] for row in everything]
    assert found[0][3] > 5
