"""What may be rows, targets and weights."""

from __future__ import annotations

import numpy as np
import pytest

from daskdml.io.checks import (
    check_lengths,
    feature_names_of,
    frame_dtype,
    is_dask,
    is_frame,
    matrix,
    targets,
    weights,
    working_dtype,
)


def test_good_rows_are_not_copied():
    """An array of numbers passes as it is."""
    for dtype in ("f4", "f8", "i8", "?"):
        x = np.ones((3, 2), dtype)
        assert matrix(x) is x or np.shares_memory(matrix(x), x)


def test_lists_objects_and_byte_orders_become_arrays():
    """Lists, objects that are numbers, and foreign byte orders become native arrays."""
    want = np.array([[1.0, 2.0]])
    for x in ([[1, 2]], np.array([[1, 2]], dtype=object), np.array([[1, 2]], dtype=">f4")):
        got = matrix(x)
        assert np.array_equal(got, want) and got.dtype.isnative and got.dtype.kind in "fi"


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.ones(3), ValueError, r"Expected 2D array, got 1D array instead.*Reshape your data"),
        (np.float64(3), ValueError, r"got scalar array instead.*Reshape your data"),
        (np.ones((2, 2, 2)), ValueError, "dim 3"),
        (np.ones((0, 3)), ValueError, r"0 sample\(s\) \(shape=\(0, 3\)\) while a minimum of 1"),
        (np.ones((3, 0)), ValueError, r"0 feature\(s\) \(shape=\(3, 0\)\) while a minimum of 1"),
        (np.ones((2, 2), "c16"), ValueError, "Complex data not supported"),
        (np.full((2, 2), {"a": 1}), TypeError, "argument must be .* string.* number"),
        (np.full((2, 2), "a"), ValueError, "not numeric"),
        (np.full((2, 2), "a", object), ValueError, "could not convert string"),
        (np.ones((2, 2), "M8[s]"), ValueError, "not numeric"),
    ],
)
def test_bad_rows_are_refused_with_the_phrases_users_know(x, error, match):
    """The messages carry scikit-learn's phrases."""
    with pytest.raises(error, match=match):
        matrix(x)


def test_sparse_rows_are_refused():
    """Sparse matrices and arrays are told what to do."""
    sparse = pytest.importorskip("scipy.sparse")
    for x in (sparse.csr_matrix(np.eye(2)), sparse.coo_array(np.eye(2))):
        with pytest.raises(TypeError, match=r"Sparse data.*toarray"):
            matrix(x)


def test_targets_are_numbers_or_strings():
    """Objects become what they hold; a single column becomes flat."""
    for y, kind in [
        ([1, 2], "i"),
        ([True, False], "b"),
        (["a", "b"], "U"),
        (np.array(["a", "b"], object), "U"),
        (np.array([1, 2], object), "i"),
        (np.array([b"a", b"b"]), "U"),
        (np.array([[1.0], [2.0]]), "f"),
    ]:
        got = targets(y)
        assert got.shape == (2,) and got.dtype.kind == kind
    for bad in (np.ones((2, 2)), np.array([None, 1]), np.array([1j, 2])):
        with pytest.raises(ValueError):
            targets(bad)


def test_weights_are_one_float_for_each_row():
    """Numbers are spread, integers become floats, float32 stays."""
    assert weights(2, 3).tolist() == [2.0, 2.0, 2.0]
    assert weights([1, 2, 3], 3).dtype == np.float64
    assert weights(np.ones(3, "f4"), 3).dtype == np.float32
    with pytest.raises(ValueError, match=r"sample_weight.shape == \(2,\), expected \(3,\)"):
        weights([1, 2], 3)
    with pytest.raises(ValueError, match="must be 1D"):
        weights(np.ones((3, 1)), 3)


@pytest.mark.parametrize(
    ("dtype", "want"),
    [
        *[(small, "f4") for small in ("f4", "f2", "?", "i1", "u2")],
        *[(large, "f8") for large in ("f8", "g", "i4", "u4", "i8")],
    ],
)
def test_working_dtypes_hold_the_values(dtype, want):
    """Small numbers are worked with in float32, all others in float64."""
    assert working_dtype(np.dtype(dtype)) == np.dtype(want)


def test_frames():
    """Frames are told from arrays; all names are strings or none counts."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2], "b": [1.5, 2]})
    assert is_frame(frame) and not is_frame(np.eye(2)) and not is_dask(frame)
    assert feature_names_of(frame) == ("a", "b")
    assert feature_names_of(pd.DataFrame({"a": [1], 2: [1]})) is None
    assert frame_dtype(frame) == np.float64
    assert frame_dtype(frame.astype({"a": "Int64"})) == np.float64
    with pytest.raises(ValueError, match="column 'c' has dtype"):
        frame_dtype(frame.assign(c=["x", "y"]))


def test_lengths():
    """Lengths that differ are all named; absent parts do not count."""
    check_lengths(3, y=3, sample_weight=None)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: X has 3, y has 4, s"):
        check_lengths(3, y=4, sample_weight=2)
