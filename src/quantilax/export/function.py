"""The function that an exported file computes, with its inputs and outputs.

It is the policy of evaluation without chance: no random actions, and fractions at the midpoints of
equal strata, as `acting_tau_sampling: midpoints` has them.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from quantilax import arguments, envs, switches
from quantilax.agent import Agent
from quantilax.envs.stock import Stock
from quantilax.envs.wrappers import Encode, FrameStack, Wrapper
from quantilax.errors import ConfigError, did_you_mean
from quantilax.export import program
from quantilax.types import Box, Discrete, Environment, Observation, State


class Input(NamedTuple):
    """An input of the function."""

    shape: tuple[int | str, ...]
    dtype: Any
    meaning: str


@dataclass(frozen=True)
class Function:
    """What an exported file computes."""

    call: Callable[[dict[str, Array]], dict[str, Array]]
    inputs: dict[str, Input]
    outputs: dict[str, str]
    """What each output means."""

    @property
    def specification(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the inputs, with symbolic sizes."""
        names = ("batch", "taus")
        symbols: dict[Any, Any] = dict(zip(names, jax.export.symbolic_shape(", ".join(names)), strict=True))
        return {
            name: jax.ShapeDtypeStruct([symbols.get(size, size) for size in told.shape], told.dtype)
            for name, told in self.inputs.items()
        }

    @cached_property
    def program(self) -> program.Program:
        """The function in JAX's primitives; inputs and outputs are in alphabetical order."""
        with switches.standard():
            return program.flatten(jax.make_jaxpr(self.call)(self.specification))


OUTPUTS = ("action", "q", "quantiles")


def of_agent(algo: Agent, state: State, outputs: Collection[str] = OUTPUTS) -> Function:
    """Return the function of an agent and the state of one run.

    Args:
        algo, state: the agent, and the state.
        outputs: which of `OUTPUTS` the function has, as far as the agent has them. `action` is
            always included.

    Raises:
        ConfigError: the state is that of several runs, the policy remembers something, or there is
            no output of this name.
    """
    for name in outputs:
        if name not in OUTPUTS:
            raise ConfigError(f"outputs: unknown output '{name}'{did_you_mean(name, OUTPUTS, 'outputs')}")
    state = arguments.one_state(state)
    made = algo.algorithm.policy(algo.env, algo.config, state)
    if jax.tree.leaves(made.carry) or made.before is not None:
        raise ConfigError(
            f"{algo.algorithm.name}: its policy remembers something from step to step, and an exported file has no memory;"
            " use jax.export on a function of yours that passes it along"
        )
    function = _function(algo, state, outputs, hasattr(algo.config, "risk_eta"))
    if "risk" in function.inputs:
        action, risk = (sorted(x).index(name) for x, name in ((function.outputs, "action"), (function.inputs, "risk")))
        if not program.depends_on(function.program, action, risk):
            return _function(algo, state, outputs, False)
    return function


def _function(algo: Agent, state: State, wanted: Collection[str], risk: bool) -> Function:
    stock = algo.env if isinstance(algo.env, Stock) else None
    space, encode = _shown(algo.env if stock is None else stock.env)
    fields = {"eval_epsilon": 0.0, "acting_tau_sampling": "midpoints"}
    config: Any = replace(algo.config, **{k: v for k, v in fields.items() if hasattr(algo.config, k)})
    inputs = {"observation": Input(("batch", *space.shape), space.number, _observation(space))}
    outputs = {"action": action_of(algo.env)}
    if stock is not None:
        meaning = f"discounted rewards so far beyond a threshold, from {float(stock.low):g} to {float(stock.high):g}"
        inputs["stock"] = Input(("batch", stock.number), np.dtype("float32"), meaning)
    if envs.masks(algo.env):
        n = algo.env.action_space.n
        inputs["legal"] = Input(("batch", n), np.dtype(bool), "whether each action may be taken")
    if "q" in wanted and algo.algorithm.q is not None:
        outputs["q"] = "the values that the policy compares, or that of its action: discounted returns"
    if "quantiles" in wanted and _learns_quantiles(algo, config, state):
        outputs["quantiles"] = "the quantile of the discounted return at each of taus, of each action"
        inputs["taus"] = Input(("taus",), np.dtype("float32"), "fractions from 0 to 1")
    if risk:
        meaning = f"eta of the distortion {config.risk}; the run has {float(config.risk_eta):g}"
        if config.risk == "neutral":
            config, meaning = replace(config, risk="cvar"), "share of the worst outcomes that count; 1: the mean"
        inputs["risk"] = Input((), np.dtype("float32"), meaning)

    def call(given: dict[str, Array]) -> dict[str, Array]:
        of = replace(config, risk_eta=given["risk"]) if risk else config
        key = jax.random.key(0)

        def one(obs: Observation, legal: Any, c: Any) -> dict[str, Array]:
            obs, policy = encode(obs), algo.algorithm.policy(algo.env, of, state)
            obs = obs if stock is None else stock.shown(obs, c)
            found = {"action": policy.act(obs, policy.carry, key, legal)[0]}
            if "q" in outputs:
                found["q"] = algo.algorithm.q(of, state, obs, key)  # type: ignore[misc]
            if "quantiles" in outputs:
                found["quantiles"] = algo.algorithm.quantiles(of, state, obs, given["taus"])  # type: ignore[misc]
            return found

        return jax.vmap(one)(given["observation"], given.get("legal"), given.get("stock"))

    return Function(call, inputs, outputs)


def _shown(env: Environment) -> tuple[Box, Callable[[Observation], Observation]]:
    """Return the space of the file's observations, and what encodes them for the policy.

    The outermost wrappers that only change observations are part of the file, up to a stack of
    frames, which needs memory.
    """
    encoders = []
    while isinstance(env, Wrapper) and not isinstance(env, FrameStack):
        if isinstance(env, Encode):
            encoders.append(env.encode)
        env = env.env

    def encode(obs: Observation) -> Observation:
        for one in reversed(encoders):
            obs = one(obs)
        return obs

    return env.observation_space, encode


def _learns_quantiles(algo: Agent, config: Any, state: State) -> bool:
    if algo.algorithm.quantiles is None:
        return False
    space = algo.env.observation_space
    try:
        obs = jax.ShapeDtypeStruct(space.shape, space.number)
        jax.eval_shape(lambda x, tau: algo.algorithm.quantiles(config, state, x, tau), obs, jnp.zeros(1))  # type: ignore[misc]
    except ConfigError:  # the head learns a mean
        return False
    return True


def _observation(space: Box) -> str:
    frames = f", of {space.frames} frames along the last axis, the newest last" if space.frames > 1 else ""
    return f"as the environment shows it, from {_ends(space)}{frames}"


def action_of(env: Environment) -> str:
    """Return what an action of an environment is, in words."""
    space = env.action_space
    return f"a whole number from 0 to {space.n - 1}" if isinstance(space, Discrete) else f"numbers from {_ends(space)}"


def _ends(space: Box) -> str:
    """Return `low to high`, with one number for equal ones."""
    ends = (np.unique(np.asarray(bound, np.float64)) for bound in (space.low, space.high))
    ends = (np.where(np.abs(end) < 1e30, end, np.copysign(np.inf, end)) for end in ends)
    return " to ".join(f"{end[0]:g}" if end.size == 1 else f"{end[0]:g}..{end[-1]:g}" for end in ends)
