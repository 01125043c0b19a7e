"""Signals: what a run measures about itself at each evaluation, for `quantilax diagnose`.

Measuring does not change training: `measure` draws with its own keys and reads what a `Learner`
holds. The formulas are here, one function each; an algorithm's file only provides the parts.
docs/diagnosis.md explains the signals and lists the formulas.

| symbol | here | meaning |
|---|---|---|
| R | `reference` | reference batch: transitions of random actions, the same at each evaluation |
| g, g_m | | gradient of the loss before clipping; gradient of the m-th part |
| Q, Q^- | | values: expected returns by the online and the target network, in learned units |
| G | | discounted return of an evaluation's episode, in learned units |
| rms(Q) | | root mean square of Q on R; relative signals are divided by it |

Learned units are those of rewards after scaling and normalisation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from quantilax import heads, switches
from quantilax.learning import exploration, normalize, rollout
from quantilax.types import (
    Action,
    Algorithm,
    Box,
    Config,
    Discrete,
    Environment,
    Legal,
    Observation,
    Policy,
    State,
    Transition,
)

REFERENCE_ENVS, REFERENCE_STEPS = 8, 32
"""The size of R is their product."""
PARTS, PART = 16, 32
"""Number of gradients, and of transitions in each, that measure the gradient's noise."""
UPDATES = 8
"""Trial steps: gradient steps that are tried from the run's state and then thrown away."""
NUM_FRACTIONS = 16
"""Midpoints at which Z is evaluated if fractions are not drawn."""
DRAWS = 8
"""Actions drawn for each observation to measure exploration."""
BINS = 10
"""Equal parts of a box in which a component of real-valued actions is counted."""
DORMANT = 0.025
"""A unit is dormant if its mean activation is at most this share of its layer's mean (Sokar et al.
2023)."""
SMALL = 1e-12


