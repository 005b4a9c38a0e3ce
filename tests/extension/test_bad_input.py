"""Bad input: every mistake gives a clear error in a tenth of a second, and the connection goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import heap_grammar
from heap_compiler.parse import parser
from tests.extension.shop_app import ensure_shop, settle

_EXAMPLES = re.findall(r"```heap\n(.*?)\n```", heap_grammar.reference_text(), re.S)

_MISTAKES: dict[str, tuple[str, str]] = {
    "nothing at all": ("", "the statement ends too early"),
    "an unknown statement": ("select 1", "unexpected select"),
    "an unknown event": ('trend count of "Purchas"', 'did you mean "Purchase"?'),
    "an unknown event in a definition": ('define "X" as "Nothing like it" or click', 'unknown event "Nothing like it"'),
    "an unknown event to drop": ('drop event "Purchas"', 'did you mean "Purchase"?'),
    "a column in the wrong case": ("trend count of any where Path = '/a'", "did you mean path?"),
    "an unknown unit": ("trend count of any by dya", "did you mean day?"),
    "an unknown clause": ("trend count of any over last 3 days whith x = 1", "unexpected whith"),
    "a clause the analysis does not take": ("lifecycle of any within 3 days", "takes no within clause"),
    "a clause that is there twice": ("trend count of any by day by week", "a second by clause"),
    "no window": ("funnel any -> any within 0 days", "0 is out of bounds"),
    "an endless window": ("funnel any -> any within 99999999 days", "99999999 is out of bounds"),
    "a negative window": ("funnel any -> any within -1 days", "unexpected -"),
    "a range that ends before it starts": ("trend count of any from '2026-06-02' to '2026-06-01'", "ends before it starts"),
    "a range of the future": ("trend count of any since '2099-01-01'", "ends before it starts"),
    "a range before time": ("trend count of any over last 999999 years", "the range reaches before year 1"),
    "a day that is none": ("trend count of any since '2026-02-30'", "'2026-02-30' is not a date or time"),
    "a type that is another": ("trend count of click where type = 'pageview'", "type is 'click' already"),
    "a value that is another": ("trend count of any where path = '/a' and path = '/b'", "path is '/a' already"),
    "one of other values": ("trend count of any where path in ('/a', '/b') and path = '/c'", "path is '/a' or '/b' already"),
    "a filter of a filter": ("trend count of (any where path = '/a') where path = '/b'", "path is '/a' already"),
    "an impossible step": ("funnel pageview -> click where type = 'x'", "this can never match"),
    "an impossible analysis": ("trend count of any by day where path = '/a' and path = '/b'", "this can never match"),
    "an impossible definition": ("define \"X\" as click where type = 'pageview'", "this can never match"),
    "alternatives that are all impossible": (
        "trend count of ((click where type = 'a') or (submit where type = 'b'))", "this can never match"),
    "nothing between": ("trend count of any where amount between 10 and 5", "the first value is the greater one"),
    "text of a number": ("trend count of any where session_id contains '1'", "session_id is a number, not text"),
    "a sum of text": ("trend sum(path) of any", "path is a column of type text"),
    "a sum of nothing": ("trend sum(amount)", "expected a comma, as or of"),
    "a sum before a formula": ("trend sum(amount), users of any / users of click", "of what event?"),
    "a sibling selector": ("trend count of any where element matches 'a + b'", "error at line 1"),
    "a selector that is none": ("trend count of any where element matches ':::'", "error at line 1"),
    "a negated selector": ("trend count of any where element matches 'a:not(.b)'", "error at line 1"),
    "a regular expression that is none": ("trend count of any where path matches '(('", "not a regular expression"),
    "a pattern that ends too early": ("trend count of any where path like 'a\\'", "ends with an escape"),
    "a string without end": ("trend count of any where path = '/a", "this string has no closing '"),
    "a name without end": ('trend count of "Purchase', 'this name has no closing "'),
    "a funnel of one step": ("funnel any", "a funnel has 2 to 20 steps, this one 1"),
    "a funnel of two hundred steps": ("funnel " + " -> ".join(["any"] * 200), "a funnel has 2 to 20 steps, this one 200"),
    "a thousand alternatives": ("trend count of " + " or ".join(["any"] * 1_000), "more than 100 alternatives"),
    "a megabyte": ("trend count of any where path = '" + "x" * 1_000_000 + "'", "a statement may have 100,000 characters"),
    "five thousand nots": ("trend count of any where " + "not " * 5_000 + "a = 1", "nested too deeply"),
    "ten thousand open parentheses": ("trend count of " + "(" * 10_000, "the statement ends too early"),
    "a control character": ("trend count of any\x01", "unexpected character U+0001"),
    "a control character in a name": ('define "a\x02b" as any', "a name cannot contain line breaks or control characters"),
    "a huge number": ("trend count of any where amount > 1" + "0" * 400, "is out of bounds"),
    "a huge exponent": ("trend count of any where amount > 1e999999999", "is out of bounds"),
    "a huge count": ("trend count of any group by path top " + "9" * 60, "is out of bounds"),
    "too many buckets": ("trend count of any by minute over last 20 years", "error at line 1"),
    "top of no groups": ("trend count of any top 3", "top needs groups to choose from"),
    "two statements": ("trend count of any; trend count of any", "unexpected trend"),
}  # fmt: skip


@pytest.fixture
def shop(dsn: str, connection: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    ensure_shop(dsn)
    settle(connection)
    connection.execute("SELECT heap.query('trend count of \"Purchase\"')").fetchall()
    connection.commit()
    yield connection
    connection.rollback()


def _refusal(connection: psycopg.Connection[Any], statement: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as raised:
        connection.execute("SELECT heap.query(%s)", (statement,)).fetchall()
    connection.rollback()
    return raised.value


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_every_mistake_has_its_error_at_once(shop: psycopg.Connection[Any], mistake: str) -> None:
    statement, expected = _MISTAKES[mistake]
    took = []
    for _ in range(5):
        began = time.perf_counter()
        error = _refusal(shop, statement)
        took.append(time.perf_counter() - began)
    message = error.diag.message_primary or ""
    assert message.startswith("error"), message
    assert expected in message
    assert "Traceback" not in str(error)
    assert min(took) < 0.1
    assert shop.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    "statement",
    [
        "trend count of ((click where type = 'pageview') or pageview)",
        "trend count of any where path = 5 or path = '/pricing'",
        "trend count of any where not path = 5",
        "trend count of any where path = 5 and session_id = 'x' and path in (1, true)",
        "trend count of any where path = '/a' and path = '/a'",
        "trend count of \"Viewed pricing\" where path = '/b'",
        "funnel pageview where path = '/a' -> click within 1 day where path = '/b'",
        "trend count of " + "(" * 1_000 + "any" + ")" * 1_000,
    ],
)
def test_what_is_only_odd_is_answered(shop: psycopg.Connection[Any], statement: str) -> None:
    assert shop.execute("SELECT heap.query(%s)", (statement,)).fetchall()


def test_definitions_cannot_lead_back_to_themselves(shop: psycopg.Connection[Any]) -> None:
    assert '"Purchase" would contain itself' in str(_refusal(shop, 'define "Purchase" as "Purchase" or click'))
    shop.execute("SELECT heap.define_event('One', 'click')")
    shop.execute("SELECT heap.define_event('Two', %s)", ("\"One\" where path = '/a'",))
    with pytest.raises(psycopg.Error, match=r'error.*"(One|Two)" would contain itself'):
        shop.execute("SELECT heap.define_event('One', %s)", ('"Two" or submit',))


def test_errors_have_the_code_of_their_kind(shop: psycopg.Connection[Any]) -> None:
    assert _refusal(shop, "trend count of any where path = 'a' and path = 'b'").sqlstate == "22023"
    assert _refusal(shop, "trend cuont of any").sqlstate == "42601"
    assert _refusal(shop, 'trend count of "Nothing like it"').sqlstate == "42704"


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    """An example of the reference with words left out, doubled, swapped, or taken from another example."""
    text = draw(st.sampled_from(_EXAMPLES))
    tokens = [str(token) for token in parser().parse_interactive(text).exhaust_lexer()]
    for _ in range(draw(st.integers(1, 3))):
        at, other = draw(st.integers(0, len(tokens) - 1)), draw(st.integers(0, len(tokens) - 1))
        match draw(st.sampled_from(["delete", "duplicate", "swap", "borrow"])):
            case "delete" if len(tokens) > 1:
                del tokens[at]
            case "duplicate":
                tokens.insert(at, tokens[at])
            case "swap":
                other = min(other, len(tokens) - 1)
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case "borrow":
                lent = parser().parse_interactive(draw(st.sampled_from(_EXAMPLES))).exhaust_lexer()
                tokens[at] = str(draw(st.sampled_from(lent)))
    return " ".join(tokens)


@settings(max_examples=300)
@given(statement=_mutated())
def test_mutated_examples_give_an_answer_or_an_error_of_ours(shop: psycopg.Connection[Any], statement: str) -> None:
    shop.execute("SET LOCAL statement_timeout = '30s'")
    try:
        shop.execute("SELECT heap.query(%s)", (statement,)).fetchall()
    except psycopg.Error as error:
        message = error.diag.message_primary or ""
        assert message.startswith("error"), (statement, message)
        assert error.sqlstate in {"22023", "42601", "42703", "42704", "2BP01", "54001"}, (statement, error.sqlstate)
        assert "Traceback" not in str(error)
    finally:
        shop.rollback()
    assert shop.execute("SELECT 1").fetchone() == (1,)
    shop.rollback()
