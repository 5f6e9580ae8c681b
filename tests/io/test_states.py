"""States come back from bytes with the same bits; bytes that are not whole are never read."""

import hashlib
import struct
import time
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest

from daskdml.io.states import DamagedError, decode_state, encode_state
from daskdml.solvers.certificates import Certificate
from daskdml.solvers.newton import NewtonState

STATE = NewtonState(np.array([[0.1, -0.0, np.nan]]), np.ones((1, 3), np.float32), dtype=np.float32)


def same(a, b):
    """Whether two states have equal types and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b or (a != a and b != b)


@pytest.mark.parametrize(
    "state",
    [
        None, True, -3, "é", 0.1, float("inf"), float("nan"), [1, [2.5]], (1, (2,)), {"a": None},
        np.array([["x", "yz"]]), np.zeros((0, 3)), np.float32(0.1), np.int64(2**62),
        np.arange(24).reshape(2, 3, 4)[:, ::2], np.dtype("<f4"), np.float64, STATE,
        Certificate(0.5, 1e-9, "duality gap", True),
    ],
)  # fmt: skip
def test_states_come_back(state):
    """Every kind of value has its type and its bits again."""
    assert same(decode_state(encode_state(state)), state)


@pytest.mark.parametrize("state", [object(), np.array([object()]), {1: 2}, {3}, pytest])
def test_what_is_no_state_is_refused(state):
    """What has no bytes of its own is named before anything is written."""
    with pytest.raises(TypeError, match="cannot be part of a checkpoint"):
        encode_state(state)


def test_no_changed_byte_goes_unseen():
    """Each bit of a state is guarded, and so is its length."""
    encoded = encode_state(STATE)
    for at in range(0, len(encoded), 7):
        changed = bytearray(encoded)
        changed[at] ^= 1
        with pytest.raises(DamagedError):
            decode_state(bytes(changed))
    for length in (0, 5, len(encoded) // 2, len(encoded) - 1):
        with pytest.raises(DamagedError):
            decode_state(encoded[:length])


def forged(old, new):
    """A state whose tree says something else, with a right checksum."""
    encoded = encode_state(STATE)[:-32]
    assert len(old) == len(new) and encoded.count(old)
    body = encoded.replace(old, new)
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"daskdml.solvers.newton"', b'"subprocess______solver"'[:24]),
        (b'"NewtonState"', b'"annotations"'),
        (b'"<f8", [1, 3], 0', b'"<f8", [1, 9], 0'),
        (b'"<f8", [1, 3], 0', b'"|O8", [1, 3], 0'),
        (b'"<f8", [1, 3], 0', b'"<f8", [1,-3], 0'),
        (b'"reach"', b'"reack"'),
    ],
)
def test_nothing_is_imported_or_allocated_on_a_state_s_word(old, new):
    """Classes of other modules, sizes that are not there and unknown fields are refused."""
    with pytest.raises(DamagedError, match="cannot read it"):
        decode_state(forged(old, new))


def of_tree(tree, data=b""):
    """A state of a tree and of arrays' bytes, with a right checksum."""
    head = bytes(encode_state(None)[:16]) + struct.pack("<QQ", len(tree), len(data))
    return head + tree + data + hashlib.sha256(head + tree + data).digest()


def test_an_array_named_often_is_refused():
    """A tree that names the same bytes again and again gets no more memory than they take."""
    node = b'{"array": ["|u1", [1000000], 0]}'
    small = of_tree(b'{"list": [' + b", ".join([node] * 3000) + b"]}", bytes(1_000_000))
    tracemalloc.start()
    with pytest.raises(DamagedError, match="its arrays take more bytes than it has"):
        decode_state(small)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert len(decode_state(of_tree(b'{"list": [' + node + b"]}", bytes(1_000_000)))) == 1


@pytest.mark.parametrize(
    "tree",
    [
        b'{"array": ["|u1", [' + b", ".join([b"1"] * 65) + b"], 0]}",
        b'{"array": ["|u1", [' + b", ".join([b"9" * 4000] * 1500) + b"], 0]}",
        b'{"scalar": ["<f8", [], 0]}',
        b'{"tuple": [' * 40_000 + b"1" + b"]}" * 40_000,
    ],
    ids=["axes", "sizes", "absent", "deep"],
)
def test_trees_of_any_shape_are_refused_soon(tree):
    """Too many axes, endless sizes, numbers that are not there and depth end within a second."""
    began = time.process_time()
    with pytest.raises(DamagedError, match="cannot read it"):
        decode_state(of_tree(tree))
    assert time.process_time() - began < 1