class Signals(NamedTuple):
    """The signals of one evaluation.

    None if the algorithm has no such thing, NaN if this evaluation has nothing to measure.
    "Relative" means divided by rms(Q). Only signals in "learned units" depend on the unit of
    rewards.
    """

    gradient_signal: Float[Array, ""]
    """Squared length of the mean gradient, |E g|^2: the part that transitions agree on. As an
    unbiased estimate it can be negative; see `noise_parts`."""
    gradient_noise: Float[Array, ""]
    """How much the gradients of single transitions differ from their mean: the trace of their
    covariance; see `noise_parts`."""
    clip_share: Float[Array, ""]
    """Share of trial steps whose gradient is clipped."""
    clip_factor: Float[Array, ""]
    """Share of a gradient's length that clipping leaves, the mean of min(1, max_grad_norm / |g|); 1
    if nothing is clipped."""
    update_ratio: Float[Array, ""]
    """Length of a trial step divided by the length of all weights, |step| / |theta|."""
    adam_below_eps: Float[Array, ""]
    """Share of the weights for which Adam's epsilon is larger than sqrt(v), the typical size of
    their gradient. v is bias-corrected; weights without a gradient do not count."""
    adam_damping: Float[Array, ""]
    """Share of Adam's step that its epsilon leaves; 1 if epsilon plays no part. See `damping`."""
    adam_scale: Float[Array, ""]
    """The typical size of a weight's gradient: the median of sqrt(v)."""
    without_gradient: Float[Array, ""]
    """Share of the weights that no gradient has reached so far, those with v = 0."""
    overshoot: Float[Array, ""]
    """Share of its own batch's errors that a trial step removes: 0 none, 1 all, above 1 it turns
    them round. See `overshoot`."""
    loss_ratio: Float[Array, ""]
    """Loss on a trial step's own batch after the step, divided by that before."""
    policy_churn: Float[Array, ""]
    """Share of R in which a trial step changes the best action."""
    value_churn: Float[Array, ""]
    """How much a trial step changes the values on R: the mean |Q' - Q|, relative."""

    reference_q: Float[Array, ""]
    """Mean value over R and all actions, in learned units."""
    reference_q_target: Float[Array, ""] | None
    """The same by the target network. R is fixed, so this value stands still if the target does."""
    target_lag: Float[Array, ""] | None
    """How far the values of the two networks are apart on R: the mean |Q - Q^-|, relative."""
    target_disagreement: Float[Array, ""] | None
    """Share of R in which the two networks choose different actions."""
    action_gap: Float[Array, ""]
    """By how much the best action's value exceeds the second best's: mean over R, relative."""
    decision_snr: Float[Array, ""] | None
    """The action gap divided by the error that K drawn fractions give it, median over R; see
    `decision_snr`."""
    value_change: Float[Array, ""]
    """How much values change in a step of R that does not terminate: the mean |V(x') - V(x)|
    divided by the standard deviation of V on R, where V is the best action's value."""
    reference_error: Float[Array, ""]
    """Mean TD error on R, |r + gamma max Q^-(x') - Q(x, a)|, relative. It is high in states that
    the run has forgotten or never learned."""
    replay_error: Float[Array, ""]
    """Mean TD error on a batch that training learns from, |expected target - Q|, relative."""
    value_bound: Float[Array, ""]
    """The largest |Q| on R and the first states, divided by the largest return that is possible
    with the largest reward seen, max |r| / (1 - gamma). Above 1 no such return exists, except with
    Munchausen, whose values include log-probabilities and entropy."""
    doomed_q: Float[Array, ""]
    """The largest error of a value at the terminal steps of R, where nothing follows the reward:
    the largest |Q - r|, relative. It should be near 0; NaN if R has no terminal step."""

    terminal_share: Float[Array, ""]
    """Share of the transitions learned from that terminate an episode."""
    truncation_share: Float[Array, ""]
    """Share of truncations among all ends of episodes learned from; NaN if there is no end."""
    replay_episodes: Float[Array, ""] | None
    """Number of ends of episodes in the replay."""
    action_entropy: Float[Array, ""]
    """Entropy of the actions learned from, divided by log A: 1 if all are used equally, 0 if one
    is. Each component of real-valued actions is counted in `BINS` equal parts of the box."""
    off_policy: Float[Array, ""] | None
    """Share of the actions learned from that differ from those that are greedy now. For real-valued
    actions the mean distance, in half widths of the box."""
    exploration: Float[Array, ""]
    """Share of the actions that differ from the greedy ones at the same fractions, as training
    would act now on R. For real-valued actions the mean distance, in half widths of the box."""

    start_q: Float[Array, ""]
    """Mean value predicted at first steps of the evaluation's episodes, in learned units."""
    start_return: Float[Array, ""]
    """Mean of G over the same episodes, in learned units."""
    bias: Float[Array, ""]
    """Predicted less actual return: (start_q - start_return) / rms(G)."""
    end_error: Float[Array, ""]
    """Error of the values at the last steps of episodes that terminate before the time limit: the
    mean |Q - r| / rms(G)."""
    limit_reached: Float[Array, ""]
    """Share of the episodes that last to the time limit."""
    limit_deaths: Float[Array, ""]
    """Share of these episodes that is reported as terminated; NaN if there are none."""
    limit_error: Float[Array, ""]
    """How much more the network expected at the last steps of episodes that terminate at the time
    limit than it got: the mean (Q - r) / rms(G)."""
    calibration: Float[Array, ""] | None
    """How far predicted quantiles at first steps are from the true shares of returns below them:
    the mean over tau of |P(G <= Z_tau) - tau|."""
    spread_predicted: Float[Array, ""] | None
    """Width of the predicted distribution at first steps: its mean interquartile range / rms(G)."""
    spread_observed: Float[Array, ""]
    """The width of G: its interquartile range / rms(G)."""
    crossing: Float[Array, ""] | None
    """Share of neighbouring fractions on R at which the quantile of the best action falls instead
    of rising."""
    huber_share: Float[Array, ""] | None
    """Share of the errors that are larger than kappa, P(|delta| > kappa)."""
    huber_scale: Float[Array, ""] | None
    """Mean size of the errors divided by kappa, mean |delta| / kappa."""

    dormant: Float[Array, ""]
    """Share of the torso's units that are hardly active on R; see `dormant_share`."""
    effective_rank: Float[Array, ""]
    """How many independent directions the torso's features use on R, as a share of their number;
    see `effective_rank`."""


class Experience(NamedTuple):
    """Steps without observations, with rewards in learned units.

    `is_there` marks the rows that hold a step.
    """

    action: Shaped[Array, "..."]
    """If an action has axes of its own, they come after those of the rows."""
    reward: Float[Array, "*rows"]
    terminated: Bool[Array, "*rows"]
    truncated: Bool[Array, "*rows"]
    is_there: Bool[Array, "*rows"]


