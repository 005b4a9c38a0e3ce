"""CSS selectors over the stored hierarchy, against matches worked out by hand."""

from __future__ import annotations

import re

import pytest

from heap_compiler import HeapError
from heap_compiler.hierarchy import Element, encode, selector_pattern

_PAGE = [
    Element("html"),
    Element("div", "main", ["header", "dark"]),
    Element("form", None, ["signup"], {"name": "plan pro"}),
    Element("button", "go", ["primary", "big.one"], {"data-x": "a;b|c]", "lang": "de-AT"}, 3),
]
_MATCHING = [
    "button", "BUTTON", "*", "#go", ".primary", "button#go.primary", ".primary.big\\.one", "form button", "div button",
    "form > button", "html div > form > button", "div.dark.header form[name] .primary", "button:nth-child(3)",
    "button:nth-child(odd)", "a, button", "form[name='plan pro'] *", "form[name~=pro] > *", "form[name^=plan] *",
    "form[name$=pro] *", "form[name*='n p'] *", "[lang|=de]", "[data-x='a;b|c]']", "[id=go]", "[class~=primary]",
]  # fmt: skip
_OTHER = [
    "form", "div", "a", "#main", "#g", ".prim", ".one", "html > button", "div > button", "form form button",
    "button:nth-child(2)", "button:nth-child(even)", "button:first-child", "form[name=plan] *", "form[name^=''] *",
    "[data-x='a']", ".big", "butto", "utton", "form[name~='plan pro'] *", "button.signup",
]  # fmt: skip


@pytest.mark.parametrize("selector", _MATCHING)
def test_selectors_that_match_the_clicked_element(selector: str) -> None:
    assert re.search(selector_pattern(selector), encode(_PAGE))


@pytest.mark.parametrize("selector", _OTHER)
def test_selectors_that_do_not(selector: str) -> None:
    assert not re.search(selector_pattern(selector), encode(_PAGE))


@pytest.mark.parametrize(
    "selector",
    [
        "",
        "a:hover",
        "a + b",
        "a ~ b",
        "a:not(.b)",
        "a:nth-child(3n+1)",
        "a::before",
        "ns|a",
        "..",
        "#a#b",
        "[",
    ],
)
def test_selectors_that_cannot_be_answered_say_so(selector: str) -> None:
    with pytest.raises(HeapError):
        selector_pattern(selector)
