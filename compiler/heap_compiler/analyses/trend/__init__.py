"""`trend count of "Purchase" by day group by country`: measures of events over time.

Buckets are instants computed at compile time, so that SQL only places each event among constants. Users and sessions
are exact distinct counts. Every bucket of every group has a row, also where nothing happened.
"""

from __future__ import annotations

from heap_compiler import syntax
from heap_compiler.analyses.trend.lower import lower_trend, trend_sources
from heap_compiler.analyses.trend.plan import bind_trend
from heap_compiler.analysis import Analysis, ResultColumn

__all__ = ["ANALYSIS"]

ANALYSIS = Analysis(
    keyword="trend",
    clauses=(
        syntax.By, syntax.GroupBy, syntax.Top, syntax.WithTotal, syntax.Rolling, syntax.Cumulative, syntax.Compared,
    ),
    row=(
        ResultColumn("bucket", "timestamptz"),
        ResultColumn("series", "text"),
        ResultColumn("group_key", "text"),
        ResultColumn("value", "numeric"),
    ),
    bind=bind_trend,
    lower=lower_trend,
    sources=trend_sources,
    strategy=lambda plan: plan.choice.strategy,
)  # fmt: skip
