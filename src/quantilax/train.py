"""The training loop that every algorithm shares: `segment`, and `train`, which scans segments.

A segment is the training between two evaluations and the evaluation after it. `train` scans
segments inside one XLA program; `quantilax.devices.fit` runs the same segments one by one. The
number of iterations is an argument, not a shape. So one compiled program serves segments of every
length, and the evaluation before training as well (length 0).
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from quantilax import signals, switches
from quantilax.errors import ConfigError
from quantilax.learning import normalize, rollout
from quantilax.networks import torsos
from quantilax.types import Algorithm, Config, Environment, EvalCallback, Metrics, Record, State


def evaluation_steps(config: Config) -> tuple[int, ...]:
    """Environment steps, including the warm-up, at which each row of a curve is measured.

    Row 0 is measured before training, after the warm-up. The others follow at the multiples of
    `eval_freq` and at the end of the run. Each is rounded down to whole iterations, so no run takes
    more than `total_timesteps`.
    """
    warmup, per = config.warmup_steps, config.steps_per_iteration
    asked = [*range(config.eval_freq, config.total_timesteps, config.eval_freq), config.total_timesteps]
    reached = {warmup + (step - warmup) // per * per for step in asked if step > warmup}
    return tuple(sorted({warmup, *reached}))


def segment_iterations(config: Config, since: int | None = None) -> list[int]:
    """Iterations before each remaining row of the curve.

    Args:
        config: the config of the run.
        since: environment step of the last row so far. None: there is none yet, and the first row
            comes after 0 iterations.
    """
    steps = evaluation_steps(config)
    rows = (steps[0], *steps) if since is None else (since, *(step for step in steps if step > since))
    return [(b - a) // config.steps_per_iteration for a, b in pairwise(rows)]


MAX_EVALUATIONS = 100_000


def check(env: Environment, config: Config) -> None:
    """Raise `ConfigError` for fields that contradict each other or the environment.

    This covers the fields of the loop, of the algorithm and of the torso.
    """
    if config.total_timesteps // config.eval_freq > MAX_EVALUATIONS:
        raise ConfigError(f"eval_freq: {config.eval_freq} asks for over {MAX_EVALUATIONS:,} evaluations; raise it")
    config.check()
    if hasattr(config, "torso"):
        torsos.check(env.observation_space, config)


def advice(env: Environment, config: Config) -> list[str]:
    """Lines on misleading settings of the loop, the algorithm and the torso."""
    lines = []
    last = evaluation_steps(config)[-1]
    if config.total_timesteps % config.eval_freq or config.eval_freq % config.steps_per_iteration:
        lines.append(
            f"eval_freq={config.eval_freq} does not divide total_timesteps={config.total_timesteps} into equal periods of"
            f" whole iterations ({config.steps_per_iteration} environment steps): evaluations are unevenly spaced and the"
            f" last is at step {last}; choose an eval_freq that divides total_timesteps and is a multiple of"
            f" {config.steps_per_iteration}"
        )
    of_torso = torsos.advice(env.observation_space, config) if hasattr(config, "torso") else []
    return lines + config.advice() + of_torso


def returns_to_learn(config: Config, record: Record) -> Float[np.ndarray, "*episodes"] | None:
    """Return an evaluation's discounted returns in learned units; None if it has none.

    With a temperature they include the entropy bonus of the steps after the first,
    `sum_t>0 gamma^t alpha H`, with alpha and the entropy H of the training before the evaluation.
    Before training, and without metrics, the bonus is unknown and left out.
    """
    if record.learned_returns is None:
        return None
    returns, metrics = np.asarray(record.learned_returns), record.metrics
    if metrics is None or metrics.temperature is None:
        return returns
    bonus = np.nan_to_num(np.asarray(metrics.temperature) * np.asarray(metrics.entropy))
    gamma, later = float(config.gamma), np.asarray(record.lengths) - 1
    weights = later if gamma == 1 else gamma * (1 - gamma**later) / (1 - gamma)
    return returns + bonus[..., None] * weights


def uncovered(support: tuple[float, float], returns: Float[np.ndarray, "*episodes"]) -> str | None:
    """Return a line, with a remedy, if a categorical support does not cover the returns.

    None if at most a share `UNCOVERED` of the returns lies outside of it.
    """
    v_min, v_max = support
    above, below = float(np.mean(returns > v_max)), float(np.mean(returns < v_min))
    if above + below <= UNCOVERED:
        return None
    return (
        f"{'v_max' if above >= below else 'v_min'}: {above + below:.0%} of the returns of an evaluation, discounted and"
        f" in learned units, lie outside the support from {float(v_min):g} to {float(v_max):g}: they go from"
        f" {float(returns.min()):.3g} to {float(returns.max()):.3g}; widen the support, or change reward_scale"
    )


UNCOVERED = 0.1
"""Share of an evaluation's returns outside of the support above which `uncovered` reports them."""


