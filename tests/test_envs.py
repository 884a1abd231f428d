"""Pure environments: comparison with Gymnasium and with a model of Catch, and laws of every environment."""

import copy
import math
import pickle
import re
from collections import Counter

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from fdqn import envs, tree
from fdqn.envs import episode
from fdqn.envs.classic import acrobot, cartpole, catch, mountain_car
from fdqn.testing import probes

NAMES = envs.names()
IN_GYMNASIUM = tuple(envs.GYMNASIUM)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def uniforms(env, *shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, env.spec.noise, dtype=dtype, generator=generator(seed))


def random_actions(env, *shape, seed=0):
    return torch.randint(env.spec.actions, shape, generator=generator(seed))


def assert_same(a, b, tolerance=0.0):
    """Check that structure, shapes, dtypes, integers and flags are equal, and floats within `tolerance`."""
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def played(env, *shape, steps=30, seed=0):
    """Return the state after `steps` random steps of environments of shape `shape`."""
    state, _ = env.reset(uniforms(env, *shape, seed=seed))
    for t in range(steps):
        state, _ = env.step(state, random_actions(env, *shape, seed=seed + t), uniforms(env, *shape, seed=seed + t))
    return state


# --- Comparison with Gymnasium ---------------------------------------------------------------------------------------

# Observations of Gymnasium's environments, computed from their float64 state without rounding to float32.
TRUTH = {
    "acrobot": lambda s: np.array([math.cos(s[0]), math.sin(s[0]), math.cos(s[1]), math.sin(s[1]), s[2], s[3]]),
    "cartpole": lambda s: np.asarray(s, dtype=np.float64),
    "mountain_car": lambda s: np.asarray(s, dtype=np.float64),
}

# Scripted policies, which reach terminations that random actions do not.
SCRIPTS = {
    "acrobot": lambda s: torch.where(s.theta1_dot < 0, 2, 0),
    "cartpole": lambda s: (s.theta + 0.3 * s.theta_dot + 0.02 * s.x + 0.05 * s.x_dot > 0).long(),
    "mountain_car": lambda s: torch.where(s.velocity < 0, 0, 2),
}


class GymnasiumCopies:
    """Copies of an environment of Gymnasium, stepped in a Python loop."""

    def __init__(self, name, copies, **settings):
        self.truth = TRUTH[name]
        self.copies = [
            gymnasium.make(envs.GYMNASIUM[name], disable_env_checker=True, **settings) for _ in range(copies)
        ]

    def start(self, i, state):
        """Start an episode of copy i in the state of environment i."""
        self.copies[i].reset(seed=0)
        self.set_state(i, state)

    def set_state(self, i, state):
        """Set copy i to the state of environment i, in the same episode."""
        self.copies[i].unwrapped.state = np.array([float(x[i]) for x in state[:-1]])

    def step(self, actions):
        results = [env.step(int(a)) for env, a in zip(self.copies, actions, strict=True)]
        self.obs = np.array([result[0] for result in results])
        self.reward, self.terminated, self.truncated = (np.array([x[i] for x in results]) for i in (1, 2, 3))
        self.state = np.array([np.asarray(env.unwrapped.state, dtype=np.float64) for env in self.copies])
        self.exact_obs = np.array([self.truth(state) for state in self.state])


