"""What is trained: shipped sections, and the faults that are put into them, one or two at a time."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from quantilax import Agent, pytree
from quantilax.envs.wrappers import Wrapper
from quantilax.networks import torsos
from quantilax.runs import load_section
from quantilax.types import Algorithm

CONFIGS = Path(__file__).parents[2] / "configs"
SHARE = 0.2
"""Share of the budget that is trained, as a user sees it early."""
ROWS = 50
"""Evaluations in a whole budget; a fifth of them is trained."""


class Setting(NamedTuple):
    """A section in which faults are tried."""

    file: str
    section: str
    kept_out: bool
    """Whether it took no part in choosing rules, ranges or weights."""
    without: tuple[str, ...] = ()
    """Faults that cost too much here."""

    @property
    def name(self) -> str:
        """FILE-SECTION."""
        return f"{Path(self.file).stem}-{self.section}"


SETTINGS = (
    Setting("gymnax/cartpole.yaml", "qrdqn", kept_out=False),
    Setting("gymnax/cartpole.yaml", "c51", kept_out=True),
    Setting("gymnax/pendulum.yaml", "sac", kept_out=False),
    Setting("gymnax/pendulum.yaml", "tqc", kept_out=True),
    Setting("gymnax/cartpole.yaml", "dqn", kept_out=True),
    Setting("gymnax/cartpole.yaml", "iqn", kept_out=False),
    Setting("gymnax/cartpole.yaml", "pqn", kept_out=False),
    Setting("gymnax/acrobot.yaml", "iqn", kept_out=False),
    Setting("gymnax/cartpole.yaml", "fqf", kept_out=True),
    Setting("gymnax/breakout.yaml", "pqn_categorical", kept_out=False, without=("batch 4",)),
    Setting("gymnax/mountain_car.yaml", "iqn", kept_out=True),
    Setting("gymnasium/lunar_lander.yaml", "iqn", kept_out=True),
    Setting("gymnax/asterix.yaml", "dqn", kept_out=True),
)
"""The half that is kept out was chosen before anything was trained."""


class Fault(NamedTuple):
    """What is wrong, or nothing."""

    name: str
    causes: tuple[str, ...]
    """What a diagnosis should name: FIELD or KIND, with + for too large or fast, - for too small."""
    change: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda c: {}
    """(whole config) -> other values; None if the section has no such thing."""
    altered: dict[str, float] = {}  # noqa: RUF012
    """Of the environment; see `Altered`."""
    bug: str | None = None
    """Of the algorithm: `dead`, `frozen` or `shuffled`."""


def times(field: str, factor: float) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Multiply a field, if the section has it and it is finite."""

    def change(c: dict[str, Any]) -> dict[str, Any] | None:
        value = c.get(field)
        if value is None or not 0 < value < float("inf"):
            return None
        return {field: int(value * factor) if isinstance(value, int) else value * factor}

    return change


