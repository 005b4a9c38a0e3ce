"""`retention from "Signed up" to pageview by week for 12 weeks`: how many of each cohort come back later.

A cohort is the users whose first start event of the range lies in one calendar bucket; period k is the k-th bucket
after it, or the k-th bracket of buckets, or the k-th stretch of time after the user's own start. Periods that have not
begun are absent.
"""

from __future__ import annotations

from heap_compiler import syntax
from heap_compiler.analyses.retention.lower import lower_retention, retention_sources
from heap_compiler.analyses.retention.plan import bind_retention
from heap_compiler.analysis import Analysis, ResultColumn

__all__ = ["ANALYSIS"]

ANALYSIS = Analysis(
    keyword="retention",
    clauses=(
        syntax.By, syntax.Follow, syntax.Brackets, syntax.Windows, syntax.AtLeast, syntax.Rolling, syntax.Streak,
        syntax.Recurring, syntax.GroupBy, syntax.Top,
    ),
    row=(
        ResultColumn("cohort", "timestamptz"),
        ResultColumn("group_key", "text"),
        ResultColumn("size", "bigint"),
        ResultColumn("period", "int"),
        ResultColumn("users", "bigint"),
        ResultColumn("rate", "numeric"),
    ),
    bind=bind_retention,
    lower=lower_retention,
    sources=retention_sources,
    strategy=lambda plan: plan.choice.strategy,
)  # fmt: skip
