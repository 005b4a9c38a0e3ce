"""Two-by-two tables in SQL: do users with a trait convert differently from the others, and by more than chance?

A table is a row with the columns `converted` and `not_converted`, of those with the trait, and `others_converted` and
`others_not_converted`.
"""

from __future__ import annotations

from functools import reduce

from sqlglot import exp

from heap_compiler.sql import cast, column, function, named, number, select, share, subquery, table_alias

__all__ = ["COMPUTED_ONCE", "odds_ratio", "p_values"]

_CELLS = ("converted", "not_converted", "others_converted", "others_not_converted")

_LEAST_EXPECTED = 5
"""With fewer expected in any cell, chi-squared approximates badly: W. G. Cochran, Biometrics 10 (1954), 417-451."""

_ERFC = (
    "0.17087277", "-0.82215223", "1.48851587", "-1.13520398", "0.27886807", "-0.18628806", "0.09678418", "0.37409196",
    "1.00002368", "-1.26551223",
)  # fmt: skip
"""A Chebyshev fit of erfc whose relative error is below 1.2e-7 everywhere: W. H. Press et al., Numerical Recipes in C,
second edition (1992), section 6.2, `erfcc`."""

COMPUTED_ONCE = frozenset({"deviations", "fits", "tested"})
"""Queries of `p_values` to materialize: PostgreSQL would else compute a column of theirs wherever it is named."""

_SMALLEST_EXPONENT = -700
"""Of e in a double; PostgreSQL makes anything smaller an error."""


def odds_ratio() -> exp.Expr:
    """The odds of converting with the trait over those without it. With an empty cell, a half is added to each
    (J. B. S. Haldane 1956, F. J. Anscombe 1956); null where everybody has the trait."""
    cells = [cast(column(name), "numeric") for name in _CELLS]
    has_empty = exp.EQ(this=function("least", *(column(name) for name in _CELLS)), expression=number(0))
    padded = [cell + exp.Literal.number("0.5") for cell in cells]
    others = column("others_converted") + column("others_not_converted")
    return exp.Case(
        ifs=[
            exp.If(this=exp.EQ(this=others, expression=number(0)), true=exp.Null()),
            exp.If(this=has_empty, true=_ratio_of_products(*padded)),
        ],
        default=_ratio_of_products(*cells),
    )


def _ratio_of_products(yes: exp.Expr, no: exp.Expr, others_yes: exp.Expr, others_no: exp.Expr) -> exp.Expr:
    return share(yes * others_no, no * others_yes)


def p_values(tables: str) -> list[tuple[str, exp.Query]]:
    """The named queries that end in `tested`: the rows of `tables` with `p_value`, two-sided.

    It is that of chi-squared with Yates's correction; where few are expected in a cell, of Fisher's exact test, which
    the corrected one approximates.
    """
    margins = select([exp.Star(), *(named(value, name) for name, value in _margins().items())], tables)
    fewest_users = function("least", column("having_it"), column("others"))
    fewest = fewest_users * function("least", column("all_converted"), column("all_not_converted"))
    few = exp.LT(this=fewest, expression=column("everybody") * number(_LEAST_EXPECTED))
    deviations = select([exp.Star(), named(few, "few"), named(_deviation(), "deviation")], "margins")
    width = exp.paren(column("deviation") / number(2) + number(1))
    fit = exp.Div(this=cast(number(1), "double precision"), expression=width)
    fits = select([exp.Star(), named(fit, "fit")], "deviations")
    p_value = exp.Case(ifs=[exp.If(this=column("few"), true=_fisher("fits"))], default=_erfc())
    tested = select([exp.Star(), named(p_value, "p_value")], "fits")
    return [("margins", margins), ("deviations", deviations), ("fits", fits), ("tested", tested)]


def _margins() -> dict[str, exp.Expr]:
    yes, no, others_yes, others_no = (cast(column(name), "double precision") for name in _CELLS)
    return {
        "having_it": yes + no,
        "others": others_yes + others_no,
        "all_converted": yes + others_yes,
        "all_not_converted": no + others_no,
        "everybody": yes + no + others_yes + others_no,
    }


def _deviation() -> exp.Expr:
    """The square root of half of chi-squared: what erfc takes."""
    yes, no, others_yes, others_no = (cast(column(name), "double precision") for name in _CELLS)
    apart = function("abs", yes * others_no - no * others_yes) - column("everybody") / number(2)
    product = column("having_it") * column("others") * column("all_converted") * column("all_not_converted")
    scale = exp.Div(this=column("everybody"), expression=exp.Nullif(this=product * number(2), expression=number(0)))
    return function("greatest", apart, number(0)) * function("sqrt", scale)


def _erfc() -> exp.Expr:
    """erfc of `deviation`, with `fit` = 1 / (1 + deviation / 2)."""
    first, *others = (exp.Literal.number(value) for value in _ERFC)
    polynomial = reduce(lambda sum_so_far, constant: sum_so_far * column("fit") + constant, others, first)
    return column("fit") * _exp(polynomial - column("deviation") * column("deviation"))


def _exp(exponent: exp.Expr) -> exp.Expr:
    return function("exp", function("greatest", exponent, number(_SMALLEST_EXPONENT)))


def _fisher(table: str) -> exp.Expr:
    """The probability, among all tables of the same margins, of those no likelier than this one. The number converted
    with the trait runs over all it can be; each probability follows from the one before, here as logarithms."""
    yes, no, others_yes, others_no = (column(name, table) for name in _CELLS)
    k = column("k")
    lowest, highest = function("greatest", yes - others_no, number(0)), yes + function("least", no, others_yes)
    ways = cast(exp.paren((yes + no - k + number(1)) * (yes + others_yes - k + number(1))), "double precision")
    step = function("ln", exp.Div(this=ways, expression=exp.paren(k * (others_no - yes + k))))
    steps = exp.Case(ifs=[exp.If(this=exp.GT(this=k, expression=lowest), true=step)], default=number(0))
    in_order = exp.Order(expressions=[k])
    likelihoods = select(
        [k, named(exp.Window(this=exp.Sum(this=steps), order=in_order), "likelihood")],
        exp.Table(this=function("generate_series", lowest, highest), alias=table_alias("possible", "k")),
    )
    greatest = exp.Window(this=exp.Max(this=column("likelihood")))
    is_observed = exp.Where(this=exp.EQ(this=k, expression=yes))
    observed = exp.Window(this=exp.Filter(this=exp.Max(this=column("likelihood")), expression=is_observed))
    scaled = select(
        [named(column("likelihood") - greatest, "likelihood"), named(observed - greatest, "observed")],
        subquery(likelihoods, "likelihoods"),
    )
    each = exp.Sum(this=_exp(column("likelihood")))
    tolerance = exp.Literal.number("0.0000001")  # equally likely tables differ by rounding
    no_likelier = exp.LTE(this=column("likelihood"), expression=column("observed") + tolerance)
    no_likelier_share = exp.Div(
        this=exp.Filter(this=each, expression=exp.Where(this=no_likelier)), expression=each.copy()
    )
    return exp.Subquery(this=select([no_likelier_share], subquery(scaled, "scaled")))
