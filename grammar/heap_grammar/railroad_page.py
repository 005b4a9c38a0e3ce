"""The grammar as railroad diagrams: `railroad.html`, one diagram per rule, each linked to the rules in it."""

from __future__ import annotations

from html import escape

import railroad

from heap_grammar.outline import Choice, Expression, Literal, Maybe, Name, Pattern, Repeat, Sequence, outline
from heap_grammar.words import words

__all__ = ["railroad_page"]

_STYLE = """
body { font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
h3 { font-size: 1em; margin: 1.5em 0 0; }
svg.railroad-diagram { max-width: 100%; }
svg.railroad-diagram path { stroke: #555; stroke-width: 2; fill: none; }
svg.railroad-diagram text { font: bold 14px monospace; text-anchor: middle; }
svg.railroad-diagram rect { stroke: #555; stroke-width: 1; fill: #eef6e8; }
svg.railroad-diagram .non-terminal rect { fill: #e8eef8; }
svg.railroad-diagram a text { fill: #0645ad; }
"""


def railroad_page() -> str:
    """The page, HTML, with nothing to load from elsewhere."""
    parts = [f"<!doctype html>\n<meta charset='utf-8'>\n<title>Grammar of heap</title>\n<style>{_STYLE}</style>"]
    parts.append("<h1>Grammar</h1>\n<p>Generated from heap_grammar/heap.lark.</p>")
    section = ""
    for rule in outline():
        if rule.section != section:
            section = rule.section
            parts.append(f"<h2>{escape(section)}</h2>")
        drawn: list[str] = []
        railroad.Diagram(_drawn(rule.expression), type="complex").writeSvg(drawn.append)
        parts.append(f"<h3 id='{rule.name}'>{rule.name}</h3>\n{''.join(drawn).strip()}")
    return "\n".join(parts) + "\n"


def _drawn(expression: Expression) -> railroad.DiagramItem:
    match expression:
        case Literal(text=text):
            return railroad.Terminal(text)
        case Pattern(regex=regex):
            listed = words(regex)
            return railroad.Choice(0, *listed) if listed else railroad.Terminal(f"/{regex}/")
        case Name(name=name):
            return railroad.NonTerminal(name, href=f"#{name}")
        case Sequence(parts=parts):
            return railroad.Sequence(*(_drawn(part) for part in parts))
        case Choice(parts=parts):
            return railroad.Choice(0, *(_drawn(part) for part in parts))
        case Maybe(part=part):
            return railroad.Optional(_drawn(part))
        case Repeat(part=part, optional=optional):
            return (railroad.ZeroOrMore if optional else railroad.OneOrMore)(_drawn(part))