def compare_with_gymnasium(name, env, copies=20, steps=1_200, tolerance=1e-9, resync=50, **settings):
    """Compare `env` with Gymnasium for `steps` steps of `copies` environments, half of them with scripted actions.

    cos and sin differ from those of libm in the last bit, and trajectories are unstable: the difference grows to 1e-9
    in 500 steps of Acrobot and to 1e-2 in 500 steps of CartPole. So every `resync` steps Gymnasium is set to the
    state of `env`. Return counts of the events that occurred.
    """
    theirs = GymnasiumCopies(name, copies, **settings)
    random, dice = random_actions(env, steps, copies), torch.rand(steps, copies, generator=generator(1))
    scripted = (torch.arange(copies) % 2 == 1) & (dice < 0.95)
    u = uniforms(env, steps + 1, copies)
    state, _ = env.reset(u[0])
    for i in range(copies):
        theirs.start(i, state)
    events = Counter()
    for t in range(steps):
        action = torch.where(scripted[t], SCRIPTS[name](state), random[t])
        state, step = env.step(state, action, u[t + 1])
        theirs.step(action)
        ended = theirs.terminated | theirs.truncated
        difference = np.abs(step.next_obs.numpy() - theirs.exact_obs).max()
        assert difference <= tolerance
        assert np.abs(torch.stack(state[:-1], -1).numpy() - theirs.state)[~ended].max(initial=0.0) <= tolerance
        assert np.array_equal(step.reward.numpy(), theirs.reward)
        assert np.array_equal(step.terminated.numpy(), theirs.terminated)
        assert np.array_equal(step.truncated.numpy(), theirs.truncated)
        assert torch.equal(step.obs[~ended], step.next_obs[~ended])
        assert torch.equal(step.obs[ended], env.reset(u[t + 1])[1].obs[ended])
        for i in range(copies):
            if ended[i]:
                theirs.start(i, state)
            elif (t + 1) % resync == 0:
                theirs.set_state(i, state)
        events["difference"] = max(events["difference"], float(difference))
        events["terminated"] += int((theirs.terminated & ~theirs.truncated).sum())
        events["truncated"] += int((theirs.truncated & ~theirs.terminated).sum())
        events["both"] += int((theirs.truncated & theirs.terminated).sum())
        events["wall"] += int(((theirs.state[:, 0] == -1.2) & (theirs.state[:, 1] == 0)).sum())
    return events


@pytest.mark.parametrize("name", IN_GYMNASIUM)
def test_trajectories_equal_gymnasium(name):
    events = compare_with_gymnasium(name, envs.make(name, dtype=torch.float64))
    assert events["terminated"] > 0
    assert events["truncated"] > 0
    assert events["wall"] > 0 or name != "mountain_car"


# Limits at which some episodes terminate in their last allowed step, so that both flags are set.
SHORT = {"acrobot": 80, "cartpole": 12, "mountain_car": 120}


@pytest.mark.parametrize("name", IN_GYMNASIUM)
def test_termination_at_the_time_limit_sets_both_flags_as_in_gymnasium(name):
    env = envs.make(name, time_limit=SHORT[name], dtype=torch.float64)
    events = compare_with_gymnasium(name, env, steps=600, max_episode_steps=SHORT[name])
    assert events["both"] > 0


def with_bug(env, change):
    """Plant a bug: apply `change` to every output of `step`."""

    def step(state, action, u):
        state, output = env.step(state, action, u)
        return state, change(output)

    return env._replace(step=step)


PLANTS = {
    "next_obs is the reset observation": lambda s: s._replace(next_obs=s.obs),
    "obs does not restart": lambda s: s._replace(obs=s.next_obs),
    "terminates at the time limit": lambda s: s._replace(terminated=s.terminated | s.truncated),
    "truncates only what did not terminate": lambda s: s._replace(truncated=s.truncated & ~s.terminated),
    "no reward at the end": lambda s: s._replace(reward=torch.where(s.terminated, 0.5, s.reward)),
    "float32 inside": lambda s: tree.cast(tree.cast(s, torch.float32), torch.float64),
}


@pytest.mark.parametrize("bug", PLANTS)
@pytest.mark.parametrize("name", IN_GYMNASIUM)
def test_comparison_with_gymnasium_rejects_planted_bugs(name, bug):
    env = with_bug(envs.make(name, time_limit=SHORT[name], dtype=torch.float64), PLANTS[bug])
    with pytest.raises(AssertionError):
        compare_with_gymnasium(name, env, steps=600, max_episode_steps=SHORT[name])


@pytest.mark.parametrize(
    ("name", "module", "constant", "value"),
    [
        ("cartpole", cartpole, "MASS", 1.1 + 1e-6),
        ("cartpole", cartpole, "MAX_THETA", 0.2),
        ("acrobot", acrobot, "DT", 0.2 + 1e-7),
        ("mountain_car", mountain_car, "MIN_POSITION", -1.3),
        ("mountain_car", mountain_car, "GOAL", 0.51),
    ],
)
def test_comparison_with_gymnasium_rejects_wrong_constants(monkeypatch, name, module, constant, value):
    monkeypatch.setattr(module, constant, value)
    with pytest.raises(AssertionError):
        compare_with_gymnasium(name, envs.make(name, dtype=torch.float64), steps=600)


