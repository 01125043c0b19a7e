"""The head and the algorithm of the guides, as written there, against independent evaluations of their equations."""

import importlib
from collections.abc import Iterator
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from flax import nnx

from quantilax import ALGORITHMS, Agent, ConfigError, heads
from quantilax.agent import create
from quantilax.heads.base import Steps
from quantilax.learning import rollout
from quantilax.runs import extensions
from tests import guides


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The files of both guides are imported."""
    folder = tmp_path_factory.mktemp("files")
    names = ("awr.py", "gaussian.py", "beta_gaussian.py")
    for name, text in {**guides.files("custom-algorithm.md"), **guides.files("custom-head.md")}.items():
        (folder / name).write_text(text)
    with guides.unregistering():
        extensions.load(*(folder / name for name in names))
        yield


@pytest.fixture
def awr() -> ModuleType:
    return importlib.import_module("awr")


@pytest.fixture
def gaussian() -> ModuleType:
    return importlib.import_module("gaussian")


@pytest.mark.parametrize(("guide", "file", "lines"), [("head", "gaussian.py", 60), ("algorithm", "awr.py", 150)])
def test_a_head_and_an_algorithm_of_ones_own_are_short_files(guide, file, lines):
    assert len(guides.files(f"custom-{guide}.md")[file].splitlines()) < lines


def forward_view(reward, terminated, truncated, gamma, lambda_):
    """For each step: [(weight, discounted rewards, discount, place of the successor)] of the n-step returns."""
    T = len(reward)
    mixtures = []
    for t in range(T):
        parts, weight, total, discount = [], 1.0, 0.0, 1.0
        for k in range(t, T):
            total, discount = total + discount * reward[k], discount * gamma
            ends = terminated[k] or truncated[k] or k == T - 1
            parts.append((weight if ends else weight * (1 - lambda_), total, discount * (not terminated[k]), k))
            weight *= lambda_
            if ends:
                break
        mixtures.append(parts)
    return mixtures


def trained_awr(**changes) -> Agent:
    settings = dict(total_timesteps=640, eval_freq=640, eval_episodes=2, num_envs=4, num_steps=16, num_epochs=2)
    return create(ALGORITHMS["awr"], "probe/corridor", {**settings, "torso_sizes": (8,), "gamma": 0.9, **changes})


@pytest.mark.parametrize("normalized", [False, True])
def test_awr_learns_from_lambda_returns_and_weights_as_written_with_loops(awr, normalized):
    algo = trained_awr(normalize_observations=normalized, normalize_rewards=normalized, lambda_=0.8, w_max=2.0)
    config, state = algo.config, algo.init(jax.random.key(0))
    for _ in range(4):
        state, _ = algo.step(state)
    act = partial(awr.act, algo.env)
    state, x = rollout.collect(algo.env, config, act, state, jax.random.key(1))
    steps = awr.observe(config, state, x, jax.random.key(2)).steps
    assert bool(x.terminated.any()) or bool(x.truncated.any())

    obs, next_obs, reward = (np.asarray(a, np.float64) for a in (x.obs, x.next_obs, x.reward))
    if normalized:
        _, mean, variance = (np.asarray(a) for a in state.normalizer.observation)
        obs, next_obs = (np.clip((a - mean) / np.sqrt(variance + 1e-8), -10, 10) for a in (obs, next_obs))
        reward = reward / np.sqrt(np.asarray(state.normalizer.reward.moments.variance))
    network = nnx.merge(state.network, state.params)
    v, v_next = (np.asarray(jax.vmap(jax.vmap(network))(a)[1], np.float64) for a in (obs, next_obs))
    G = np.zeros_like(reward)
    for e in range(4):
        ended = np.asarray(x.terminated)[:, e], np.asarray(x.truncated)[:, e]
        for t, parts in enumerate(forward_view(reward[:, e], *ended, 0.9, 0.8)):
            G[t, e] = sum(weight * (total + discount * v_next[k, e]) for weight, total, discount, k in parts)
    A = (G - v - (G - v).mean()) / (G - v).std()
    w = np.minimum(np.exp(A), 2.0)
    assert w.max() == 2.0
    np.testing.assert_allclose(steps.G, G.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steps.w, w.ravel(), rtol=1e-3)

    value, (q, error) = awr.mean_loss(state.params, state.network, steps)
    logits = np.asarray(jax.vmap(jax.vmap(network))(obs)[0], np.float64)
    log_pi = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    log_pi = np.take_along_axis(log_pi, np.asarray(x.action)[..., None], axis=-1)[..., 0]
    assert value == pytest.approx((-w * log_pi + (G - v) ** 2 / 2).mean(), rel=1e-3)
    assert (q, error) == (pytest.approx(v.mean(), rel=1e-3), pytest.approx(np.abs(G - v).mean(), rel=1e-3))


def test_awr_draws_legal_actions_with_the_chances_of_its_policy_and_takes_the_likeliest_in_evaluations(awr):
    algo = trained_awr()
    state, obs, keys = algo.init(jax.random.key(0)), jnp.ones(6), jax.random.split(jax.random.key(1), 2_000)
    pi = jax.nn.softmax(nnx.merge(state.network, state.params)(obs)[0])
    act, greedy = (getattr(awr, name)(algo.env, algo.config, state).act for name in ("act", "policy"))

    def drawn(act, legal=None):
        return np.asarray(jax.vmap(lambda key: act(obs, (), key, legal)[0])(keys))

    assert drawn(act).mean() == pytest.approx(float(pi[1]), abs=4 * 0.5 / 2_000**0.5)
    assert (drawn(greedy) == int(jnp.argmax(pi))).all()
    for action in (0, 1):
        legal = jnp.arange(2) == action
        assert (drawn(act, legal) == action).all()
        assert (drawn(greedy, legal) == action).all()


def test_awr_refuses_a_run_shorter_than_an_iteration():
    with pytest.raises(ConfigError, match="total_timesteps: raise it to 64 or more"):
        trained_awr(total_timesteps=63)


def test_the_lambda_returns_of_the_gaussian_have_the_moments_of_the_mixture(gaussian):
    rng = np.random.default_rng(0)
    T, E, gamma, lambda_ = 9, 5, 0.9, 0.7
    reward, m, v = rng.normal(size=(T, E)), rng.normal(size=(T, E)), rng.uniform(0.1, 2, size=(T, E))
    terminated, truncated = rng.random((2, T, E)) < 0.2
    discount, trace = gamma * ~terminated, lambda_ * ~(terminated | truncated)
    Z = gaussian.Gaussian(jnp.array(m), jnp.array(v))
    steps = Steps(*map(jnp.array, (reward, discount, trace)))
    G = gaussian.GaussianHead(None).lambda_returns(None, steps, Z)
    for e in range(E):
        for t, parts in enumerate(forward_view(reward[:, e], terminated[:, e], truncated[:, e], gamma, lambda_)):
            p, means, variances = np.array([(w, r + d * m[k, e], d**2 * v[k, e]) for w, r, d, k in parts]).T
            mean = p @ means
            assert G.m[t, e] == pytest.approx(mean, rel=1e-4, abs=1e-5)
            assert G.v[t, e] == pytest.approx(p @ (variances + means**2) - mean**2, rel=1e-4, abs=1e-5)


def test_the_loss_of_the_gaussian_is_v_times_the_cross_entropy_and_its_minimum_has_mean_and_variance_of_the_targets(
    gaussian,
):
    Gaussian = gaussian.Gaussian
    Z, y = Gaussian(0.3, 0.5), Gaussian(1.1, 0.2)

    def integrand(r):
        return -scipy.stats.norm.pdf(r, y.m, y.v**0.5) * scipy.stats.norm.logpdf(r, Z.m, Z.v**0.5)

    cross_entropy = scipy.integrate.quad(integrand, -6, 8)[0]
    loss_of = gaussian.GaussianHead(None).loss
    loss = loss_of(*(jax.tree.map(jnp.float32, g) for g in (Z, y)))
    assert float(loss) == pytest.approx(Z.v * (cross_entropy - np.log(2 * np.pi) / 2), rel=1e-5)

    rng = np.random.default_rng(0)
    ys = Gaussian(*map(jnp.array, (rng.normal(size=100), rng.uniform(0, 1, size=100))))

    def gradient(m, v):
        return jax.grad(lambda Z: jax.vmap(loss_of, in_axes=(None, 0))(Z, ys).mean())(Gaussian(m, v))

    m = ys.m.mean()
    v = ys.v.mean() + ((ys.m - m) ** 2).mean()
    np.testing.assert_allclose(gradient(m, v), (0, 0), atol=1e-6)
    for variance in (1e-4, 1.0, 100.0):  # the gradient of the mean is that of the squared error, whatever the variance
        assert float(gradient(m + 0.5, variance).m) == pytest.approx(0.5, rel=1e-3)
    assert float(gradient(m, v / 2).v) < 0 < float(gradient(m, 2 * v).v)


def test_the_quantiles_of_the_gaussian_are_those_of_its_mean_and_variance(gaussian):
    config = create(ALGORITHMS["q_learning"], "probe/corridor", {"head": "gaussian"}).config
    head = heads.of(config)
    layer = head.layer(4, 3, nnx.Rngs(0))
    psi, tau = jnp.arange(4.0), jnp.array([0.01, 0.5, 0.9])
    (Z,) = head.predict(layer, psi, [None])
    true = scipy.stats.norm.ppf(np.asarray(tau)[:, None], Z.m, np.sqrt(Z.v))
    np.testing.assert_allclose(head.quantiles(layer, psi, tau), true, rtol=1e-4, atol=1e-5)
    assert Z.taken(1).m == head.mean(Z)[1]


@pytest.mark.parametrize("loop", ["q_learning", "pqn"])
def test_a_registered_head_is_a_value_of_the_field_and_what_it_lacks_is_refused(loop):
    with pytest.raises(ConfigError, match="unknown value 'gausian'; did you mean 'gaussian'"):
        create(ALGORITHMS[loop], "probe/corridor", {"head": "gausian"})
    with pytest.raises(ConfigError, match="munchausen: not defined"):
        create(ALGORITHMS[loop], "probe/corridor", {"head": "gaussian", "munchausen": True})
    with pytest.raises(ConfigError, match=r"head: beta_gaussian needs hyperparameters .* lacks \(Beta\); choose"):
        create(ALGORITHMS[loop], "probe/corridor", {"head": "beta_gaussian"})


def test_a_head_whose_name_is_taken_or_that_lacks_a_method_is_refused(gaussian):
    with pytest.raises(ConfigError, match="head 'gaussian' is registered already; choose another name"):
        heads.register(gaussian.GaussianHead)
    with pytest.raises(
        ConfigError, match="head 'half' has no expected, lambda_returns, layer, loss, mean, target; see"
    ):
        heads.register(type("Half", (heads.Head,), {"name": "half"}))
    assert "half" not in heads.HEADS
    with pytest.raises(ConfigError, match="head 'scalar' is registered already"):
        heads.register(type("Other", (heads.Head,), {"name": "scalar"}))


@pytest.mark.parametrize("loop", ["q_learning", "pqn"])
def test_the_hyperparameter_of_ones_own_head_weighs_its_loss(gaussian, loop):
    algo = create(ALGORITHMS[f"beta_{loop}"], "probe/corridor", {"beta": 0.25})
    assert algo.config.head == "beta_gaussian"
    loss = heads.of(algo.config).loss
    Z, y = gaussian.Gaussian(jnp.float32(0), jnp.float32(3)), gaussian.Gaussian(jnp.float32(1), jnp.float32(2))
    nll = (np.log(3) + (2 + 1) / 3) / 2
    assert float(loss(Z, y)) == pytest.approx(3**0.25 * nll, rel=1e-5)
    assert float(jax.grad(loss)(Z, y).m) == pytest.approx(-(3**0.25) / 3, rel=1e-5)


@pytest.mark.parametrize("loop", [pytest.param("q_learning", marks=pytest.mark.validation), "pqn"])
def test_the_gaussian_learns_and_is_measured_in_either_loop(loop):
    settings = dict(head="gaussian", total_timesteps=2_048, eval_freq=2_048, num_envs=8, eval_episodes=2, signals=True)
    algo = create(ALGORITHMS[loop], "probe/corridor", {**settings, "torso_sizes": (8,)})
    state, record = algo.records(jax.random.key(0))
    assert bool(record.finite.all())
    assert int(state.gradient_steps) == algo.config.gradient_steps > 0
    assert np.isfinite(record.signals.calibration[-1])
    assert float(record.signals.crossing[-1]) == 0
