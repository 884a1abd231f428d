"""Tests of the transformations of `variants`, and of its errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plants import branches, rejects

from fdqn.testing import strategies
from fdqn.testing.variants import variants

X = torch.arange(3.0)


def scaled(tree, by=2.0):
    return {"scaled": tree["x"] * by, "by": by}


@variants()
def test_every_variant_keeps_signature_and_result(variant):
    result = variant(scaled)({"x": X, "name": "x"}, by=3.0)
    assert torch.equal(result["scaled"], X * 3)
    assert result["by"] == 3.0
    assert variant(torch.outer)(X, X).shape == (3, 3)


@variants("eager", "vmapped", "compiled")
@given(u=strategies.uniforms((2,)), n=st.integers(1, 10))
def test_above_given(variant, u, n):
    assert torch.equal(variant(torch.neg)(u.repeat(n)), -u.repeat(n))


@given(strategies.uniforms((2,)))
@variants("eager", "vmapped", "compiled")
def test_below_given(variant, u):
    assert torch.equal(variant(torch.neg)(u), -u)


@pytest.mark.parametrize("power", [1, 2])
@variants("eager", "compiled")
def test_with_fixtures_and_parameters(variant, power, tmp_path, request):
    assert tmp_path.exists()
    assert ("compiled" in request.node.name) != ("eager" in request.node.name)
    assert torch.equal(variant(torch.pow)(X, power), X**power)


class TestMethods:
    @variants("eager", "vmapped")
    def test_method(self, variant):
        assert torch.equal(variant(torch.neg)(X), -X)


def unused(variant):
    pass


def uncalled(variant):
    variant(torch.neg)


@given(strategies.uniforms((2,)))
def unused_in_examples(variant, u):
    pass


@pytest.mark.parametrize(
    ("test", "match"),
    [
        (unused, r"unused\[eager\]: expected a call of `variant`, got none"),
        (uncalled, r"uncalled\[eager\]: expected a call of the result of `variant`, got none"),
        (unused_in_examples, r"unused_in_examples\[eager\]: expected a call of `variant`, got none"),
    ],
)
def test_a_test_that_does_not_use_its_variant_fails(test, match):
    with rejects(match):
        variants("eager")(test)(variant="eager")


class WrongVmapRule(torch.autograd.Function):
    """The identity, with a custom vmap rule that adds the index along the vmapped axis."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, x):
        return x + torch.arange(info.batch_size)[:, None], 0


def test_each_variant_detects_its_bugs():
    def run(name, f, *args):
        def test(variant):
            variant(f)(*args)

        variants(name)(test)(variant=name)

    run("eager", branches, X)
    with rejects("got a break at .* in branches"):
        run("compiled", branches, X)
    with rejects(r"second of two equal rows: \[0\]\[0\]: expected 0.0, got 1.0"):
        run("vmapped", WrongVmapRule.apply, X)
    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        run("vmapped", branches, X)
    with pytest.raises(ValueError, match="expected a tensor among the arguments, got none"):
        run("vmapped", lambda n: torch.ones(n), 3)
    with torch.random.fork_rng(devices=[]), pytest.raises(RuntimeError, match="randomness"):
        run("vmapped", torch.rand_like, X)


def test_the_decorator_refuses_invalid_arguments():
    with pytest.raises(ValueError, match=r"expected some of \['eager', 'vmapped', 'compiled', 'cuda'\], got 'jit'"):
        variants("eager", "jit")
    with pytest.raises(ValueError, match="got <function unused"):  # used without parentheses
        variants(unused)
    with pytest.raises(TypeError, match="scaled: expected an argument `variant`, got \\['tree', 'by'\\]"):
        variants("eager")(scaled)
