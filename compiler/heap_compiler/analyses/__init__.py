"""The analyses of the language, one module each. Adding one: its module, and its line here."""

from __future__ import annotations

from typing import Any

from heap_compiler.analyses import (
    attribution,
    correlate,
    distribution,
    effort,
    funnel,
    lifecycle,
    paths,
    retention,
    sessions,
    stickiness,
    time,
    trend,
    users,
)
from heap_compiler.analysis import Analysis

__all__ = ["ANALYSES"]

ANALYSES: tuple[Analysis[Any], ...] = (
    trend.ANALYSIS,
    funnel.ANALYSIS,
    retention.ANALYSIS,
    lifecycle.ANALYSIS,
    stickiness.ANALYSIS,
    users.ANALYSIS,
    sessions.ANALYSIS,
    distribution.ANALYSIS,
    time.ANALYSIS,
    paths.ANALYSIS,
    attribution.ANALYSIS,
    correlate.ANALYSIS,
    effort.ANALYSIS,
)
