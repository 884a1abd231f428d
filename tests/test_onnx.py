"""Run policies exported as ONNX in onnxruntime and compare them with the network."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fdqn import cli, envs, random, tree
from fdqn.experiment import assemble, export, settings

CASES = {
    "dqn": dict(algorithm="dqn", dueling=True, noisy=True),
    "c51": dict(algorithm="c51"),
    "boards": dict(algorithm="pqn", env="minatar:breakout"),
}
MORE = {
    "munchausen": dict(algorithm="munchausen"),
    "qr-dqn": dict(algorithm="qr-dqn"),
    "iqn": dict(algorithm="iqn", env="minatar:breakout"),
    "rainbow": dict(algorithm="rainbow", env="catch"),
    "pqn": dict(algorithm="pqn"),
    "stream-q": dict(algorithm="stream-q"),
    "stream-q-boards": dict(algorithm="stream-q", env="minatar:breakout"),
    "nature": dict(algorithm="dqn", env="ale:Pong"),
    "layernorm-nature": dict(algorithm="pqn", env="ale:Pong"),
    "impala": dict(algorithm="dqn", env="ale:Pong", network="impala"),
}
PARAMETERS = [*CASES, *[pytest.param(name, marks=pytest.mark.slow) for name in MORE]]


def observations(spec, rows):
    """Return random observations [rows, *O]: floats, booleans or bytes."""
    u = random.uniform(random.key(rows), (rows, *spec.obs_shape))
    if spec.obs_dtype == torch.bool:
        return u < 0.3
    return (255 * u).to(spec.obs_dtype) if spec.obs_dtype == torch.uint8 else 4 * u - 2


@pytest.mark.parametrize("name", PARAMETERS)
def test_onnxruntime_computes_the_same_values(name):
    """Compare outputs for several, one and no observations; the file contains no path of this machine."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    case = {**CASES, **MORE}[name]
    if case.get("env", "").startswith("ale:"):
        pytest.importorskip("ale_py")
    given = settings.make({**case, "seeds": 1})
    network, spec = assemble.network(given), envs.find(given.env).spec
    params = tree.index(network.init(assemble.keys(given)), 0)
    level = logging.getLogger("torch.onnx").level
    content = export.onnx_policy(given, params)
    assert logging.getLogger("torch.onnx").level == level
    assert str(Path(export.__file__).parents[2]).encode() not in content
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert [x.shape for x in session.get_inputs()] == [["batch", *spec.obs_shape]]
    assert [x.shape for x in session.get_outputs()] == [["batch", spec.actions]]
    for rows in (5, 1, 0):
        obs = observations(spec, rows)
        (q,) = session.run(["q"], {"obs": obs.numpy()})
        expected = network.apply(params, obs).numpy()
        scale = 1 + np.abs(expected).max(initial=0)
        np.testing.assert_allclose(q, expected, rtol=1e-5, atol=1e-6 * scale)
    assert q.dtype == np.float32


def test_values_of_another_seed_are_detected():
    """Reject values of another seed, so that the test above would notice an exporter that mixes up seeds."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    given = settings.make({"seeds": 2, "hidden": (4,)})
    network = assemble.network(given)
    params = network.init(assemble.keys(given))
    session = runtime.InferenceSession(export.onnx_policy(given, tree.index(params, 1)))
    obs = observations(envs.find("cartpole").spec, 5)
    (q,) = session.run(["q"], {"obs": obs.numpy()})
    np.testing.assert_allclose(q, network.apply(tree.index(params, 1), obs).numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(q - network.apply(tree.index(params, 0), obs).numpy()).max() > 1e-3


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys, small_run):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    out = tmp_path / "policy.onnx"
    assert cli.main(["export", str(small_run), "--seed", "5", "--out", str(out)]) == 1
    assert capsys.readouterr().err == (
        "fdqn: out: expected the packages onnx and onnxscript for an .onnx file, got none; pip install 'fdqn[onnx]'\n"
    )
    assert not out.exists()


def test_the_command_writes_a_model(tmp_path, capsys, small_run):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "policy.onnx"
    assert cli.main(["export", str(small_run), "--seed", "6", "--out", str(out)]) == 0
    assert f"load it with onnxruntime.InferenceSession('{out}')" in capsys.readouterr().out
    assert runtime.InferenceSession(str(out)).get_inputs()[0].type == "tensor(float)"
