"""A scale of colours that everybody can tell apart."""

from __future__ import annotations

Colour = tuple[int, int, int]

# Viridis (van der Walt and Smith, 2015, CC0), one polynomial of degree 6 for each of red, green and
# blue, constant term first. Its lightness grows evenly, so that it reads in grey and to the
# colour-blind. No value is more than 3 of 255 from the table.
_VIRIDIS = (
    (0.2777, 0.10509, -0.33086, -4.63423, 6.22827, 4.77638, -5.43546),
    (0.00541, 1.40461, 0.21485, -5.7991, 14.17993, -13.74515, 4.64585),
    (0.3341, 1.38459, 0.0951, -19.33244, 56.69055, -65.35303, 26.31244),
)


def viridis(value: float) -> Colour:
    """From dark violet at 0 over green to yellow at 1; values outside are clipped."""
    x = min(max(value, 0.0), 1.0)
    red, green, blue = (_channel(x, coefficients) for coefficients in _VIRIDIS)
    return red, green, blue


def _channel(x: float, coefficients: tuple[float, ...]) -> int:
    total = sum(factor * x**power for power, factor in enumerate(coefficients))
    return round(255 * min(max(total, 0.0), 1.0))