def test_comparison_with_gymnasium_rejects_a_wrong_time_limit():
    with pytest.raises(AssertionError):
        compare_with_gymnasium(
            "mountain_car", envs.make("mountain_car", time_limit=199, dtype=torch.float64), steps=300
        )


# Boxes beyond the states that play reaches: more than one turn per step, clipped speeds, both walls.
BOXES = {
    "acrobot": (math.pi, math.pi, 4 * math.pi, 9 * math.pi),
    "cartpole": (2.5, 5.0, 0.25, 5.0),
    "mountain_car": (1.2, 0.07),
}


def one_step_from_anywhere(name, dtype, copies=1_000, fraction=1.0):
    """Take one step from states in a fraction of the box, a fifth of the numbers at its bounds; return both results."""
    env, theirs = envs.make(name, dtype=dtype), GymnasiumCopies(name, copies)
    box = torch.tensor(BOXES[name], dtype=dtype)
    x = 2 * torch.rand(copies, len(box), dtype=dtype, generator=generator(3)) - 1
    x = torch.where(torch.rand(copies, len(box), generator=generator(4)) < 0.2, x.sign(), x) * box * fraction
    if name == "mountain_car":
        x[:, 0].clamp_(-1.2, 0.6)
    state = type(env.reset(uniforms(env, copies))[0])(*x.unbind(-1), time=torch.zeros(copies, dtype=torch.int64))
    for i in range(copies):
        theirs.start(i, state)
    action = random_actions(env, copies)
    theirs.step(action)
    return env.step(state, action, uniforms(env, copies))[1], theirs


@pytest.mark.parametrize("name", IN_GYMNASIUM)
def test_steps_from_any_state_equal_gymnasium(name):
    step, theirs = one_step_from_anywhere(name, torch.float64)
    assert np.abs(step.next_obs.numpy() - theirs.exact_obs).max() < 1e-9
    assert np.array_equal(step.reward.numpy(), theirs.reward)
    assert np.array_equal(step.terminated.numpy(), theirs.terminated)
    assert 0 < theirs.terminated.sum() < len(theirs.terminated)
    if name == "acrobot":
        assert (np.abs(theirs.state[:, 2]) == 4 * math.pi).any()
        assert (np.abs(theirs.state[:, 3]) == 9 * math.pi).any()
    if name == "mountain_car":
        assert (theirs.state[:, 0] == 0.6).any()
        assert (theirs.state[:, 0] == -1.2).any()


@pytest.mark.parametrize("turns", [-2, -1, 0, 1, 2])
def test_acrobot_wraps_angles(turns):
    angle = torch.linspace(-3.1, 3.1, 7, dtype=torch.float64)
    torch.testing.assert_close(acrobot._wrap(angle + turns * 2 * math.pi), angle, rtol=0, atol=1e-14)
    ends = torch.tensor([-math.pi, math.pi], dtype=torch.float64)
    assert torch.equal(acrobot._wrap(ends), ends)


