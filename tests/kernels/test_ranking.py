"""Lists of best items, and metrics of them."""

import numpy as np
import pytest

from daskdml.kernels.ranking import nearest, rank_lists, top_items


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_top_items_are_exact_over_blocks(cut):
    """Whatever the blocks, lists are those of a sort of all scores; seen items are left out."""
    rng = np.random.default_rng(0)
    W, V = rng.integers(-3, 4, (9, 4)) * 1.0, rng.integers(-3, 4, (40, 4)) * 1.0  # with many ties
    seen = [np.sort(rng.choice(40, 5, replace=False)) for _ in range(9)]
    indptr = np.arange(0, 50, 5)
    blocks = [(a, V[a : a + cut]) for a in range(0, 40, cut)]
    items, scores = top_items(W, blocks, 6, (indptr, np.concatenate(seen)), 0.5)
    full = W[:, :3] @ V[:, :3].T + W[:, 3:] + V[:, 3] + 0.5
    for user in range(9):
        full[user, seen[user]] = -np.inf
    order = np.argsort(-full, axis=1, kind="stable")[:, :6]
    assert np.array_equal(items, order)
    assert np.array_equal(scores, np.take_along_axis(full, order, axis=1))


def test_fewer_items_than_asked_for():
    """A user who has seen nearly all gets -1 where nothing is left."""
    V = np.ones((3, 2))
    items, scores = top_items(np.ones((1, 2)), [(0, V)], 3, (np.array([0, 2]), np.array([0, 2])), 0)
    assert items.tolist() == [[1, -1, -1]] and scores[0, 1] == -np.inf


def test_metrics_of_a_worked_example():
    """Precision, recall, NDCG and average precision are as reckoned by hand."""
    lists = np.array([[5, 3, 9, 1], [2, 4, 6, 8], [0, 1, 2, 3]])
    indptr, chosen = np.array([0, 2, 3, 3]), np.array([3, 1, 7])
    found = rank_lists(lists, indptr, chosen)
    assert found.users == 2  # the third has chosen nothing
    means = found.means(20)
    assert means["precision"] == pytest.approx((2 / 4 + 0) / 2)
    assert means["recall"] == pytest.approx((2 / 2 + 0) / 2)
    gains = (1 / np.log2(3) + 1 / np.log2(5)) / (1 / np.log2(2) + 1 / np.log2(3))
    assert means["ndcg"] == pytest.approx(gains / 2)
    assert means["map"] == pytest.approx(((1 / 2 + 2 / 4) / 2) / 2)
    assert means["coverage"] == 8 / 20


def test_nearest_leaves_out_the_row_itself():
    """The nearest rows are those of the largest cosine, without the row that was asked for."""
    rng = np.random.default_rng(0)
    V = rng.standard_normal((30, 5))
    unit = V[:, :4] / np.linalg.norm(V[:, :4], axis=1)[:, None]
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    rows, values = nearest(V[[3, 8]], [(0, V[:11]), (11, V[11:])], np.array([3, 8]), 5)
    assert np.array_equal(rows, np.argsort(-cosines[[3, 8]], axis=1)[:, :5])
    assert np.allclose(values, np.sort(cosines[[3, 8]], axis=1)[:, ::-1][:, :5])
