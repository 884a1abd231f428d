"""Check that helpers for the tensors of a tree do not change other leaves."""

import torch

from fdqn.testing import leaves

X = torch.arange(3.0)


def test_only_tensors_are_found():
    nest = {"x": X, "rate": 0.1, "name": "adam", "more": [X + 1, None]}
    assert [x.tolist() for x in leaves.tensors(nest)] == [[0, 1, 2], [1, 2, 3]]
    mapped = leaves.map_tensors(torch.sum, nest)
    assert mapped == {"x": torch.tensor(3.0), "rate": 0.1, "name": "adam", "more": [torch.tensor(6.0), None]}


def test_a_copy_is_independent_of_later_writes():
    x = X.clone().requires_grad_()
    copy = leaves.copied([x, 3])
    x.detach().add_(1)
    assert copy[0].tolist() == [0, 1, 2]
    assert not copy[0].requires_grad
    assert copy[1] == 3