class Learner(NamedTuple):
    """An algorithm with its config, state and head; values are in learned units.

    Its methods fit loops that act by the values of a list of actions. A loop of another kind has a
    subclass.
    """

    learning: "Learning"
    config: Config
    state: State
    head: heads.Head
    params: PyTree
    target_params: PyTree
    """None if there is no target network."""

    def part(self, tree: PyTree) -> PyTree:
        """Return what the loss differentiates, of parameters or of the optimiser's state."""
        return tree[self.learning.entry] if self.learning.entry else tree

    def whole(self, part: PyTree) -> PyTree:
        """Return all parameters, with this part in its place."""
        return self.params | {self.learning.entry: part} if self.learning.entry else part

    def draw(self, key: Key[Array, ""], size: int) -> PyTree:
        """Draw a batch as training does."""
        return self.learning.draw(self.config, self.state, key, size)[0]

    def loss(self, part: PyTree, batch: PyTree, key: Key[Array, ""]) -> Float[Array, ""]:
        """Mean loss on a batch."""
        return self.learning.loss(part, self.config, self.state, batch, key)[0]

    def errors(
        self, part: PyTree, batch: PyTree, key: Key[Array, ""]
    ) -> tuple[Float[Array, "B N N_prime"], Float[Array, "B"]]:
        """Return the errors of a batch, and Q of the actions taken.

        An error is target minus estimate, for each pair that the loss compares.
        """
        predictions, targets = self.learning.compared(part, self.config, self.state, batch, key)
        return jax.vmap(self.head.errors)(predictions, targets), jax.vmap(self.head.mean)(predictions)

    def values(self, params: PyTree, obs: Observation) -> Float[Array, "A"]:
        """Q of one observation, or V (A = 1) unless `Learning.per_action`.

        If Q is a mean over drawn fractions, the mean is taken over midpoints.
        """
        network = nnx.merge(self.state.network, params)
        return self.head.mean(self.head.predict(network.head, network.psi(obs), [midpoints(NUM_FRACTIONS)])[0])

    def quantiles(self, params: PyTree, obs: Observation, tau: Float[Array, "N"]) -> Float[Array, "N A"]:
        """Z of one observation, for heads that learn it."""
        network = nnx.merge(self.state.network, params)
        Z: Float[Array, "N A"] = self.head.quantiles(network.head, network.psi(obs), tau)
        return Z

    def of_taken(self, Y: Float[Array, "B *n A"], action: Array) -> Float[Array, "B *n"]:
        """Return the entries of the actions taken."""
        if not self.learning.per_action:
            return Y[..., 0]
        return jnp.take_along_axis(Y, action.reshape(-1, *(1,) * (Y.ndim - 1)), axis=-1)[..., 0]

    def taken(self, params: PyTree, steps: Transition) -> Float[Array, "B"]:
        """Q of the actions taken in a batch."""
        return self.of_taken(jax.vmap(self.values, in_axes=(None, 0))(params, steps.obs), steps.action)

    def quantiles_taken(self, params: PyTree, steps: Transition, tau: Float[Array, "N"]) -> Float[Array, "B N"]:
        """Z of the actions taken in a batch."""
        return self.of_taken(jax.vmap(self.quantiles, in_axes=(None, 0, None))(params, steps.obs, tau), steps.action)

    def departure(self, batch: Any) -> Float[Array, "B"]:
        """How far the actions of a drawn batch are from the greedy ones: 1 if they differ."""
        q = jax.vmap(self.values, in_axes=(None, 0))(self.params, batch.obs)
        return (_greedy(q, getattr(batch, "legal", None)) != batch.action).astype(jnp.float32)

    def ahead(self, params: PyTree, obs: Observation, legal: Any) -> Float[Array, "B"]:
        """Return what is expected from a batch of observations on: max Q, or V."""
        q = jax.vmap(self.values, in_axes=(None, 0))(params, obs)
        return exploration.masked(q, legal if self.learning.per_action else None).max(axis=-1)

    def features(self, steps: Transition) -> Float[Array, "B F"]:
        """psi of a batch."""
        return jax.vmap(nnx.merge(self.state.network, self.state.params).psi)(steps.obs)


