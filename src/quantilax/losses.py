"""The equations, each for one example; callers map over batches with `jax.vmap`.

| symbol | name | meaning |
|---|---|---|
| tau, tau' | `tau` | fractions of the online and of the target network, in [0, 1] |
| Z_tau | `z` | estimated quantiles of the return at `tau` |
| delta | `delta` | TD errors, target minus estimate |
| kappa | `kappa` | where the Huber loss turns from a parabola into a line |
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def huber(u: Float[Array, "*shape"], kappa: Float[Array, ""] | float = 1.0) -> Float[Array, "*shape"]:
    """Huber loss: `u^2 / 2` if `|u| <= kappa`, else `kappa (|u| - kappa / 2)`.

    Source: Huber (1964). Example: `huber(3.0, 1.0) == 2.5`.
    """
    magnitude = jnp.abs(u)
    quadratic = jnp.minimum(magnitude, kappa)
    return quadratic * (magnitude - 0.5 * quadratic)


def quantile_huber(
    delta: Float[Array, "*shape"], tau: Float[Array, "*#shape"], kappa: Float[Array, ""] | float = 1.0
) -> Float[Array, "*shape"]:
    """Quantile Huber loss `rho^kappa_tau(delta) = |tau - 1{delta < 0}| huber_kappa(delta) / kappa`.

    Args:
        delta: TD errors, target minus estimate.
        tau: the fraction of each estimate, broadcast against `delta`.
        kappa: > 0. Some libraries omit the division by kappa; they agree only at kappa = 1.

    Source: Dabney et al. (2018), https://arxiv.org/abs/1806.06923, section 2.3.
    """
    return jnp.abs(tau - (delta < 0)) * huber(delta, kappa) / kappa


def quantile_regression(
    z: Float[Array, "N"],
    tau: Float[Array, "N"],
    targets: Float[Array, "N_prime"],
    kappa: Float[Array, ""] | float = 1.0,
    weights: Float[Array, "N_prime"] | None = None,
) -> Float[Array, ""]:
    """IQN's loss for one transition: `1/N' sum_i sum_j rho^kappa_{tau_i}(targets_j - z_i)`.

    As in the paper, this is the SUM over the N estimated quantiles and the MEAN over the N'
    targets. If the targets have `weights`, which sum to 1, the mean is weighted by them. No
    gradient is stopped here: pass targets through `jax.lax.stop_gradient`.

    Source: Dabney et al. (2018), https://arxiv.org/abs/1806.06923, algorithm 1.
    """
    delta = targets[None, :] - z[:, None]  # (N, N')
    rho = quantile_huber(delta, tau[:, None], kappa)
    return (rho.mean(axis=1) if weights is None else rho @ weights).sum(axis=0)


def fraction_proposal(
    tau: Float[Array, "N+1"], Z_tau: Float[Array, "N-1"], Z_hat: Float[Array, "N"]
) -> Float[Array, ""]:
    """FQF's loss of the fractions `0 = tau_0, ..., tau_N = 1`: the W1 distance to N steps.

        dW1/dtau_i = 2 Z(tau_i) - Z((tau_i + tau_{i+1}) / 2) - Z((tau_{i-1} + tau_i) / 2)

    for i = 1, ..., N - 1. W1 is the distance between a quantile function and its approximation by N
    steps. Its value needs an integral, but its gradient does not. So this is the first-order change
    of W1 when fractions move: its value is 0, and its gradient is that of W1. Z receives no
    gradient.

    Args:
        tau: the fractions.
        Z_tau: quantiles at tau_1, ..., tau_{N-1}.
        Z_hat: quantiles at the N centres between fractions.

    Source: Yang et al. (2019), https://arxiv.org/abs/1911.02140, proposition 1.
    """
    gradient = jax.lax.stop_gradient(2 * Z_tau - Z_hat[1:] - Z_hat[:-1])
    inner = tau[1:-1]
    return jnp.sum(gradient * (inner - jax.lax.stop_gradient(inner)))


def entropy(log_p: Float[Array, "N"]) -> Float[Array, ""]:
    """`-sum_i p_i ln p_i`, in nats; ln N if all probabilities are equal."""
    return -jnp.sum(jnp.exp(log_p) * log_p)


def scaled_log_softmax(q: Float[Array, "A"], temperature: Float[Array, ""] | float) -> Float[Array, "A"]:
    """`t ln pi` with `pi = softmax(q / t)`.

    For small t it is close to `q - max q`, and computed without loss of precision.

    Args:
        q: values of the actions.
        temperature: t > 0, in units of `q`.

    Source: Vieillard, Pietquin & Geist (2020), https://arxiv.org/abs/2007.14430, appendix B.1.
    """
    advantage = q - jax.lax.stop_gradient(q.max())
    return advantage - temperature * jax.nn.logsumexp(advantage / temperature)


class SoftPolicy(NamedTuple):
    """`pi = softmax(q / t)` over the actions that can be taken."""

    t_log_pi: Float[Array, "A"]
    """`t ln pi`; 0 for actions that cannot be taken."""
    pi: Float[Array, "A"]


def soft_policy(q: Float[Array, "A"], temperature: Float[Array, ""] | float, masked: bool = True) -> SoftPolicy:
    """The softmax policy of q.

    Args:
        q: values; -inf for actions that cannot be taken.
        temperature: t > 0.
        masked: whether there may be such actions. If false, the code for them is left out of the
            program.
    """
    t_log_pi = scaled_log_softmax(q, temperature)
    return SoftPolicy(jnp.where(q > -jnp.inf, t_log_pi, 0.0) if masked else t_log_pi, jnp.exp(t_log_pi / temperature))


def support(v_min: Float[Array, ""] | float, v_max: Float[Array, ""] | float, n: int) -> Float[Array, "n"]:
    """n equally spaced atoms from v_min to v_max."""
    return v_min + (v_max - v_min) * jnp.linspace(0, 1, n)


def without_largest(z: Float[Array, "N"], m: int) -> Float[Array, "N-m"]:
    """z without its m largest numbers, in the order of z.

    The indices of the m largest are found, and the r-th kept number is read from r plus the number
    of those before it. On a CPU this is faster than sorting z, if m is small.
    """
    largest = jax.lax.top_k(z, m)[1]
    # How many kept numbers come before each dropped one.
    before = largest - (largest[:, None] > largest[None, :]).sum(axis=1)
    r = jnp.arange(z.shape[0] - m)
    return z[r + (before[None, :] <= r[:, None]).sum(axis=1)]


def categorical_projection(
    atoms: Float[Array, "M"], probabilities: Float[Array, "M"], support: Float[Array, "n"]
) -> Float[Array, "n"]:
    """Project a distribution onto an equally spaced support.

    Each atom's mass goes to its two neighbours in the support, more of it to the nearer one. Let b
    be the atom's distance from v_min in steps of the support. Then the i-th point of the support
    gets the share `max(0, 1 - |b - i|)`. The two shares add up to 1 for any support. b is measured
    from the nearest point of the support, because `(atom - v_min) / step` accumulates rounding
    errors.

    Args:
        atoms: where the mass lies; mass outside of the support goes to its nearer end.
        probabilities: of the atoms.
        support: v_min, ..., v_max, ascending, at least two points.

    Source: Bellemare, Dabney & Munos (2017), https://arxiv.org/abs/1707.06887, equation 7.
    """
    n = support.shape[0]
    step = (support[-1] - support[0]) / (n - 1)
    atoms = jnp.clip(atoms, support[0], support[-1])
    nearest = jnp.round((atoms - support[0]) / step).astype(int)
    beyond = (atoms - support[nearest]) / step  # b = nearest + beyond
    share = jnp.maximum(0, 1 - jnp.abs(nearest - jnp.arange(n)[:, None] + beyond))  # (n, M)
    return jnp.matmul(share, probabilities, precision="highest")  # a GPU's default rounds the shares to 10 bits


def kl_divergence(p: Float[Array, "n"], log_q: Float[Array, "n"]) -> Float[Array, ""]:
    """`KL(p || q) = sum_i p_i ln(p_i / q_i)`, in nats: never negative, and exactly 0 if p = q.

    It is computed as the sum of `p ln(p / q) - p + q`, which is the same because p and q each add
    up to 1. No term of this sum is negative, and near p = q each is of second order in p - q, so
    rounding does not show. In `sum_i p_i (ln p_i - ln q_i)` the terms are of first order, and
    rounding shows.

    Args:
        p: probabilities; may be 0.
        log_q: logarithms of probabilities.
    """
    q = jnp.exp(log_q)
    is_near = jnp.abs(p - q) < 0.5 * q
    of_ratio = jnp.log1p(jnp.where(is_near, (p - q) / jnp.where(is_near, q, 1), 0))
    of_logs = jnp.log(jnp.where(p > 0, p, 1)) - log_q
    return jnp.maximum(0, p * jnp.where(is_near, of_ratio, of_logs) - (p - q)).sum()


def lambda_returns(
    reward: Float[Array, "T"],
    discount: Float[Array, "T"],
    value: Float[Array, "T"],
    trace: Float[Array, "T"],
) -> Float[Array, "T"]:
    """Lambda-returns, with `G_T = value_{T-1}`.

        G_t = r_t + discount_t [(1 - trace_t) value_t + trace_t G_{t+1}]

    Args:
        reward: r_t, the reward for the action at x_t.
        discount: gamma (1 - terminated_t).
        value: v(x_{t+1}), the value of the TRUE successor of step t, not of x_t or of an
            observation after a reset.
        trace: lambda; 0 at the last step of an episode, because step t + 1 belongs to another one.

    Source: Sutton (1988); for Q-learning Gallici et al. (2024), https://arxiv.org/abs/2407.04811,
    section 3.
    """
    return _backward(lambda g, r, d, v, p: r + d * ((1 - p) * v + p * g), value[-1], reward, discount, value, trace)


def _backward(mix: Callable[..., Array], last: Array, *steps: Array) -> Array:
    """`G_t = mix(G_{t+1}, *steps at t)`, from the last step to the first; `last` is G_T."""

    def backward(g: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        g = mix(g, *step)
        return g, g

    return jax.lax.scan(backward, last, steps, reverse=True)[1]


def munchausen_lambda_returns(
    reward: Float[Array, "T"],
    discount: Float[Array, "T"],
    q_next: Float[Array, "T A"],
    q_before: Float[Array, "T A"],
    action: Int[Array, "T"],
    trace: Float[Array, "T"],
    temperature: Float[Array, ""] | float,
    alpha: Float[Array, ""] | float,
    l0: Float[Array, ""] | float,
    masked: bool = True,
) -> Float[Array, "T"]:
    """Lambda-returns of `pi = softmax(q / t)`, whose log-probability is added to the reward.

        b_t = t ln pi(a_t|x_t)
        v_t = sum_a pi(a|x_{t+1}) (q_next_t(a) - t ln pi(a|x_{t+1}))
        G_t = r_t + alpha [b_t]_{l0}^0
              + discount_t [(1 - trace_t) v_t + trace_t (G_{t+1} - b_{t+1})]

    After the last step, v_{T-1} takes the place of the bracket. With a trace of 0 this is the
    target of M-DQN.

    Args:
        reward, discount, trace: as for `lambda_returns`.
        q_next, q_before: values at x_{t+1}, the true successor, and at x_t, of the network before
            the update; -inf for actions that cannot be taken.
        action: a_t.
        temperature, alpha, l0: t > 0, alpha in [0, 1], l0 <= 0.
        masked: as for `soft_policy`.

    Source: Vieillard, Pietquin & Geist (2020), https://arxiv.org/abs/2007.14430, equation 1, with
    the lambda-returns of Gallici et al. (2024), https://arxiv.org/abs/2407.04811.
    """
    t_log_pi_next, pi = jax.vmap(lambda q: soft_policy(q, temperature, masked))(q_next)
    v = (pi * ((jnp.where(pi > 0, q_next, 0.0) if masked else q_next) - t_log_pi_next)).sum(axis=-1)
    t_log_pi = jax.vmap(scaled_log_softmax, in_axes=(0, None))(q_before, temperature)
    t_log_pi = jnp.take_along_axis(t_log_pi, action[:, None], axis=-1)[:, 0]
    bonus = alpha * jnp.clip(t_log_pi, l0, 0)
    following = jnp.append(-t_log_pi[1:], 0.0)  # after the last step comes v, which includes its entropy
    return lambda_returns(reward + bonus + discount * trace * following, discount, v, trace)


def lambda_return_draws(
    reward: Float[Array, "T"],
    discount: Float[Array, "T"],
    draws: Float[Array, "T n"],
    trace: Float[Array, "T"],
    u: Float[Array, "T n"],
) -> Float[Array, "T n"]:
    """n draws from the distribution of each step's lambda-return; each column is its own chain.

        G_t = r_t + discount_t (G_{t+1} with probability trace_t, else Z(x_{t+1}))

    The distribution is the mixture of the n-step returns with weights
    `(1 - lambda) lambda^(n - 1)`. Its mean is that of `lambda_returns`. Averaging the quantiles
    with these weights, fraction by fraction, also keeps the mean but gives a different
    distribution, which is too narrow.

    Args:
        reward, discount, trace: as for `lambda_returns`.
        draws: from Z(x_{t+1}), the distribution of the return from the TRUE successor of step t.
        u: uniform on [0, 1], independent.

    Source: Nam, Kim & Park (2021), https://arxiv.org/abs/2105.11366: SR(lambda).
    """
    return _backward(
        lambda g, r, d, z, p, u: r + d * jnp.where(u < p, g, z), draws[-1], reward, discount, draws, trace, u
    )


def categorical_lambda_returns(
    reward: Float[Array, "T"],
    discount: Float[Array, "T"],
    probabilities: Float[Array, "T M"],
    trace: Float[Array, "T"],
    support: Float[Array, "M"],
) -> Float[Array, "T M"]:
    """The mixture of `lambda_return_draws` as probabilities of atoms.

        p_t = Phi(r_t + discount_t z; (1 - trace_t) p(x_{t+1}) + trace_t p_{t+1})

    Nothing is drawn. Each step projects, so mass spreads to neighbouring atoms at most T times.

    Args:
        reward, discount, trace: as for `lambda_returns`.
        probabilities: of the atoms, at the TRUE successor of step t.
        support: the atoms z, equally spaced.
    """

    def mix(G: Array, r: Array, d: Array, p_next: Array, lambda_: Array) -> Array:
        return categorical_projection(r + d * support, (1 - lambda_) * p_next + lambda_ * G, support)

    return _backward(mix, probabilities[-1], reward, discount, probabilities, trace)