@pytest.mark.parametrize("name", IN_GYMNASIUM)
def test_float32_observations_equal_gymnasium(name):
    # A step at the maximum speed of Acrobot magnifies rounding a thousandfold; play reaches a quarter of it.
    step, theirs = one_step_from_anywhere(name, torch.float32, fraction=0.25 if name == "acrobot" else 1.0)
    assert step.next_obs.numpy().dtype == theirs.obs.dtype == np.float32
    # An angle at +pi may be wrapped to -pi, so Acrobot is compared by the cos and sin of its observations.
    np.testing.assert_allclose(step.next_obs.numpy(), theirs.obs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", IN_GYMNASIUM)
def test_initial_states_equal_gymnasium_for_given_uniforms(name):
    env, theirs = envs.make(name, dtype=torch.float64), GymnasiumCopies(name, 50)
    u = uniforms(env, 50)
    u[0], u[1] = 0.0, 1 - 2**-23

    class GivenUniforms:
        def __init__(self, u):
            self.u = u

        def uniform(self, low, high, size=None):
            return low + (high - low) * (self.u if size else self.u[0])

    state, step = env.reset(u)
    for i, other in enumerate(theirs.copies):
        other.unwrapped.np_random = GivenUniforms(u[i].numpy())
        obs, _ = other.reset()
        np.testing.assert_allclose(step.obs[i].numpy(), obs, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose([float(x[i]) for x in state[:-1]], other.unwrapped.state, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", IN_GYMNASIUM)
def test_specs_equal_gymnasium(name):
    spec, other = envs.make(name).spec, gymnasium.make(envs.GYMNASIUM[name])
    assert spec.time_limit == other.spec.max_episode_steps
    assert spec.obs_shape == other.observation_space.shape
    assert spec.actions == other.action_space.n


# --- Comparison of Catch with a model --------------------------------------------------------------------------------


class Model:
    """Catch of bsuite, written from its description with lists."""

    def __init__(self, column):
        self.ball_row, self.ball_column, self.paddle = 0, column, 2

    def board(self):
        rows = [[0.0] * 5 for _ in range(10)]
        rows[self.ball_row][self.ball_column] = 1.0
        rows[9][self.paddle] = 1.0
        return rows

    def step(self, action):
        self.paddle = min(max(self.paddle + (-1, 0, 1)[action], 0), 4)
        self.ball_row += 1
        if self.ball_row < 9:
            return 0.0, False
        return (1.0 if self.paddle == self.ball_column else -1.0), True


def play_catch(env, copies=20, steps=200):
    u, actions = uniforms(env, steps + 1, copies, dtype=torch.float32), random_actions(env, steps, copies)
    state, step = env.reset(u[0])
    columns = (u[..., 0].double() * 5).floor().long().tolist()
    models = [Model(column) for column in columns[0]]
    rewards = Counter()
    for t in range(steps):
        state, step = env.step(state, actions[t], u[t + 1])
        for i, model in enumerate(models):
            reward, terminated = model.step(actions[t, i].item())
            assert step.next_obs[i].tolist() == model.board()
            if terminated:
                models[i] = Model(columns[t + 1][i])
            assert step.obs[i].tolist() == models[i].board()
            assert (step.reward[i].item(), step.terminated[i].item()) == (reward, terminated)
            assert not step.truncated[i]
            rewards[reward] += 1
    return rewards


def test_catch_equals_the_model():
    rewards = play_catch(envs.make("catch"))
    assert set(rewards) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s._replace(next_obs=s.obs),
        lambda s: s._replace(reward=-s.reward),
        lambda s: s._replace(obs=s.obs.flip(-1)),
        lambda s: s._replace(truncated=s.terminated),
    ],
)
def test_the_model_rejects_planted_bugs(change):
    with pytest.raises(AssertionError):
        play_catch(with_bug(envs.make("catch"), change))


def test_the_ball_stays_on_the_board():
    largest = torch.tensor([[1 - 2**-24]], dtype=torch.float32)
    state, _ = envs.make("catch", dtype=torch.bfloat16).reset(largest)
    assert state.ball.item() == catch.COLUMNS - 1


# --- Laws of every environment ---------------------------------------------------------------------------------------


def check_constant(env, dtype=torch.float32, steps=25):
    """Check that shapes and dtypes are those of the spec, rewards have `dtype`, and nothing changes over steps."""
    spec, shape = env.spec, (2, 3)
    state, step = env.reset(uniforms(env, *shape, dtype=torch.float32))
    kind = [(x.shape, x.dtype) for x in tree.leaves(state)]
    for t in range(steps):
        assert [(x.shape, x.dtype) for x in tree.leaves(state)] == kind
        assert state.time.dtype == torch.int64
        for obs, legal in ((step.obs, step.legal), (step.next_obs, step.next_legal)):
            assert (obs.shape, obs.dtype) == ((*shape, *spec.obs_shape), spec.obs_dtype)
            assert (legal.shape, legal.dtype) == ((*shape, spec.actions), torch.bool)
            assert legal.any(-1).all()
        assert (step.reward.shape, step.reward.dtype) == (shape, dtype)
        for flag in (step.terminated, step.truncated):
            assert (flag.shape, flag.dtype) == (shape, torch.bool)
        u = uniforms(env, *shape, seed=t, dtype=torch.float32)
        state, step = env.step(state, random_actions(env, *shape, seed=t), u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_dtypes_are_constant(name, dtype):
    check_constant(envs.make(name, time_limit=7, dtype=dtype), dtype)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s._replace(reward=s.reward.double()),
        lambda s: s._replace(terminated=s.terminated.float()),
        lambda s: s._replace(truncated=s.truncated.any()),
        lambda s: s._replace(obs=s.obs.flatten(-1).unsqueeze(-1)),
    ],
)
def test_check_of_constant_shapes_rejects_planted_bugs(change):
    with pytest.raises(AssertionError):
        check_constant(with_bug(envs.make("cartpole"), change))


