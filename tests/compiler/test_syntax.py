"""Nodes of the syntax tree are values: immutable, complete, equal by what they say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from heap_compiler import syntax
from heap_compiler.errors import Span

_SPAN = Span(0, 3)


def test_nodes_are_equal_when_type_and_fields_are() -> None:
    node = syntax.RawEvent(span=_SPAN, type="any")
    assert node == syntax.RawEvent(span=_SPAN, type="any")
    assert hash(node) == hash(syntax.RawEvent(span=_SPAN, type="any"))
    assert node != syntax.RawEvent(span=_SPAN, type="click")
    assert node != syntax.DefinedEvent(span=_SPAN, name="any")
    assert syntax.Recurring(span=_SPAN) != syntax.Streak(span=_SPAN)


def test_nodes_cannot_be_changed() -> None:
    node = syntax.RawEvent(span=_SPAN, type="click")
    with pytest.raises(AttributeError, match="RawEvent is immutable"):
        node.type = "submit"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="RawEvent is immutable"):
        del node.type
    assert node.replace(type="submit") == syntax.RawEvent(span=_SPAN, type="submit")
    assert node.type == "click"


def test_fields_are_those_declared_with_inherited_ones_and_defaults() -> None:
    event = syntax.AnyEvent(span=_SPAN)
    step = syntax.Step(span=_SPAN, event=event, label=None)
    assert (step.within, step.optional) == (None, False)
    assert step == syntax.Step(span=_SPAN, event=event, label=None, within=None, optional=False)
    with pytest.raises(TypeError, match="label"):
        syntax.Step(span=_SPAN, event=event)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="width"):
        step.replace(width=1)
    with pytest.raises(TypeError, match="repeatable"):
        syntax.Without(span=_SPAN, event=event, first=None, last=None, repeatable=True)  # type: ignore[call-arg]


def test_the_server_imports_no_analysis_before_one_is_asked_for() -> None:
    code = (
        "import sys, heap_extension.server; print([name for name in sys.modules"
        " if name == 'heap_compiler.complete' or name.startswith('heap_compiler.analyses.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