@switches.standard()
def init(algorithm: Algorithm, env: Environment, config: Config, key: Key[Array, ""]) -> State:
    """Return the state before training, after the warm-up."""
    env, config = _opaque((env, config))
    return _strong(algorithm.init(env, config, key))


initial = jax.jit(init, static_argnums=0)
"""`init`, jitted. `state_bytes` and the programs of `quantilax.devices` share one trace of it."""


def step(algorithm: Algorithm, env: Environment, config: Config, state: State) -> tuple[State, Metrics]:
    """Run one training iteration.

    Act for `steps_per_iteration` environment steps, observe them, and update.
    """
    key, key_collect, key_update, key_observe = jax.random.split(state.key, 4)
    state, transitions = rollout.collect(env, config, partial(algorithm.act, env), replace(state, key=key), key_collect)
    return algorithm.update(config, algorithm.observe(config, state, transitions, key_observe), key_update)


@switches.standard()
def segment(
    algorithm: Algorithm,
    env: Environment,
    config: Config,
    state: State,
    iterations: Int[Array, ""],
    eval_callback: EvalCallback | None = None,
) -> tuple[State, Record]:
    """Run `iterations` training iterations, then evaluate.

    An evaluation does not change training: its key is folded from `state.evaluation_key`, which
    training never uses. If `config.metrics` is off, nothing reads the algorithm's metrics, and XLA
    removes their computation.
    """

    env, config = _opaque((env, config))

    def iteration(i: Int[Array, ""], carry: tuple[State, Metrics | None]) -> tuple[State, Metrics | None]:
        state, mean = carry
        state, metrics = step(algorithm, env, config, state)
        return _strong(state), jax.tree.map(
            lambda m, x: m + (x - m) / (i + 1), mean, metrics if config.metrics else None
        )

    means = (name for name in Metrics._fields if name not in Metrics._field_defaults or name in algorithm.metrics)
    zeros = Metrics(**{name: jnp.zeros(()) for name in means})
    state, mean = jax.lax.fori_loop(0, iterations, iteration, (state, zeros if config.metrics else None))
    metrics = None if mean is None else measured(mean, state, iterations)

    key = jax.random.fold_in(state.evaluation_key, state.env_steps)
    policy, measured_signals, learned_returns = algorithm.policy(env, config, state), None, None
    has_support = getattr(config, "support", None) is not None
    if has_support or measures_signals(algorithm, config):
        episodes = rollout.watch(env, policy, key, config.eval_episodes, config.gamma)
        lengths, returns = episodes.lengths, episodes.returns
        if has_support:
            learned_returns = normalize.rewards(state.normalizer, episodes.discounted)
            if (moments := state.normalizer.reward) is not None:  # the unit is unknown before the first step
                with switches.unchecked():
                    learned_returns = jnp.where(moments.moments.number > 0, learned_returns, jnp.nan)
        if measures_signals(algorithm, config):
            keys = signal_keys(state)
            measured_signals = _strong(signals.measure(env, algorithm, config, state, episodes, *keys))
    else:
        lengths, returns = rollout.evaluate(env, policy, key, config.eval_episodes)
    callback = None
    if eval_callback is not None:
        key = jax.random.fold_in(state.evaluation_key, ~state.env_steps)  # differs from the step of every evaluation
        callback = _strong(eval_callback(algorithm, env, config, state, key))
    record = Record(
        env_step=state.env_steps,
        lengths=lengths,
        returns=returns,
        finite=all_finite(state.params),
        metrics=metrics,
        callback=callback,
        signals=measured_signals,
        learned_returns=learned_returns,
    )
    return state, record