@pytest.mark.parametrize("name", NAMES)
def test_reset_has_no_reward_and_no_end(name):
    env = envs.make(name)
    state, step = env.reset(uniforms(env, 6))
    assert torch.equal(step.next_obs, step.obs)
    assert torch.equal(step.next_legal, step.legal)
    assert not any(x.any() for x in (step.reward, step.terminated, step.truncated, state.time))


def check_ends(env, steps=60, copies=4, seed=0):
    """Check that the state and `obs` are those of reset(u) after the end of an episode only, and `next_obs` is not."""
    state, step = env.reset(uniforms(env, copies, seed=seed))
    moves = env.spec.obs_dtype.is_floating_point  # on a grid a step may leave the observation unchanged
    differs = False
    ends, count = 0, torch.zeros(copies, dtype=torch.int64)
    for t in range(steps):
        u = uniforms(env, copies, seed=seed + t + 1)
        before = step.obs
        state, step = env.step(state, random_actions(env, copies, seed=seed + t), u)
        count = count + 1
        ended = step.terminated | step.truncated
        assert torch.equal(step.truncated, count >= env.spec.time_limit)
        count = torch.where(ended, 0, count)
        assert torch.equal(state.time, count)
        first_state, first = env.reset(u)
        for i in range(copies):
            if ended[i]:
                assert_same(tree.index(state, i), tree.index(first_state, i))
                assert torch.equal(step.obs[i], first.obs[i])
                new = not torch.equal(step.next_obs[i], first.obs[i])
                assert new or not moves
                differs |= new
            else:
                assert torch.equal(step.next_obs[i], step.obs[i])
            assert not (moves and torch.equal(step.next_obs[i], before[i]))
        ends += int(ended.sum())
    assert differs
    return ends


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None)
@given(time_limit=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_ended_episodes_restart(name, time_limit, seed):
    assert check_ends(envs.make(name, time_limit=time_limit), seed=seed) > 0


@pytest.mark.parametrize("bug", [p for p in PLANTS if p[:2] in ("ne", "ob")])
@pytest.mark.parametrize("name", NAMES)
def test_check_of_restarts_rejects_planted_bugs(name, bug):
    with pytest.raises(AssertionError):
        check_ends(with_bug(envs.make(name, time_limit=7), PLANTS[bug]))


def check_pure(env):
    """Check that results repeat bit for bit, and that inputs and the global generator are unchanged."""
    state, action, u = played(env, 5), random_actions(env, 5), uniforms(env, 5)
    before, generator_before = copy.deepcopy((state, action, u)), torch.get_rng_state()
    results = [(env.reset(u), env.step(state, action, u)) for _ in range(2)]
    assert tree.equal(*results)
    assert tree.equal((state, action, u), before)
    assert torch.equal(torch.get_rng_state(), generator_before)


@pytest.mark.parametrize("name", NAMES)
def test_environments_are_pure(name):
    check_pure(envs.make(name, time_limit=7))


def noisy(step):
    return step._replace(reward=step.reward + torch.rand(()))


def in_place(env):
    def step(state, action, u):
        state.time.add_(1)
        return env.step(state, action, u)

    return env._replace(step=step)


@pytest.mark.parametrize("bug", [lambda env: with_bug(env, noisy), in_place])
def test_check_of_purity_rejects_planted_bugs(bug):
    with pytest.raises(AssertionError):
        check_pure(bug(envs.make("cartpole")))


def check_rank(env):
    """Check that leading axes [S, E] equal vmap over S, vmap over S and E, and a stack of single environments."""
    shape = (2, 3)
    state, action, u = played(env, *shape), random_actions(env, *shape), uniforms(env, *shape)
    whole = env.reset(u), env.step(state, action, u)
    vmap = torch.func.vmap
    assert_same(whole, (vmap(env.reset)(u), vmap(env.step)(state, action, u)), 1e-12)
    assert_same(whole, (vmap(vmap(env.reset))(u), vmap(vmap(env.step))(state, action, u)), 1e-12)
    one = [
        tree.stack([(env.reset(u[s, e]), env.step(*tree.index((state, action, u), (s, e)))) for e in range(3)])
        for s in range(2)
    ]
    assert_same(whole, tree.stack(one), 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_environments_accept_any_leading_axes(name):
    # After 30 random steps with a limit of 7, some of the six are about to be truncated and some are not.
    check_rank(envs.make(name, time_limit=7, dtype=torch.float64))


@pytest.mark.parametrize(
    "change", [lambda s: s._replace(reward=s.reward + s.obs.mean()), lambda s: s._replace(obs=s.obs.flip(0))]
)
def test_check_of_leading_axes_rejects_planted_bugs(change):
    with pytest.raises((AssertionError, ValueError)):
        check_rank(with_bug(envs.make("cartpole", dtype=torch.float64), change))


@pytest.mark.parametrize("name", NAMES)
def test_leaves_under_vmap_have_separate_storage(name):
    # A donated step cannot write an expanded leaf.
    env = envs.make(name)
    state, step = torch.func.vmap(env.reset)(uniforms(env, 2, 3))
    kept = [*tree.leaves(state), step.obs, step.legal]
    assert all(x.is_contiguous() for x in kept)
    assert len({x.untyped_storage().data_ptr() for x in kept}) == len(kept)


def test_environments_compiled_one_after_another_equal_eager():
    """Compile each environment once, and those that share code again with another limit.

    Integers that change between compilations of the same code could become symbols.
    """
    torch._dynamo.reset()
    for name in NAMES:
        assert_compiled_equals_eager(name, 7, torch.float64, steps=10)
    for name in NAMES:
        if not name.startswith("minatar:") or name == "minatar:breakout":
            assert_compiled_equals_eager(name, 6, torch.float32, steps=1)


def assert_compiled_equals_eager(name, time_limit, dtype, steps):
    env = envs.make(name, time_limit=time_limit, dtype=dtype)
    count = CompileCounterWithBackend("aot_eager")
    step = torch.compile(torch.func.vmap(env.step), backend=count, fullgraph=True)
    state = compiled = played(env, 2, 3)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    try:
        with torch._dynamo.config.patch(recompile_limit=2 * len(NAMES)):
            for t in range(steps):
                action, u = random_actions(env, 2, 3, seed=t), uniforms(env, 2, 3, seed=t)
                state, output = env.step(state, action, u)
                compiled, compiled_output = step(compiled, action, u)
                assert_same((state, output), (compiled, compiled_output), tolerance)
        assert count.frame_count == 1
    except Exception as error:
        error.add_note(name)
        raise


@pytest.mark.parametrize("name", NAMES)
def test_constants_are_on_the_device_of_the_inputs(name):
    env = envs.make(name)
    u, action = uniforms(env, 4).to("meta"), random_actions(env, 4).to("meta")
    state, _ = env.reset(u)
    assert all(x.device.type == "meta" for x in tree.leaves(env.step(state, action, u)))


# --- Names and checks of arguments -----------------------------------------------------------------------------------


def test_names_and_descriptions():
    games = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
    assert list(NAMES) == ["acrobot", "cartpole", "catch", *(f"minatar:{game}" for game in games), "mountain_car"]
    assert all("\n" not in envs.describe(name) and envs.describe(name) for name in NAMES)
    assert envs.describe("cartpole").endswith("obs [4], 2 actions, 500 steps; as CartPole-v1")


@pytest.mark.parametrize("call", [envs.make, envs.describe])
def test_an_unknown_name_is_refused_with_the_nearest_name(call):
    known = f"Known: {', '.join(NAMES)}"
    with pytest.raises(ValueError, match=f"^unknown environment 'cartpol'; did you mean 'cartpole'\\? {known}$"):
        call("cartpol")
    with pytest.raises(ValueError, match=r"^unknown environment 'breakout'; did you mean 'minatar:breakout'\?"):
        call("breakout")
    with pytest.raises(ValueError, match=f"^unknown environment 'zzz'. {known}$"):
        call("zzz")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LunarLander-v3", "gym:LunarLander-v3"),
        ("LunarLander", "gym:LunarLander-v3"),
        ("lunarlander-v1", "gym:LunarLander-v3"),
        ("FrozenLake8x8-v1", "gym:FrozenLake8x8-v1"),
        ("phys2d/CartPole-v1", "gym:phys2d/CartPole-v1"),
        ("CartPole-v1", "cartpole"),
        ("MountainCar-v0", "mountain_car"),
        ("Breakout", "ale:Breakout"),
        ("ALE/Breakout-v5", "ale:Breakout"),
        ("PongNoFrameskip-v4", "ale:Pong"),
        ("MontezumaRevenge", "ale:MontezumaRevenge"),
        ("pong", "ale:Pong"),
        ("breakout", "minatar:breakout"),
        ("space_invaders", "minatar:space_invaders"),
        ("MinAtar/Freeway-v1", "minatar:freeway"),
        ("minatar:breakot", "minatar:breakout"),
    ],
)
def test_names_of_other_libraries_get_a_suggestion(name, meant):
    if meant.startswith("ale:"):
        pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=re.escape(f"unknown environment '{name}'; did you mean '{meant}'? Known: ")):
        envs.find(name)


