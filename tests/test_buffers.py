"""Blocks are used again exactly when nobody looks at them."""

import numpy as np

from whorl._readers.buffers import MAX_KEPT, MIN_BYTES, Buffers

N = MIN_BYTES // 4


def address(array):
    return array.__array_interface__["data"][0]


def test_a_block_is_used_again_when_its_arrays_are_gone():
    buffers = Buffers()
    first = buffers.empty((N,), np.float32)
    where = address(first)
    del first
    assert address(buffers.empty((2, N // 2), np.float32)) == where


def test_any_view_keeps_a_block():
    buffers = Buffers()
    first = buffers.empty((4, N), np.float32)
    first[:] = 7.0
    row = first.reshape(2, -1)[1, 5:9].T
    del first
    others = [buffers.empty((4, N), np.float32) for _ in range(3)]
    for other in others:
        other[:] = 1.0
    assert row.tolist() == [7.0] * 4
    assert len({address(o) for o in others}) == 3


def test_small_arrays_and_scalars_are_ordinary():
    buffers = Buffers()
    assert buffers.empty((), np.float32).shape == ()
    assert buffers.empty((3, 0), np.float64).shape == (3, 0)


def test_free_blocks_are_not_hoarded():
    buffers = Buffers()
    for i in range(5 * MAX_KEPT):
        buffers.empty((N * 4 ** (i % 3) + i,), np.float32)
    assert len(buffers._blocks) <= MAX_KEPT + 1
