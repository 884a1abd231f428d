"""What tests of the tests share."""

import pytest

from fdqn import tree


def rejects(match):
    """The block, one call of a law or an assertion, finds its planted bug and says `match`."""
    return pytest.raises(AssertionError, match=match)


def naive(f):
    """Donation as one writes it first: each new leaf over the old one, in order."""

    def donated(state, *args):
        for old, new in zip(tree.leaves(state), tree.leaves(f(state, *args)), strict=True):
            old.copy_(new)
        return state

    return donated


def branches(x):
    """Asks for a value in the middle, so there is no one graph of it."""
    if x.sum() > 0:
        return x
    return -x
