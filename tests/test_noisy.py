"""Noisy networks and MLPs with layer normalization: distribution of the noise, an `nn.Module` as oracle, laws."""

import math

import pytest
import torch
from torch import nn

from fdqn import networks, random, tree
from fdqn.testing import asserts, laws

NOISY = networks.noisy_mlp((2, 2), (5, 4), 3)
OBS = random.normal(random.key(9), (6, 2, 2), torch.float64)
PARAMS = tree.cast(NOISY.init(random.key(0)), torch.float64)


def noise_of(network, seed=0):
    return random.uniform(random.key(seed), (network.noise,), torch.float64)


def test_mean_weights_are_those_of_an_mlp():
    plain = networks.mlp((2, 2), (5, 4), 3)
    mean = {name.removesuffix("_mu"): x for name, x in PARAMS.items() if name.endswith("_mu")}
    assert list(mean) == list(plain.init(random.key(0)))
    asserts.assert_trees_equal(plain.apply(mean, OBS), NOISY.apply(PARAMS, OBS))
    asserts.assert_trees_equal(plain.init(random.key(0)), tree.cast(mean, torch.float32))


def test_weights_with_noise_equal_the_paper():
    """Compare with equations 10 and 11: factors f(e) of outputs and inputs, drawn layer after layer."""
    u, at, x = noise_of(NOISY), 0, OBS.flatten(1)
    assert NOISY.noise == (5 + 4) + (4 + 5) + (3 + 4)
    for name, (n, m) in {"0": (5, 4), "2": (4, 5), "4": (3, 4)}.items():
        e = random.normal_from_uniform(u[at : at + n + m])
        f, at = e.sign() * e.abs().sqrt(), at + n + m
        weight = PARAMS[f"{name}.weight_mu"] + PARAMS[f"{name}.weight_sigma"] * torch.outer(f[:n], f[n:])
        x = x @ weight.mT + PARAMS[f"{name}.bias_mu"] + PARAMS[f"{name}.bias_sigma"] * f[:n]
        x = x.relu() if name != "4" else x
    asserts.assert_trees_close(x, NOISY.apply(PARAMS, OBS, u), 1e-12)


def test_initial_scales():
    for name, x in networks.noisy_mlp(16, (9,), 2, sigma_zero=0.1).init(random.key([0, 1])).items():
        bound = 1 / math.sqrt(16 if name.startswith("0") else 9)
        if name.endswith("sigma"):
            assert x.unique().tolist() == [pytest.approx(0.1 * bound)]
        else:
            assert 0.5 * bound < x.abs().max() <= bound
        assert x.shape[0] == 2


def test_noise_is_standard_normal():
    """Check mean 0, variance 1 and equality with `random.normal`."""
    key = random.key(4)
    e = random.normal_from_uniform(random.uniform(key, (20_000,)))
    asserts.assert_trees_equal(random.normal(key, (20_000,)), e)
    assert abs(float(e.mean())) < 0.03
    assert abs(float(e.var()) - 1) < 0.04
    assert random.normal_from_uniform(torch.tensor([0.0, 1 - 2.0**-23])).isfinite().all()


def test_laws_of_a_noisy_network():
    u = noise_of(NOISY)
    laws.pure(NOISY.apply, PARAMS, OBS, u)
    stacked = tree.stack([(PARAMS, OBS, u), (tree.map(lambda x: 2 * x, PARAMS), OBS.flip(0), noise_of(NOISY, 1))])
    laws.vmapped(NOISY.apply, *stacked)
    laws.ranked(lambda obs: NOISY.apply(PARAMS, obs, u), OBS.reshape(2, 3, 2, 2), leading=2)
    laws.compiled(NOISY.apply, PARAMS, OBS, u, again=[(PARAMS, OBS, noise_of(NOISY, 1))], atol=1e-12)
    laws.gradients(lambda p: NOISY.apply(p, OBS, u).square().sum(), PARAMS)


def test_with_noise_of_a_plain_network():
    plain = networks.mlp(2, (3,), 2)
    lifted, obs = networks.with_noise(plain), torch.ones(4, 2)
    given = plain.init(random.key(0))
    assert lifted.noise == 0
    assert networks.with_noise(NOISY) is NOISY
    asserts.assert_trees_equal(plain.apply(given, obs), lifted.apply(given, obs))
    with pytest.raises(TypeError, match=r"noise: expected \(\) for a network without noise, got Tensor"):
        lifted.apply(given, obs, torch.zeros(3))


def test_layer_norm_mlp_equals_pytorch():
    module = nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)
    ).double()
    network = networks.layer_norm_mlp((2, 2), (6, 5), 3)
    params = tree.cast(network.init(random.key(0)), torch.float64)
    params = {name: x + 0.1 * random.normal(random.key(i), x.shape) for i, (name, x) in enumerate(params.items())}
    assert list(params) == list(module.state_dict())
    module.load_state_dict(params)
    asserts.assert_trees_close(module(OBS.flatten(1)).detach(), network.apply(params, OBS), 1e-12)
    asserts.assert_trees_equal(params, networks.load(network, module.state_dict()))


def test_initial_values_of_a_layer_norm_mlp():
    params = networks.layer_norm_mlp(4, (6,), 3).init(random.key([0, 1, 2]))
    plain = networks.mlp(4, (6,), 3).init(random.key([0, 1, 2]))
    assert torch.equal(params["0.weight"], plain["0.weight"])
    assert torch.equal(params["3.weight"], plain["2.weight"])
    assert params["1.weight"].tolist() == [[1.0] * 6] * 3
    assert params["1.bias"].tolist() == [[0.0] * 6] * 3
    assert list(networks.layer_norm_mlp(4, (), 3).init(random.key(0))) == ["0.weight", "0.bias"]


def test_orthogonal_layers():
    """Check orthonormal rows or columns times the gain, different for each seed and layer, and zero biases."""
    params = networks.layer_norm_mlp(4, (6, 5), 3, gain=2.0).init(random.key([0, 1]))
    for name in ("0.weight", "3.weight", "6.weight"):
        x = params[name]
        small = x @ x.mT if x.shape[1] < x.shape[2] else x.mT @ x
        torch.testing.assert_close(small, 4 * torch.eye(small.shape[-1]).expand_as(small), rtol=1e-5, atol=1e-5)
        assert not torch.equal(x[0], x[1])
        assert not params[name.replace("weight", "bias")].any()
    alone = networks.layer_norm_mlp(4, (6, 5), 3, gain=2.0).init(random.key([1]))
    asserts.assert_trees_equal(tree.index(params, slice(1, 2)), alone)