@pytest.mark.parametrize("name", ["tic_tac_toe_3d", "", "a b", "Nonsense-v3"])
def test_a_name_without_similar_names_has_no_suggestion(name):
    with pytest.raises(ValueError, match=f"^unknown environment '{name}'. Known: "):
        envs.find(name)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_checked(name):
    with pytest.raises(ValueError, match="time_limit: expected at least 1, got 0"):
        envs.make(name, time_limit=0)
    with pytest.raises(TypeError, match=r"time_limit: expected an integer, got 5\.0"):
        envs.make(name, time_limit=5.0)
    with pytest.raises(TypeError, match=r"dtype: expected a floating-point dtype, got torch\.int64"):
        envs.make(name, dtype=torch.int64)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_arguments_are_checked(name):
    env = envs.make(name)
    state, action, u = played(env, 3), random_actions(env, 3), uniforms(env, 3)
    with pytest.raises(ValueError, match="u: expected shape"):
        env.reset(u[..., :0])
    with pytest.raises(TypeError, match="u: expected a floating-point dtype"):
        env.reset(u.long())
    with pytest.raises(ValueError, match="action: expected shape"):
        env.step(state, action[:, None], u)
    with pytest.raises(TypeError, match="action: expected an integer dtype"):
        env.step(state, action.float(), u)
    with pytest.raises(ValueError, match="u: expected shape"):
        env.step(state, action, u[:2])


