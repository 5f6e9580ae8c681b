"""Quantities as people read them: every message, plan and picture of the package uses these.

Bytes are in decimal units, as in ``memory_limit="4GB"``, which Dask reads as 4,000,000,000.
"""

from __future__ import annotations

UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def byte_unit(nbytes: float) -> tuple[float, str]:
    """The largest unit in which three digits of so many bytes are 1 or more: (bytes, name).

    Examples
    --------
    >>> byte_unit(1_600_000), byte_unit(0)
    ((1000000.0, 'MB'), (1.0, 'B'))
    """
    return next((unit for unit in UNITS if nbytes >= 0.9995 * unit[0]), UNITS[-1])


def bytes_text(nbytes: float) -> str:
    """Write a number of bytes with three digits and a decimal unit.

    Examples
    --------
    >>> bytes_text(0), bytes_text(1_600_000_000), bytes_text(999_999)
    ('0 B', '1.6 GB', '1 MB')
    """
    size, name = byte_unit(nbytes)
    return f"{nbytes / size:.3g} {name}"


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
