"""Orthogonal and sparse initialization of networks: values, distributions, independence of seeds."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from fdqn import networks, random, tree
from fdqn.networks import initialization
from fdqn.testing import asserts

KEYS = random.key([0, 1, 2])
CHANCE = 1e-4
NETWORKS = {
    "mlp": networks.mlp(20, (30, 25), 4),
    "dueling_mlp": networks.dueling_mlp(20, (30, 25), 4),
    "noisy_mlp": networks.noisy_mlp(20, (30, 25), 4),
    "layer_norm_mlp": networks.layer_norm_mlp(20, (30, 25), 4),
    "minatar": networks.minatar((4, 10, 10), 3),
    "nature": networks.nature((1, 36, 36), 3),
    "module": networks.from_module(lambda: nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.Linear(30, 4))),
}
EACH = pytest.mark.parametrize("name", NETWORKS)


def weights(params):
    """Return matrices [S, units, inputs] of the layers, by name."""
    kinds = ("weight", "weight_mu")
    return {name: x.flatten(2) for name, x in params.items() if name.split(".")[-1] in kinds and x.ndim > 2}


def is_sparse(matrix, sparsity):
    """Return True if every unit has the number of zeros of the authors' code, or one less than all."""
    inputs = matrix.shape[-1]
    zeros = min(math.ceil(sparsity * inputs), inputs - 1)
    return bool(((matrix == 0).sum(-1) == zeros).all())


@EACH
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_sparse_units_have_the_right_number_of_zeros(name, sparsity):
    params = networks.sparse(NETWORKS[name], sparsity).init(KEYS)
    for layer, matrix in weights(params).items():
        assert is_sparse(matrix, sparsity), layer
        assert not is_sparse(matrix * (matrix > 0), sparsity)
        assert matrix.abs().max() <= 1 / math.sqrt(matrix.shape[-1])
        bias = params[layer.replace("weight", "bias")]
        assert not bias.any()


@EACH
def test_other_weights_of_sparse_networks_are_those_of_the_plain_network(name):
    plain, sparse = NETWORKS[name].init(KEYS), networks.sparse(NETWORKS[name]).init(KEYS)
    assert list(plain) == list(sparse)
    for layer, matrix in weights(sparse).items():
        if name != "module":  # its own weights are from PyTorch's generator
            assert torch.equal(matrix[matrix != 0], weights(plain)[layer][matrix != 0])
    untouched = [n for n in plain if n not in weights(plain) and not n.endswith(("bias", "bias_mu"))]
    asserts.assert_trees_equal({n: plain[n] for n in untouched}, {n: sparse[n] for n in untouched})


def test_zeros_are_drawn_uniformly_and_for_each_unit():
    matrix = weights(networks.sparse(networks.mlp(20, (500,), 4), 0.5).init(KEYS))["0.weight"]
    kept = (matrix != 0).double()
    counts = kept.sum((0, 1)).numpy()
    assert stats.chisquare(counts).pvalue > CHANCE
    together = kept.flatten(0, 1).mT @ kept.flatten(0, 1)
    pairs = together[~torch.eye(20, dtype=torch.bool)].numpy()
    assert abs(pairs / 1500 - 0.5 * 9 / 19).max() < 0.06
    assert len(kept.flatten(0, 1).unique(dim=0)) > 1400
    values = (matrix[matrix != 0] * math.sqrt(20)).numpy()
    assert stats.kstest(values, "uniform", (-1, 2)).pvalue > CHANCE


@EACH
def test_orthogonal_weights_have_orthonormal_rows_or_columns(name):
    params = networks.orthogonal(NETWORKS[name], 2.0).init(KEYS)
    for layer, x in weights(params).items():
        small = x @ x.mT if x.shape[1] < x.shape[2] else x.mT @ x
        torch.testing.assert_close(small, 4 * torch.eye(small.shape[-1]).expand_as(small), rtol=1e-5, atol=1e-5)
        assert not params[layer.replace("weight", "bias")].any()


def test_orthogonal_convolutions_are_distributed_as_in_pytorch():
    """Compare the distributions of two entries. The matrix is small, so they are far from normal."""
    ours = networks.orthogonal(networks.minatar((1, 4, 4), 2), 1.0).init(random.key(list(range(200))))["0.weight"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.stack([nn.init.orthogonal_(torch.empty(16, 1, 3, 3)) for _ in range(200)])
    for entry in ((0, 0, 0, 0), (5, 0, 2, 1)):
        at = (slice(None), *entry)
        assert stats.ks_2samp(ours[at].numpy(), theirs[at].numpy()).pvalue > CHANCE


@pytest.mark.parametrize("change", [networks.orthogonal, networks.sparse])
@EACH
def test_seeds_are_initialized_independently(name, change):
    network = change(NETWORKS[name])
    many = network.init(random.key([[1, 2], [3, 4]]))
    asserts.assert_trees_equal(network.init(random.key(4)), tree.map(lambda x: x[1, 1], many))
    for matrix in weights(tree.map(lambda x: x.flatten(0, 1), many)).values():
        assert len(matrix.flatten(1).unique(dim=0)) == 4
    assert network.apply is NETWORKS[name].apply


def test_the_default_gain_is_that_of_cleanrl():
    asserts.assert_trees_equal(
        networks.orthogonal(NETWORKS["layer_norm_mlp"]).init(KEYS),
        networks.layer_norm_mlp(20, (30, 25), 4, gain=math.sqrt(2)).init(KEYS),
    )


def test_initialization_keeps_the_dtype():
    double = NETWORKS["mlp"]._replace(init=lambda key: tree.cast(NETWORKS["mlp"].init(key), torch.float64))
    for change in (initialization.orthogonal, initialization.sparse):
        assert {x.dtype for x in change(double).init(KEYS).values()} == {torch.float64}
