"""Tests of two-by-two tables in the simplest Python there is."""

from __future__ import annotations

from fractions import Fraction
from math import comb, erfc, sqrt


def fisher(yes: int, no: int, others_yes: int, others_no: int) -> float:
    """Two-sided: the probability of all tables with these margins that are no likelier than this one."""
    having, converted, everybody = yes + no, yes + others_yes, yes + no + others_yes + others_no
    ways = {
        k: comb(converted, k) * comb(everybody - converted, having - k)
        for k in range(max(0, having + converted - everybody), min(having, converted) + 1)
    }
    return float(Fraction(sum(way for way in ways.values() if way <= ways[yes]), sum(ways.values())))


def chi_squared(yes: int, no: int, others_yes: int, others_no: int) -> float:
    """With Yates's correction; one degree of freedom."""
    everybody = yes + no + others_yes + others_no
    apart = max(abs(yes * others_no - no * others_yes) - everybody / 2, 0)
    margins = (yes + no) * (others_yes + others_no) * (yes + others_yes) * (no + others_no)
    return erfc(sqrt(everybody * apart**2 / margins / 2))


def p_value(yes: int, no: int, others_yes: int, others_no: int) -> float:
    """Chi-squared, or Fisher's exact test where fewer than 5 are expected in a cell."""
    everybody = yes + no + others_yes + others_no
    expected = [
        rows * columns for rows in (yes + no, others_yes + others_no) for columns in (yes + others_yes, no + others_no)
    ]
    return (fisher if min(expected) < 5 * everybody else chi_squared)(yes, no, others_yes, others_no)


def odds_ratio(yes: int, no: int, others_yes: int, others_no: int) -> float | None:
    """With a half added to each cell where one is empty; None where there are no others."""
    if not others_yes + others_no:
        return None
    add = Fraction(1, 2) if 0 in (yes, no, others_yes, others_no) else 0
    return float(Fraction((yes + add) * (others_no + add)) / ((no + add) * (others_yes + add)))
