"""Functions of reals with the same bits on every machine."""

from __future__ import annotations


def power(base: float, exponent: int) -> float:
    """base^exponent by squaring: IEEE products only, so the same bits on every machine (libm's pow need not be)."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def half_cosine(t: float) -> float:
    """(1 + cos(pi t)) / 2 for t in [0, 1] = cos(pi t / 2)^2, by cosine's series to x^18 (below 3e-15 for x <= pi / 2).

    IEEE operations only, for the same reason as `power`.
    """
    x2, term, total = (1.5707963267948966 * t) ** 2, 1.0, 1.0
    for n in range(1, 10):
        term *= -x2 / ((2 * n - 1) * (2 * n))
        total += term
    return total * total
