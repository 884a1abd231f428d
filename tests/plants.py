"""Helpers for tests of the laws and assertions in `fdqn.testing`."""

import pytest

from fdqn import tree


def rejects(match):
    """Check that the block, one call of a law or an assertion, rejects its planted bug with a message like `match`."""
    return pytest.raises(AssertionError, match=match)


def naive(f):
    """Donate naively: copy each new leaf over the old one, in order, although leaves may share memory."""

    def donated(state, *args):
        for old, new in zip(tree.leaves(state), tree.leaves(f(state, *args)), strict=True):
            old.copy_(new)
        return state

    return donated


def branches(x):
    """Branch on a value, which breaks the graph."""
    if x.sum() > 0:
        return x
    return -x