class Learning(NamedTuple):
    """What an algorithm with a head provides as `Algorithm.signals`.

    The rest is read from its config, state and head.
    """

    is_replay: bool
    """Whether the state keeps its experience. If not, an iteration is collected and observed for
    the measurement, and then thrown away."""
    draw: Callable[[Config, State, Key[Array, ""], int], tuple[PyTree, Any]]
    """(config, state, key, n) -> (a batch of n, drawn as in training; its place in the replay)."""
    loss: Callable[[PyTree, Config, State, PyTree, Key[Array, ""]], tuple[Float[Array, ""], Any]]
    """(params, config, state, batch, key) -> (mean loss, other metrics)."""
    compared: Callable[[PyTree, Config, State, PyTree, Key[Array, ""]], tuple[Any, Any]]
    """(params, config, state, batch, key) -> (predictions of the actions taken, targets)."""
    experience: Callable[[Config, State], Experience]
    """All experience that training can use now."""
    optimizer: Callable[[Config], optax.GradientTransformation]
    policies: Callable[[Environment, Config, State], tuple[Policy, Policy]]
    """The policy of training now, and the greedy one, which draws the same fractions."""
    learner: type[Learner] = Learner
    per_action: bool = True
    """Whether `Learner.values` has an entry for each action. If not, it has one, the value of the
    policy, and the signals in `OF_CHOICES` are None."""
    entry: str = ""
    """The entry of `params` that `loss` and `compared` take and `optimizer` moves; "": all of them.
    """
    without: tuple[str, ...] = ()
    """Further signals that mean nothing in this loop, and are None."""


OF_CHOICES = ("policy_churn", "target_disagreement", "action_gap", "decision_snr")
"""Signals of a choice among the values of a list of actions."""


@switches.unchecked()
def measure(
    env: Environment,
    algorithm: Algorithm,
    config: Config,
    state: State,
    episodes: rollout.Episodes,
    reference_key: Key[Array, ""],
    key: Key[Array, ""],
) -> Signals:
    """Measure all signals.

    Args:
        env, algorithm, config, state: those of training.
        episodes: those of the evaluation.
        reference_key: the same at each evaluation of a run.
        key: different at each evaluation.
    """
    learning: Learning = algorithm.signals
    if not learning.is_replay:
        key_collect, key_observe, key = jax.random.split(key, 3)
        _, collected = rollout.collect(env, config, partial(algorithm.act, env), state, key_collect)
        state = algorithm.observe(config, state, collected, key_observe)
    target_params = getattr(state, "target_params", None)
    if learning.entry:  # parts without a target network take their own parameters
        target_params = state.params | target_params
    learner = learning.learner(learning, config, state, heads.of(config), state.params, target_params)
    key_reference, key_explore = jax.random.split(reference_key)
    key_gradient, key_updates, key_errors = jax.random.split(key, 3)
    raw = reference(env, key_reference)
    if not config.bootstrap_truncated:  # training treats cuts as ends, and so do the signals
        raw, episodes = raw.ended_where_truncated(), episodes._replace(last=episodes.last.ended_where_truncated())
    R = normalize.transitions(state.normalizer, raw)
    if not learning.per_action:
        R = R._replace(legal=None, next_legal=None)
    experience = learning.experience(config, state)
    measured = Signals(
        **_of_the_gradient(learner, key_gradient),
        **_of_updates(learner, R, key_updates),
        **_of_values(learner, R, episodes, experience),
        **_of_errors(learner, R, key_errors),
        **_of_experience(experience, env.action_space, learning.is_replay),
        exploration=_exploration(env, learner, raw, key_explore),
        **_of_episodes(learner._replace(params=state.average_params), episodes, env.max_episode_steps),
        **_of_features(learner.features(R)),
    )
    nothing: dict[str, Any] = dict.fromkeys((*(() if learning.per_action else OF_CHOICES), *learning.without))
    return measured._replace(**nothing)


def reference(env: Environment, key: Key[Array, ""]) -> Transition:
    """R: `REFERENCE_ENVS` x `REFERENCE_STEPS` transitions of random actions on one axis.

    They are not normalised.
    """
    policy = rollout.random_action(env)

    def one(envs: rollout.Envs, key: Key[Array, ""]) -> tuple[rollout.Envs, Transition]:
        return rollout.step(env, policy, envs, key)

    key_reset, key_steps = jax.random.split(key)
    start = rollout.reset(env, jax.random.split(key_reset, REFERENCE_ENVS))
    _, transitions = jax.lax.scan(one, start, jax.random.split(key_steps, REFERENCE_STEPS))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions)