def to(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Give fields other values, if the section has them."""
    return lambda c: values if values.keys() <= c.keys() else None


def batch(size: int) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Learn from so many transitions at a time."""

    def change(c: dict[str, Any]) -> dict[str, Any] | None:
        if "batch_size" in c:
            return {"batch_size": size}
        return {"num_minibatches": c["num_envs"] * c["num_steps"] // size} if size > 1 else None

    return change


def kappa(factor: float) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Multiply kappa where the loss has it: cross-entropy and the squared error do not."""
    without = ("categorical", "hl_gauss", "mean by squared error")
    return lambda c: times("kappa", factor)(c) if c["head"] not in without else None


def explore(**by_field: Any) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Set what the section explores by: epsilon, noise or entropy."""

    def change(c: dict[str, Any]) -> dict[str, Any] | None:
        mine = {name: value for name, value in by_field.items() if name in c}
        return mine or None

    return change


def both(
    *changes: Callable[[dict[str, Any]], dict[str, Any] | None],
) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Make several changes, if the section has all of them."""

    def change(c: dict[str, Any]) -> dict[str, Any] | None:
        made = [one(c) for one in changes]
        return None if None in made else {k: v for one in made for k, v in one.items()}

    return change


NONE = explore(eps_start=0.0, eps_end=0.0, target_entropy=-10.0, exploration_noise=0.0)
FOR_EVER = explore(eps_start=1.0, eps_end=1.0, target_entropy=0.6, exploration_noise=2.0)

HEALTHY = (
    Fault("base", ()),
    Fault("learning rate / 2", (), times("learning_rate", 0.5)),
    Fault(
        "batch x2",
        (),
        lambda c: {"batch_size": 2 * c["batch_size"]} if "batch_size" in c else times("num_minibatches", 0.5)(c),
    ),
    Fault("rewards x1.5", (), altered={"reward_factor": 1.5}),
    Fault("Adam eps / 3", (), times("adam_eps", 1 / 3)),
)
"""Settings with which nothing is wrong."""

SINGLE = (
    Fault("learning rate x3", ("learning_rate+",), times("learning_rate", 3)),
    Fault("learning rate x10", ("learning_rate+",), times("learning_rate", 10)),
    Fault("learning rate x30", ("learning_rate+",), times("learning_rate", 30)),
    Fault("learning rate x100", ("learning_rate+",), times("learning_rate", 100)),
    Fault("learning rate / 100", ("learning_rate-",), times("learning_rate", 0.01)),
    Fault("target never moved", ("target-",), to(polyak=1.0)),
    Fault("target moved each step", ("target+",), to(polyak=0.0, target_update_freq=1)),
    Fault("batch 1", ("noise",), batch(1)),
    Fault("batch 4", ("noise",), batch(4)),
    Fault("no exploration", ("exploration-",), NONE),
    Fault("exploration for ever", ("exploration+",), FOR_EVER),
    Fault("tiny buffer", ("buffer",), lambda c: {"buffer_size": 2 * c["batch_size"]} if "batch_size" in c else None),
    Fault("kappa x100", ("kappa+",), kappa(100)),
    Fault("kappa / 1000", ("kappa-",), kappa(0.001)),
    Fault("Adam eps 1", ("adam_eps",), to(adam_eps=1.0)),
    Fault("Adam eps 1e-12", ("adam_eps",), to(adam_eps=1e-12)),
    Fault("rewards x10", ("reward_scale+",), altered={"reward_factor": 10.0}),
    Fault("rewards x100", ("reward_scale+",), altered={"reward_factor": 100.0}),
    Fault("rewards / 100", ("reward_scale-",), altered={"reward_factor": 0.01}),
    Fault("clipping to nothing", ("clipping",), to(max_grad_norm=1e-5)),
    Fault("time limit as death", ("time_limit",), altered={"limit_is_death": 1.0}),
    Fault("gamma 0.5", ("gamma-",), to(gamma=0.5)),
    Fault("gamma 0.9999", ("gamma+",), to(gamma=0.9999)),
    Fault("dead units", ("dead_units",), bug="dead"),
    Fault("frozen torso", ("frozen",), bug="frozen"),
    Fault("shuffled actions", ("actions",), bug="shuffled"),
    Fault("noise in observations", ("observations",), altered={"noise": 1.0}),
)
"""One fault each."""

DOUBLE = (
    Fault(
        "learning rate x30, kappa / 1000", ("learning_rate+", "kappa-"), both(times("learning_rate", 30), kappa(0.001))
    ),
    Fault("batch 4, no exploration", ("noise", "exploration-"), both(batch(4), NONE)),
    Fault("Adam eps 1, rewards x100", ("adam_eps", "reward_scale+"), to(adam_eps=1.0), {"reward_factor": 100.0}),
    Fault("target never moved, gamma 0.5", ("target-", "gamma-"), to(polyak=1.0, gamma=0.5)),
    Fault("clipping, time limit as death", ("clipping", "time_limit"), to(max_grad_norm=1e-5), {"limit_is_death": 1.0}),
    Fault(
        "learning rate x10, noise in observations",
        ("learning_rate+", "observations"),
        times("learning_rate", 10),
        {"noise": 1.0},
    ),
)
"""Two at once."""

FAULTS = (*HEALTHY, *SINGLE, *DOUBLE)


@pytree.dataclass
class Altered(Wrapper):
    """Other rewards, a time limit told as an end, and noise in observations."""

    scale: Any = 1.0
    """Standard deviation of each number of an observation under random actions."""
    reward_factor: float = pytree.field(1.0, "factor of each reward")
    limit_is_death: float = pytree.field(0.0, "1: what is cut off is called terminated")
    noise: float = pytree.field(0.0, "noise in units of `scale`; of bits, ten times the share that is flipped")

    def noisy(self, key: Array, obs: Array) -> Array:
        """An observation with noise."""
        if obs.dtype == bool:
            return obs ^ jax.random.bernoulli(key, self.noise / 10, obs.shape)
        return obs + self.noise * self.scale * jax.random.normal(key, obs.shape)

    def reset(self, key: Array) -> Any:
        """Begin an episode."""
        state, obs, *others = self.env.reset(key)
        return state, self.noisy(key, obs), *others

    def step(self, key: Array, state: Any, action: Any) -> Any:
        """Take one step."""
        state, told = self.env.step(key, state, action)
        dies = told.truncated & (jnp.asarray(self.limit_is_death) > 0)
        raw = told.reward if told.raw_reward is None else told.raw_reward
        return state, told._replace(
            obs=self.noisy(key, told.obs),
            reward=self.reward_factor * told.reward,
            raw_reward=raw,
            terminated=told.terminated | dies,
            truncated=told.truncated & ~dies,
        )


def shipped(setting: Setting) -> Agent:
    """The agent of a shipped section."""
    return load_section(CONFIGS / setting.file, setting.section).create()


def agent(setting: Setting, fault: Fault, deviation: Float[Array, "..."] | float) -> Agent | None:
    """The agent with the fault; None if the section cannot have it, or if it costs too much."""
    base = shipped(setting)
    c = {"head": HEADS.get(base.algorithm.name), **pytree.to_dict(base.config)}
    if base.config.squared_error and c["head"] == "scalar":
        c["head"] = "mean by squared error"
    change = fault.change(c)
    if change is None or fault.name in setting.without:
        return None
    eval_freq = max(1, c["total_timesteps"] // ROWS)
    eval_freq = max(1, eval_freq // base.config.steps_per_iteration) * base.config.steps_per_iteration
    with warnings.catch_warnings(action="ignore"):  # some are meant to mislead
        made = base.replace(signals=True, eval_freq=eval_freq, **change)
    env = Altered(env=made.env, scale=deviation, **fault.altered)
    return replace(made, env=env, algorithm=BUGS[fault.bug](made.algorithm) if fault.bug in BUGS else made.algorithm)


HEADS = {"iqn": "implicit_quantile", "dqn": "scalar", "c51": "categorical", "qrdqn": "quantile", "fqf": "proposed"}


def dead(algorithm: Algorithm) -> Algorithm:
    """Nine of ten units of the torso begin, and so stay, below zero."""

    def kill(params: Any) -> Any:
        found = jax.tree_util.tree_leaves_with_path(params)
        biases = [
            jax.tree_util.keystr(p) for p, _ in found if "['psi']" in (k := jax.tree_util.keystr(p)) and "['bias']" in k
        ]
        last = {}
        for key in biases:  # the last norm, or else the last layer, of each torso
            torso = key.split("['psi']")[0]
            rank = ("['norms']" in key, key)
            last[torso] = max(last.get(torso, ((False, ""), ""))[0], rank), key
        chosen = {rank[1] for rank, _ in last.values()}

        def shifted(path: Any, x: Array) -> Array:
            if jax.tree_util.keystr(path) not in chosen:
                return x
            return jnp.where(jnp.arange(x.shape[-1]) % 10 > 0, -20.0, x)

        return jax.tree_util.tree_map_with_path(shifted, params)

    def init(env: Any, config: Any, key: Array) -> Any:
        state = algorithm.init(env, config, key)
        names = [
            name for name in ("params", "target_params", "average_params") if getattr(state, name, None) is not None
        ]
        return replace(state, **{name: kill(getattr(state, name)) for name in names})

    return algorithm._replace(init=init)


def shuffled(algorithm: Algorithm) -> Algorithm:
    """What is stored has the actions of other environments."""

    def observe(config: Any, state: Any, transitions: Any, key: Array) -> Any:
        action = jax.random.permutation(key, transitions.action, axis=1)
        return algorithm.observe(config, state, transitions._replace(action=action), key)

    return algorithm._replace(observe=observe)


BUGS: dict[str | None, Callable[[Algorithm], Algorithm]] = {"dead": dead, "shuffled": shuffled}


@contextmanager
def frozen(on: bool) -> Iterator[None]:
    """While a program is traced: no gradient reaches the weights of torsos."""
    kinds = (torsos.MLP, torsos.Simba, torsos.CNN)
    originals = [kind.__call__ for kind in kinds]

    def without(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, obs: Any) -> Any:
            graph, state = nnx.split(self)
            return original(nnx.merge(graph, jax.lax.stop_gradient(state)), obs)

        return call

    try:
        for kind, original in zip(kinds, originals, strict=True):
            if on:
                kind.__call__ = without(original)
        yield
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind.__call__ = original
