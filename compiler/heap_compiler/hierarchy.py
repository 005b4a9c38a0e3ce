"""The captured element hierarchy as text, and CSS selectors as regular expressions over that text.

A click stores the clicked element and its ancestors, outermost first, each element closed by `|`:

    @form;.signup;|@button;#go;.big;.primary;[name=plan];:nth-child(2);|

An element is its tag, then id, classes, attributes and position, in that order, classes and attributes sorted by name.
`encode` writes it; every character with a meaning in the format is percent-encoded inside names and values, so that a
pattern can never match across them. `selector_pattern` reads a selector with the cssselect library and returns a POSIX
regular expression, which PostgreSQL treats as immutable: it can stand in an index's predicate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from heap_compiler.errors import HeapError

__all__ = ["Element", "encode", "selector_pattern"]

MAX_SELECTOR_LENGTH = 1_000

_SPECIAL = re.compile(r"[^A-Za-z0-9_\-\u0080-\U0010ffff]")


class Element(NamedTuple):
    """One element of a page as captured."""

    tag: str
    id: str | None = None
    classes: Sequence[str] = ()
    attributes: Mapping[str, str] = {}
    nth_child: int | None = None


def encode(elements: Iterable[Element]) -> str:
    """The stored text of a hierarchy, outermost element first.

    >>> encode([Element("form", classes=["signup"]), Element("button", id="go", nth_child=2)])
    '@form;.signup;|@button;#go;:nth-child(2);|'
    """
    return "".join(_encode_element(element) for element in elements)


def _encode_element(element: Element) -> str:
    parts = [f"@{_escape(element.tag.lower())};"]
    if element.id:
        parts.append(f"#{_escape(element.id)};")
    parts += [f".{_escape(name)};" for name in sorted(set(element.classes))]
    parts += [f"[{_escape(name.lower())}={_escape(value)}];" for name, value in sorted(element.attributes.items())]
    if element.nth_child is not None:
        parts.append(f":nth-child({element.nth_child});")
    return "".join(parts) + "|"


def _escape(text: str) -> str:
    """`text` as stored. Nothing left in it has a meaning in a regular expression, so patterns use it as it is."""
    return _SPECIAL.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8")), text)


def selector_pattern(selector: str) -> str:
    """The regular expression that a stored hierarchy matches when its last element matches the CSS selector.

    Tags, #id, .class, attribute tests, `:nth-child(n | odd | even)`, `:first-child`, the descendant and child
    combinators and `,` alternatives. Names of tags and attributes ignore case, as in HTML.

    Raises:
        HeapError: not a CSS selector, or one that needs what is not captured (siblings, `:hover`, ...).
    """
    import cssselect

    if len(selector) > MAX_SELECTOR_LENGTH:
        raise HeapError(f"a selector may have {MAX_SELECTOR_LENGTH:,} characters, this one has {len(selector):,}")
    try:
        parsed = cssselect.parse(selector)
    except cssselect.SelectorSyntaxError as invalid:
        raise HeapError(f"not a CSS selector: {invalid}") from None
    alternatives = []
    for alternative in parsed:
        if alternative.pseudo_element is not None:
            raise _unsupported(f"::{alternative.pseudo_element}")
        alternatives.append(_pattern(alternative.parsed_tree))
    body = alternatives[0] if len(alternatives) == 1 else f"({'|'.join(alternatives)})"
    return rf"(^|\|){body}$"


def _pattern(tree: Any) -> str:
    """The pattern of a selector without its anchors: elements from the outermost named one to the target."""
    if type(tree).__name__ != "CombinedSelector":
        return _Compound(tree).pattern()
    ancestors, target = _pattern(tree.selector), _Compound(tree.subselector).pattern()
    match tree.combinator:
        case " ":
            return rf"{ancestors}(.*\|)?{target}"
        case ">":
            return f"{ancestors}{target}"
        case combinator:
            raise _unsupported(f"the combinator {combinator}", "siblings are not captured")


class _Compound:
    """One compound selector, such as `button.primary[name=plan]:nth-child(2)`."""

    def __init__(self, tree: Any) -> None:
        self.tag: str | None = None
        self.ids: list[str] = []
        self.classes: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.positions: list[str] = []
        self._read(tree)

    def _read(self, tree: Any) -> None:
        match type(tree).__name__:
            case "Element":
                if tree.namespace is not None:
                    raise _unsupported(f"the namespace {tree.namespace}")
                self.tag = tree.element
                return
            case "Hash":
                self.ids.append(tree.id)
            case "Class":
                self.classes.add(tree.class_name)
            case "Attrib":
                self._read_attribute(tree)
            case "Function" if tree.name == "nth-child":
                self.positions.append(_nth_child(tree))
            case "Pseudo" if tree.ident == "first-child":
                self.positions.append("1")
            case "Pseudo":
                raise _unsupported(f":{tree.ident}")
            case "Function":
                raise _unsupported(f":{tree.name}()")
            case other:
                raise _unsupported(f":{other.lower()}()")
        self._read(tree.selector)

    def _read_attribute(self, tree: Any) -> None:
        name = tree.attrib.lower()
        value = None if tree.value is None else _escape(tree.value.value)
        if name == "id" and tree.operator == "=":
            self.ids.append(tree.value.value)
            return
        if name == "class" and tree.operator == "~=":
            self.classes.add(tree.value.value)
            return
        if name in {"id", "class"}:
            raise _unsupported(f"[{name}{tree.operator}...]", f"use {'#id' if name == 'id' else '.class'}")
        match tree.operator:
            case "exists":
                test = "[^];]*"
            case "=":
                test = f"{value}"
            case "^=":
                test = f"{value}[^];]*"
            case "$=":
                test = f"[^];]*{value}"
            case "*=":
                test = f"[^];]*{value}[^];]*"
            case "~=":
                test = f"([^];]*%20)?{value}(%20[^];]*)?"
            case "|=":
                test = f"{value}(-[^];]*)?"
            case operator:
                raise _unsupported(f"the attribute test {operator}")
        never = tree.operator in {"^=", "$=", "*="} and not tree.value.value
        if never or (tree.operator == "~=" and len(tree.value.value.split()) != 1):
            test = ";"  # CSS: this matches nothing; no stored value has a `;`
        self.attributes.append((name, rf"\[{_escape(name)}={test}\];"))

    def pattern(self) -> str:
        if len(set(self.ids)) > 1 or len(set(self.positions)) > 1:
            raise HeapError("not a CSS selector: one element cannot have two ids or two positions")
        parts = ["@" + (_escape(self.tag.lower()) if self.tag else "[^;|]*") + ";"]
        parts += [f"#{_escape(self.ids[0])};"] if self.ids else []
        parts += [rf"\.{_escape(name)};" for name in sorted(self.classes)]
        parts += [test for _, test in sorted(self.attributes)]
        parts += [rf":nth-child\({self.positions[0]}\);"] if self.positions else []
        # Between two wanted parts lie unwanted ones of the same element; the order within an element is fixed.
        return "[^|]*".join(parts) + r"[^|]*\|"


def _nth_child(tree: Any) -> str:
    from cssselect.parser import parse_series

    try:
        step, offset = parse_series(tree.arguments)
    except ValueError:
        raise HeapError("not a CSS selector: :nth-child() takes a number, odd or even") from None
    match step, offset:
        case 0, offset if offset > 0:
            return str(offset)
        case 2, 1:
            return "[0-9]*[13579]"
        case 2, 0:
            return "[0-9]*[02468]"
    raise _unsupported(":nth-child() with that formula", "it takes a number, odd or even")


def _unsupported(what: str, hint: str | None = None) -> HeapError:
    return HeapError(f"element matches does not know {what}", hint=hint)