def noise_parts(
    mean_square: Float[Array, ""], square_of_mean: Float[Array, ""], parts: int, size: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Signal G2 = |E g|^2 and noise S = tr Cov of one transition's gradient, both unbiased.

    They are estimated from M gradients of b transitions each:

        S  = b M / (M - 1) (mean_m |g_m|^2 - |mean_m g_m|^2)
        G2 = |mean_m g_m|^2 - S / (M b)

    A batch of B transitions has the noise S / B beside the signal G2; B = S / G2 is the simple
    noise scale. For M = 2 these are S = b |g_1 - g_2|^2 / 2 and G2 = g_1 . g_2.

    Source: McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, appendix A.
    """
    noise = size * parts / (parts - 1) * (mean_square - square_of_mean)
    return square_of_mean - noise / (parts * size), noise


def overshoot(before: Float[Array, "B"], after: Float[Array, "B"]) -> Float[Array, ""]:
    """Share of the errors that a step removes, `1 - sum(before after) / sum(before^2)`.

    0: none, 1: all, 2: every error changes its sign.
    """
    return 1 - jnp.sum(before * after) / (jnp.sum(before**2) + SMALL)


def damping(m: Float[Array, "P"], sqrt_v: Float[Array, "P"], eps: Float[Array, ""] | float) -> Float[Array, ""]:
    """Share of Adam's step that epsilon leaves, |m / (sqrt(v) + eps)| / |m / sqrt(v)|.

    1 if epsilon plays no part.
    """
    whole = jnp.where(sqrt_v > 0, m / jnp.where(sqrt_v > 0, sqrt_v, 1.0), 0.0)
    return optax.tree.norm(whole * sqrt_v / (sqrt_v + eps)) / (optax.tree.norm(whole) + SMALL)


def rms(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Root mean square, never 0."""
    return jnp.sqrt(jnp.mean(x**2) + SMALL)


def gap(q: Float[Array, "A"]) -> Float[Array, ""]:
    """Best less second-best value; NaN if there are not two legal actions.

    Args:
        q: values; -inf for actions that are not legal.
    """
    if q.shape[0] < 2:
        return jnp.full((), jnp.nan)
    best, second = jax.lax.top_k(q, 2)[0]
    return jnp.where(second > -jnp.inf, best - second, jnp.nan)


def decision_snr(Z: Float[Array, "N A"], num_samples: int, legal: Legal = None) -> Float[Array, ""]:
    """Action gap over its standard error with K drawn fractions.

        gap / sqrt(Var_tau[Z_1 - Z_2] / K)

    Z_1 and Z_2 are the quantiles of the two best legal actions; NaN if there is only one action.
    The fractions are assumed independent, whatever `acting_tau_sampling` and `risk` say. Stratified
    ones have less noise, and midpoints have none.

    Args:
        Z: quantiles at N fractions.
        num_samples: K.
        legal: mask of the legal actions.
    """
    if Z.shape[1] < 2:
        return jnp.full((), jnp.nan)
    q, (best, second) = jax.lax.top_k(exploration.masked(Z.mean(axis=0), legal), 2)
    difference = Z[:, best] - Z[:, second]
    snr = difference.mean() / jnp.sqrt(difference.var() / num_samples + SMALL)
    return jnp.where(q[1] > -jnp.inf, snr, jnp.nan)


def calibration(Z: Float[Array, "E N"], tau: Float[Array, "N"], G: Float[Array, "E"]) -> Float[Array, ""]:
    """Mean over tau of |P(G <= Z_tau) - tau|.

    0 if the quantiles are those of the returns, 1/2 if all returns lie on one side of all
    quantiles.
    """
    return jnp.abs((G[:, None] <= Z).mean(axis=0) - tau).mean()


def dormant_share(features: Float[Array, "B F"]) -> Float[Array, ""]:
    """Share of units whose mean |activation| is at most `DORMANT` times the layer's mean.

    Source: Sokar et al. (2023), https://arxiv.org/abs/2302.12902, definition 3.1.
    """
    activation = jnp.abs(features).mean(axis=0)
    return jnp.mean(activation <= DORMANT * activation.mean())


def effective_rank(features: Float[Array, "B F"]) -> Float[Array, ""]:
    """exp(entropy of the singular values, normalised to sum to 1) / F.

    Source: Roy & Vetterli (2007).
    """
    values = jnp.linalg.svd(features, compute_uv=False)
    share = values / (values.sum() + SMALL)
    return jnp.exp(-jnp.sum(share * jnp.log(share + SMALL))) / features.shape[1]


def entropy(counts: Float[Array, "A"]) -> Float[Array, ""]:
    """Entropy of a distribution given by counts, divided by log A.

    1 if there is only one action.
    """
    share = counts / jnp.maximum(counts.sum(), 1)
    bits = -jnp.sum(share * jnp.log(share + SMALL))
    return bits / jnp.log(counts.shape[0]) if counts.shape[0] > 1 else jnp.ones(())


def quartile_range(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Upper less lower quartile."""
    low, high = jnp.quantile(x, jnp.array([0.25, 0.75]))
    return high - low


def nanmean(x: Float[Array, "*shape"], where: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Mean over the elements selected by `where`; NaN if there are none."""
    return jnp.where(where, x, 0.0).sum() / where.sum()


def midpoints(n: int) -> Float[Array, "n"]:
    """(i + 1/2) / n."""
    return (jnp.arange(n) + 0.5) / n


def _as_vector(tree: PyTree) -> Float[Array, "P"]:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def _of_the_gradient(learner: Learner, key: Key[Array, ""]) -> dict[str, Any]:
    def add(sums: tuple[PyTree, Array], key: Key[Array, ""]) -> tuple[tuple[PyTree, Array], None]:
        key_draw, key_loss = jax.random.split(key)
        gradient = jax.grad(learner.loss)(params, learner.draw(key_draw, PART), key_loss)
        return (optax.tree.add(sums[0], gradient), sums[1] + optax.tree.norm(gradient, squared=True)), None

    params = learner.part(learner.params)
    zero = optax.tree.zeros_like(params), jnp.zeros(())
    (total, squares), _ = jax.lax.scan(add, zero, jax.random.split(key, PARTS))
    square_of_mean = optax.tree.norm(total, squared=True) / PARTS**2
    signal, noise = noise_parts(squares / PARTS, square_of_mean, PARTS, PART)

    eps = getattr(learner.config, "adam_eps", 1e-8)  # the default of optax, if the config has none
    adam = optax.tree.get(learner.part(learner.state.optimizer_state), "ScaleByAdamState")
    m, v = _as_vector(adam.mu), _as_vector(adam.nu)
    corrected = v / (1 - 0.999 ** jnp.maximum(learner.state.gradient_steps, 1))
    scale = jnp.where(v > 0, jnp.sqrt(corrected), jnp.nan)
    return {
        "gradient_signal": signal,
        "gradient_noise": noise,
        "adam_below_eps": nanmean((scale < eps).astype(jnp.float32), v > 0),
        "adam_damping": jnp.where((v > 0).any(), damping(m, jnp.sqrt(corrected), eps), jnp.nan),
        "adam_scale": jnp.nanmedian(scale),
        "without_gradient": jnp.mean(v == 0),
    }


def _of_updates(learner: Learner, R: Transition, key: Key[Array, ""]) -> dict[str, Any]:
    values = jax.vmap(learner.values, in_axes=(None, 0))
    q = values(learner.params, R.obs)
    greedy = _greedy(q, R.legal)
    optimizer, max_grad_norm = learner.learning.optimizer(learner.config), learner.config.max_grad_norm
    part, moments = learner.part(learner.params), learner.part(learner.state.optimizer_state)

    def one(_: None, key: Key[Array, ""]) -> tuple[None, dict[str, Any]]:
        key_draw, key_loss = jax.random.split(key)
        batch = learner.draw(key_draw, learner.config.batch_size)
        loss, gradient = jax.value_and_grad(learner.loss)(part, batch, key_loss)
        norm = optax.tree.norm(gradient)
        updates, _ = optimizer.update(gradient, moments, part)
        moved = optax.apply_updates(part, updates)
        before, after = (  # with the step's own fractions; noisy networks use others, without noise
            learner.errors(p, batch, jax.random.clone(key_loss))[0].mean(axis=(1, 2)) for p in (part, moved)
        )
        q_after = values(learner.whole(moved), R.obs)
        return None, {
            "clip_share": (norm > max_grad_norm).astype(jnp.float32),
            "clip_factor": jnp.minimum(1.0, max_grad_norm / (norm + SMALL)),
            "update_ratio": optax.tree.norm(updates) / optax.tree.norm(part),
            "overshoot": overshoot(before, after),
            "loss_ratio": learner.loss(moved, batch, jax.random.clone(key_loss)) / (loss + SMALL),
            "policy_churn": jnp.mean(_greedy(q_after, R.legal) != greedy),
            "value_churn": jnp.abs(q_after - q).mean() / rms(q),
        }

    _, rows = jax.lax.scan(one, None, jax.random.split(key, UPDATES))
    return {name: x.mean() for name, x in rows.items()}


def _of_values(learner: Learner, R: Transition, episodes: rollout.Episodes, experience: Experience) -> dict[str, Any]:
    values = jax.vmap(learner.values, in_axes=(None, 0))
    q = values(learner.params, R.obs)
    scale = rms(q)
    start = values(learner.params, normalize.observations(learner.state.normalizer, episodes.first.obs))
    largest = jnp.max(jnp.where(experience.is_there, jnp.abs(experience.reward), 0.0))
    taken = learner.taken(learner.params, R)
    beyond = jnp.where(R.terminated, jnp.abs(taken - R.reward), -jnp.inf).max() / scale
    before, after = (
        learner.ahead(learner.params, x, legal) for x, legal in ((R.obs, R.legal), (R.next_obs, R.next_legal))
    )
    found: dict[str, Any] = {
        "reference_q": q.mean(),
        "reference_q_target": None,
        "target_lag": None,
        "target_disagreement": None,
        "action_gap": jnp.nanmean(jax.vmap(gap)(exploration.masked(q, R.legal))) / scale,
        "decision_snr": None,
        "value_change": nanmean(jnp.abs(after - before), ~R.terminated) / (before.std() + SMALL),
        "value_bound": jnp.maximum(jnp.abs(q).max(), jnp.abs(start).max())
        * (1 - learner.config.gamma)
        / (largest + SMALL),
        "doomed_q": jnp.where(R.terminated.any(), beyond, jnp.nan),
        "crossing": None,
    }
    if learner.target_params is not None:
        q_target = values(learner.target_params, R.obs)
        found["reference_q_target"] = q_target.mean()
        found["target_lag"] = jnp.abs(q - q_target).mean() / scale
        found["target_disagreement"] = jnp.mean(_greedy(q, R.legal) != _greedy(q_target, R.legal))
    if learner.head.quantiles is not None:
        tau = midpoints(NUM_FRACTIONS)
        Z = jax.vmap(learner.quantiles, in_axes=(None, 0, None))(learner.params, R.obs, tau)  # (|R|, N, A)
        drawn, _ = learner.head.draw_acting(jax.random.key(0))
        if drawn is not None:
            snr = jax.vmap(decision_snr, in_axes=(0, None, 0))(Z, drawn.shape[0], R.legal)
            found["decision_snr"] = jnp.nanmedian(snr)
        chosen = jnp.take_along_axis(Z, _greedy(q, R.legal)[:, None, None], axis=2)[..., 0]  # (|R|, N)
        found["crossing"] = jnp.mean(jnp.diff(chosen, axis=1) < 0)
    return found


def _of_errors(learner: Learner, R: Transition, key: Key[Array, ""]) -> dict[str, Any]:
    values = jax.vmap(learner.values, in_axes=(None, 0))
    q = values(learner.params, R.obs)
    bootstrap = learner.params if learner.target_params is None else learner.target_params
    target = R.reward + learner.config.gamma * R.discount * learner.ahead(bootstrap, R.next_obs, R.next_legal)
    taken = learner.taken(learner.params, R)

    key_draw, key_loss = jax.random.split(key)
    part = learner.part(learner.params)
    batch = learner.draw(key_draw, PARTS * PART)
    delta, q_batch = learner.errors(part, batch, key_loss)
    magnitude, has_kappa = jnp.abs(delta), learner.head.regresses_quantiles
    return {
        "reference_error": jnp.abs(target - taken).mean() / rms(q),
        "replay_error": jnp.abs(delta.mean(axis=(1, 2))).mean() / rms(q_batch),
        "huber_share": jnp.mean(magnitude > learner.config.kappa) if has_kappa else None,
        "huber_scale": magnitude.mean() / learner.config.kappa if has_kappa else None,
        "off_policy": None if "off_policy" in learner.learning.without else learner.departure(batch).mean(),
    }


def _of_experience(experience: Experience, space: Discrete | Box, is_replay: bool) -> dict[str, Any]:
    there, action = experience.is_there, experience.action
    ends = (experience.terminated | experience.truncated) & there
    if isinstance(space, Discrete):
        kinds, action = space.n, action[..., None]
    else:  # each component in equal bins
        kinds, share = BINS, (action - space.low) / (jnp.asarray(space.high) - space.low)
        action = jnp.clip(share * BINS, 0, BINS - 1).astype(jnp.int32).reshape(*there.shape, -1)
    taken = jnp.where(there[..., None], action, kinds).reshape(-1, action.shape[-1])
    counts = jax.vmap(lambda x: jnp.bincount(x, length=kinds + 1)[:kinds], in_axes=1)(taken)
    return {
        "terminal_share": nanmean(experience.terminated.astype(jnp.float32), there),
        "truncation_share": nanmean((experience.truncated & ~experience.terminated).astype(jnp.float32), ends),
        "replay_episodes": ends.sum().astype(jnp.float32) if is_replay else None,
        "action_entropy": jax.vmap(entropy)(counts).mean(),
    }


def _exploration(env: Environment, learner: Learner, raw: Transition, key: Key[Array, ""]) -> Float[Array, ""]:
    keys = jax.random.split(key, (DRAWS, raw.reward.shape[0]))

    def actions(policy: Policy) -> Shaped[Array, "draws R *action"]:
        def one(obs: Observation, key: Key[Array, ""], legal: Bool[Array, "A"] | None) -> Action:
            return policy.act(obs, policy.carry, key, legal)[0]

        return jax.vmap(jax.vmap(one), in_axes=(None, 0, None))(raw.obs, jax.random.clone(keys), raw.legal)

    taken, greedy = map(actions, learner.learning.policies(env, learner.config, learner.state))
    if isinstance(env.action_space, Discrete):
        return jnp.mean(taken != greedy)
    return jnp.mean(jnp.abs(taken - greedy) / (jnp.asarray(env.action_space.high) - env.action_space.low)) * 2


def _greedy(q: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"] | None) -> Int[Array, "*batch"]:
    return exploration.masked(q, legal).argmax(axis=-1)


def _of_episodes(
    learner: Learner, episodes: rollout.Episodes, max_episode_steps: Int[Array, ""] | int
) -> dict[str, Any]:
    first, last = (normalize.transitions(learner.state.normalizer, x) for x in (episodes.first, episodes.last))
    q_cut = learner.ahead(learner.params, last.next_obs, last.next_legal)
    cut = learner.config.gamma**episodes.lengths * last.discount * q_cut
    G = normalize.rewards(learner.state.normalizer, episodes.discounted) + cut
    scale = rms(G)
    start, beyond = learner.taken(learner.params, first), learner.taken(learner.params, last) - last.reward
    reached = episodes.lengths >= max_episode_steps
    at_limit = last.terminated & reached
    found: dict[str, Any] = {
        "start_q": start.mean(),
        "start_return": G.mean(),
        "bias": (start - G).mean() / scale,
        "end_error": nanmean(jnp.abs(beyond), last.terminated & ~at_limit) / scale,
        "limit_reached": reached.mean(),
        "limit_deaths": nanmean(last.terminated.astype(jnp.float32), reached),
        "limit_error": nanmean(beyond, at_limit) / scale,
        "calibration": None,
        "spread_predicted": None,
        "spread_observed": quartile_range(G) / scale,
    }
    if learner.head.quantiles is not None:
        tau = jnp.concatenate([midpoints(NUM_FRACTIONS), jnp.array([0.25, 0.75])])
        Z = learner.quantiles_taken(learner.params, first, tau)  # (E, N + 2)
        found["calibration"] = calibration(Z[:, :-2], tau[:-2], G)
        found["spread_predicted"] = (Z[:, -1] - Z[:, -2]).mean() / scale
    return found


def _of_features(features: Float[Array, "B F"]) -> dict[str, Any]:
    return {"dormant": dormant_share(features), "effective_rank": effective_rank(features)}
