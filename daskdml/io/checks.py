"""What may be rows, targets and weights: the same answers for writing, fitting and predicting.

Where scikit-learn refuses an input, the messages carry the phrases that its users know.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "check_dtype",
    "check_lengths",
    "check_shape",
    "feature_names_of",
    "frame_dtype",
    "is_dask",
    "is_frame",
    "matrix",
    "targets",
    "weights",
    "working_dtype",
]


def is_dask(x: Any) -> bool:
    """Whether `x` is a Dask array, DataFrame or Series; does not import Dask.

    Examples
    --------
    >>> is_dask(np.zeros(3))
    False
    """
    return type(x).__module__.partition(".")[0] == "dask" and hasattr(x, "__dask_graph__")


def is_frame(x: Any) -> bool:
    """Whether `x` is a DataFrame in memory; does not import pandas."""
    return hasattr(x, "iloc") and hasattr(x, "columns") and not is_dask(x)


def feature_names_of(x: Any) -> tuple[str, ...] | None:
    """Give the column names of a DataFrame, if all of them are strings; else None."""
    columns = getattr(x, "columns", None)
    if columns is None:
        return None
    names = tuple(columns)
    return names if all(isinstance(name, str) for name in names) else None


def frame_dtype(frame: Any) -> np.dtype[Any]:
    """Give the one dtype that holds all columns of a DataFrame.

    Raises
    ------
    ValueError, TypeError
        Where a column holds no numbers; names it.
    """
    dtypes = []
    for name, dtype in frame.dtypes.items():
        plain = getattr(dtype, "numpy_dtype", dtype)  # pandas' nullable numbers
        if not isinstance(plain, np.dtype) or plain.kind not in "biuf":
            raise ValueError(
                f"column {name!r} has dtype {dtype}, which is not numeric: encode or drop it"
            )
        dtypes.append(np.dtype("f8") if plain is not dtype and plain.kind != "f" else plain)
    return np.result_type(*dtypes) if dtypes else np.dtype("f8")


def check_dtype(dtype: np.dtype[Any], what: str = "X") -> None:
    """Refuse what is no real number.

    Raises
    ------
    ValueError
        For complex numbers, strings, dates and Python objects.
    """
    if dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {what} has dtype {dtype}; split it in parts")
    if dtype.kind not in "biuf":
        raise ValueError(f"{what} has dtype {dtype}, which is not numeric: convert or encode it")


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Give the floating-point dtype in which numbers are worked with.

    float32 holds booleans, float16 and integers of at most 16 bits exactly; the rest, other than
    float32 itself, is worked with in float64.

    Examples
    --------
    >>> working_dtype(np.dtype("i2")), working_dtype(np.dtype("i4"))
    (dtype('float32'), dtype('float64'))
    """
    small = dtype == np.float32 or dtype.kind == "b" or dtype.itemsize <= 2
    return np.dtype(np.float32) if small else np.dtype(np.float64)


def check_shape(shape: tuple[int, ...], what: str = "X") -> None:
    """Refuse what is not at least one row of at least one feature.

    Raises
    ------
    ValueError
        With the shape and what to do.
    """
    if len(shape) == 1 or len(shape) == 0:
        raise ValueError(
            f"Expected 2D array, got {'1D' if shape else 'scalar'} array instead ({what} has shape "
            f"{shape}). Reshape your data with {what}.reshape(-1, 1) if it is one feature or "
            f"{what}.reshape(1, -1) if it is one row."
        )
    if len(shape) != 2:
        raise ValueError(f"Found array with dim {len(shape)}, while {what} needs dim <= 2")
    for n, unit in zip(shape, ("sample(s)", "feature(s)"), strict=True):
        if n == 0:
            raise ValueError(
                f"Found array with 0 {unit} (shape={shape}) while a minimum of 1 is required."
            )


def check_lengths(n_rows: int, **others: int | None) -> None:
    """Refuse parts of different lengths.

    Examples
    --------
    >>> check_lengths(3, y=4)
    Traceback (most recent call last):
    ValueError: Found input variables with inconsistent numbers of samples: X has 3, y has 4
    """
    wrong = {name: n for name, n in others.items() if n is not None and n != n_rows}
    if wrong:
        found = ", ".join(f"{name} has {n}" for name, n in {"X": n_rows, **wrong}.items())
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {found}")


def matrix(X: Any, what: str = "X") -> np.ndarray:
    """Give an array-like as a two-dimensional array of numbers, copied only where it must be.

    Raises
    ------
    ValueError, TypeError
        Where it is sparse, has another dimension, no rows or columns, or no numbers.
    """
    if hasattr(X, "tocsr"):
        raise TypeError(f"Sparse data was passed as {what}, but dense is required: pass .toarray()")
    if is_frame(X):
        check_shape(tuple(X.shape), what)
        return np.asarray(X.to_numpy(dtype=frame_dtype(X)))
    X = np.asarray(X)
    check_shape(X.shape, what)
    if X.dtype.kind == "O":
        X = X.astype(np.float64)
    check_dtype(X.dtype, what)
    return X.astype(X.dtype.newbyteorder("="), copy=False)


def targets(y: Any) -> np.ndarray:
    """Give targets as a one-dimensional array of numbers or strings, never of objects.

    Examples
    --------
    >>> targets(np.array(["no", "yes"], dtype=object)).dtype.kind
    'U'
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y.reshape(-1)
    if y.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {y.shape} instead.")
    if y.dtype.kind not in "biufUS":
        y = np.array(y.tolist())
    if y.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: y has dtype {y.dtype}; split it in parts")
    if y.ndim != 1 or y.dtype.kind not in "biufUS":
        raise ValueError(f"y has dtype {y.dtype}: unknown label type, give numbers or strings")
    y = np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y
    return y.astype(y.dtype.newbyteorder("="), copy=False)


def weights(sample_weight: Any, n_rows: int) -> np.ndarray:
    """Give weights as a one-dimensional array of float32 or float64, one for each row."""
    w = np.asarray(sample_weight)
    if w.ndim == 0:
        w = np.full(n_rows, w)
    if w.ndim != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar, got shape {w.shape}")
    check_dtype(w.dtype, "sample_weight")
    if len(w) != n_rows:
        raise ValueError(f"sample_weight.shape == {w.shape}, expected {(n_rows,)}!")
    return w if w.dtype in (np.float32, np.float64) else w.astype(np.float64)