def test_advance_accepts_observations_of_any_rank():
    state = probes.State(place=torch.tensor([0, 1]), time=torch.tensor([1, 2]))
    obs, legal = torch.ones(2, 3, 4, 5), torch.tensor([[True, False], [False, True]])
    start = episode.begin(tree.map(torch.zeros_like, state), 0 * obs, ~legal)
    flags = torch.zeros(2, dtype=torch.bool)
    after, step = episode.advance(state, obs, legal, torch.zeros(2), flags, start, time_limit=2)
    assert (after.place.tolist(), after.time.tolist()) == ([0, 0], [1, 0])
    assert step.obs.flatten(1).mean(1).tolist() == [1.0, 0.0]
    assert step.legal.tolist() == [[True, False], [True, False]]
    assert step.next_legal.tolist() == legal.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_environments_can_be_pickled(name):
    env = envs.make(name)
    again, u = pickle.loads(pickle.dumps(env)), uniforms(env, 3)
    assert_same(again.reset(u), env.reset(u))


def test_a_registered_name_without_a_version_is_suggested():
    gymnasium.register("Unversioned", entry_point="nowhere:Nothing")
    try:
        with pytest.raises(ValueError, match="gym:Unversioned"):
            envs.find("unversioned")
    finally:
        gymnasium.registry.pop("Unversioned")
