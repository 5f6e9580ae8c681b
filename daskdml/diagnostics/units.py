"""Quantities as people read them."""

from __future__ import annotations


def bytes_text(nbytes: float) -> str:
    """Write a number of bytes with three digits and a decimal unit.

    Examples
    --------
    >>> bytes_text(0), bytes_text(1_600_000_000), bytes_text(999_999)
    ('0 B', '1.6 GB', '1 MB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        text = f"{nbytes:.3g}"
        if float(text) < 1000:
            return f"{text} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.0f} PB"


def seconds_text(seconds: float) -> str:
    """Write a duration: seconds up to two minutes, then minutes, then hours.

    Examples
    --------
    >>> seconds_text(0.1234), seconds_text(75), seconds_text(150), seconds_text(7260)
    ('0.12 s', '75 s', '2 min 30 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
