"""Texts that regular expressions require, worked out by hand; and of selectors, that every match has them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heap_compiler.hierarchy import Element, encode, selector_pattern
from heap_compiler.patterns import required_texts


@pytest.mark.parametrize(
    ("pattern", "required"),
    [
        ("blog", [["blog"]]),
        ("^/blog$", [["/blog"]]),
        (r"shop\.com", [["shop.com"]]),
        ("blog.*comments", [["comments"], ["blog"]]),
        ("blogs?/", [["blog"]]),
        ("blogs+/x", [["blogs"], ["s/x"]]),
        ("abc{2}def", [["cdef"], ["abc"]]),
        ("abc{0,2}def", [["def"]]),
        ("abc{,2}", [["abc{,2}"]]),
        ("(news|sport)/blog", [["/blog"], ["news", "sport"]]),
        ("(news|a)/blog", [["/blog"]]),
        ("(news|)blog", [["blog"]]),
        ("news|sport", [["news", "sport"]]),
        ("(?:news)+blog", [["blog"], ["news"]]),
        ("(news)*blog", [["blog"]]),
        ("(?!news)blog", []),
        ("(?i)blog", []),
        ("(?#one)blog", []),
        ("***=blog", []),
        (r"(blog)\1", []),
        (r"blog\u0041", []),
        (r"blog\dnews", [["blog"], ["news"]]),
        (r"\mblog\M", [["blog"]]),
        ("[[:alpha:]]blog[]abc]news", [["blog"], ["news"]]),
        (r"[^\]x]blog", [["blog"]]),
        ("[[.].]]blog", [["blog"]]),
        ("blog/blog/news|sport/blog", [["blog/blog/news", "sport/blog"]]),
        ("sport.*news.*blogs.*sp", [["blogs"], ["sport"], ["news"]]),
        ("one.*three.*eleven.*fourteen", [["fourteen"], ["eleven"], ["three"]]),
        ("news.*/news/", [["/news/"]]),
        ("ab", []),
        ("*", []),
        ("", []),
    ],
)
def test_texts_that_every_match_contains(pattern: str, required: list[list[str]]) -> None:
    assert required_texts(pattern) == tuple(map(tuple, required))


def test_patterns_of_any_depth_are_read_or_left_alone() -> None:
    assert required_texts("(" * 40 + "blog" + ")" * 40) == (("blog",),)
    assert required_texts("(" * 5_000 + "blog" + ")" * 5_000) == ()


@pytest.mark.parametrize(
    ("selector", "required"),
    [
        ("form.checkout button.watched-7", [[".watched-7;"], [".checkout;"]]),
        ("#go", [["#go;"]]),
        ("nav > a[href^='/docs']", [["[href=%2Fdocs"]]),
        ("a:nth-child(2)", [[":nth-child(2);"], ["@a;"]]),
        ("nav > a", [["@nav;"], ["|@a;"]]),
        (".buy, #order", [["#order;", ".buy;"]]),
        (".buy, *", []),
        ("*", []),
    ],
)
def test_texts_of_selectors(selector: str, required: list[list[str]]) -> None:
    assert required_texts(selector_pattern(selector)) == tuple(map(tuple, required))


_NAMES = st.sampled_from(["a", "b", "nav", "a b", "é|]"])
_ELEMENTS = st.builds(
    Element,
    st.sampled_from(["a", "nav", "button"]),
    st.none() | _NAMES,
    st.lists(_NAMES, max_size=2),
    st.dictionaries(st.sampled_from(["href", "rel"]), _NAMES, max_size=2),
    st.none() | st.integers(1, 3),
)
_TESTS = st.sampled_from(
    ["#a", "#nav", ".a", ".b", ".nav", "[href]", "[href=nav]", "[rel^=a]", "[rel$=b]", "[href*='a ']", "[rel~=b]",
     ":first-child", ":nth-child(2)", ":nth-child(odd)"]
)  # fmt: skip
_COMPOUNDS = st.builds(
    lambda tag, tests: tag + "".join(dict.fromkeys(tests)),
    st.sampled_from(["a", "nav", "button", "*"]),
    st.lists(_TESTS, max_size=2).filter(lambda tests: sum(test[0] in "#" for test in tests) < 2),
).filter(lambda compound: compound.count(":") < 2)
_SELECTORS = st.recursive(
    _COMPOUNDS, lambda inner: st.tuples(inner, st.sampled_from([" ", " > ", ", "]), inner).map("".join), max_leaves=4
)


@given(st.lists(_ELEMENTS, min_size=1, max_size=4), _SELECTORS)
def test_a_hierarchy_that_a_selector_matches_has_the_texts_it_requires(page: list[Element], selector: str) -> None:
    pattern, hierarchy = selector_pattern(selector), encode(page)
    if re.search(pattern, hierarchy):
        assert all(any(text in hierarchy for text in choices) for choices in required_texts(pattern))
