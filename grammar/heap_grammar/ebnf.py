"""The grammar as a page to read: `GRAMMAR.md`, every rule with links to the rules in it."""

from __future__ import annotations

from heap_grammar.outline import Choice, Expression, Literal, Maybe, Name, Pattern, Repeat, Rule, Sequence, outline
from heap_grammar.words import words

__all__ = ["ebnf"]

_HEAD = """# Grammar

Every rule of the language, generated from `heap_grammar/heap.lark`; also as [railroad diagrams](railroad.html). What
the words mean is in the [reference](heap_grammar/reference.md). `[ a ]` is optional, `{ a }` is there any number of
times or never, `( a | b )` is one of the two. Keywords may be written in upper case.
"""


def ebnf() -> str:
    """The page, Markdown."""
    lines = [_HEAD]
    section = ""
    for rule in outline():
        if rule.section != section:
            section = rule.section
            lines.append(_heading(section))
        lines.append(_rule(rule))
    return "\n".join(lines)


def _heading(section: str) -> str:
    """A comment of the grammar: its first words as heading, the rest below it."""
    for mark in (". ", ": "):
        title, found, rest = section.partition(mark)
        if found:
            return f"## {title}\n\n{rest[:1].upper()}{rest[1:].removesuffix('.')}.\n"
    return f"## {section}\n"


def _rule(rule: Rule) -> str:
    expression = rule.expression
    choices = expression.parts if isinstance(expression, Choice) else (expression,)
    if len(choices) == 1:
        return f'<a id="{rule.name}"></a>**{rule.name}** = {_shown(choices[0])}\n'
    lines = [f'<a id="{rule.name}"></a>**{rule.name}** =', "", *(f"- {_shown(choice)}" for choice in choices)]
    return "\n".join(lines) + "\n"


def _shown(expression: Expression) -> str:
    match expression:
        case Literal(text=text):
            return f"`{text}`"
        case Pattern(regex=regex):
            return _pattern(regex)
        case Name(name=name):
            return f"[{name}](#{name})"
        case Sequence(parts=parts):
            return " ".join(_grouped(part) for part in parts)
        case Choice(parts=parts):
            return " | ".join(_shown(part) for part in parts)
        case Maybe(part=part):
            return rf"\[ {_shown(part)} \]"
        case Repeat(part=part, optional=optional):
            repeated = rf"\{{ {_shown(part)} \}}"
            return repeated if optional else f"{_grouped(part)} {repeated}"


def _grouped(part: Expression) -> str:
    return f"( {_shown(part)} )" if isinstance(part, Choice) else _shown(part)


def _pattern(regex: str) -> str:
    """The words it stands for, or the regular expression where they cannot be listed."""
    listed = words(regex)
    return " | ".join(f"`{word}`" for word in listed) if listed else f"/ `{regex}` /"