def measures_signals(algorithm: Algorithm, config: Config) -> bool:
    """Return whether records hold `quantilax.signals.Signals`."""
    return algorithm.signals is not None and getattr(config, "signals", False)


def signal_keys(state: State) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Return the key of the run's reference batch, and the key of this evaluation's signals.

    Nothing else uses these keys.
    """
    key = jax.random.fold_in(state.evaluation_key, 2**31)  # evaluations fold in steps, callbacks ~steps
    return jax.random.fold_in(key, 2**32 - 1), jax.random.fold_in(key, state.env_steps)


def measured(mean: Metrics, state: State, iterations: Int[Array, ""]) -> Metrics:
    """Add what is measured at the end of a segment to the means over the segment."""
    with switches.unchecked():
        mean = jax.tree.map(lambda x: jnp.where(iterations > 0, x, jnp.nan), mean)
    if hasattr(state, "replay"):
        mean = mean._replace(replay_fill=state.replay.size / state.replay.capacity)
    if hasattr(state, "target_params"):
        mean = mean._replace(target_distance=relative_distance(state.followed, state.target_params))
    return mean


def relative_distance(params: PyTree, target_params: PyTree) -> Float[Array, ""]:
    """||theta - theta^-|| / ||theta||, with all parameters as one vector."""
    return optax.tree.norm(optax.tree.sub(params, target_params)) / optax.tree.norm(params)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Return whether no number in a tree of arrays is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


@switches.standard()
def train(
    algorithm: Algorithm,
    env: Environment,
    config: Config,
    key: Key[Array, ""],
    eval_callback: EvalCallback | None = None,
) -> tuple[State, Record]:
    """Train a whole run: return the final state and the records, stacked along an axis `rows`.

    Pure: apply `jax.jit` to it, or `jax.vmap` over keys and over any leaf of the config and the
    environment.
    """

    def body(state: State, iterations: Int[Array, ""]) -> tuple[State, Record]:
        return segment(algorithm, env, config, state, iterations, eval_callback)

    return jax.lax.scan(body, init(algorithm, env, config, key), jnp.array(segment_iterations(config)))


@switches.standard()
@switches.unchecked()
def leaves_as_arrays(tree: PyTree) -> PyTree:
    """Turn the leaves into arrays of at most 32 bits per number.

    Then a float such as 1e-3 and an array of the same value share one program.
    """

    def array(x: Any) -> Array:
        x = jnp.float32(x) if isinstance(x, float) else jnp.asarray(x)
        return x.astype(jax.dtypes.canonicalize_dtype(x.dtype))

    return _strong(jax.tree.map(array, tree))


@switches.standard()
def state_spec(algorithm: Algorithm, env: Environment, config: Config) -> State:
    """Return one run's state with `jax.ShapeDtypeStruct` in place of every array.

    Nothing is run.
    """
    spec: State = initial.eval_shape(algorithm, leaves_as_arrays(env), leaves_as_arrays(config), jax.random.key(0))
    return spec


def state_bytes(algorithm: Algorithm, env: Environment, config: Config) -> dict[str, int]:
    """Return the size of one run's state in bytes, in total and per field.

    Nothing is run.
    """
    spec = state_spec(algorithm, env, config)

    def size(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return {"total": size(spec), **{name: size(getattr(spec, name)) for name in vars(spec)}}


def _opaque(tree: PyTree) -> PyTree:
    """Hide the values of the leaves from XLA.

    A config in a closure and one passed as an argument then compile to the same arithmetic.
    """
    opaque: PyTree = jax.lax.optimization_barrier(tree)
    return opaque


def _strong(tree: PyTree) -> PyTree:
    """Drop weak types, because they would make a state's types differ from its successor's."""

    def strong(x: Array) -> Array:
        return jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else x

    return jax.tree.map(lambda x: strong(jnp.asarray(x)), tree)
