"""What a run depends on: its config, seeds, environment and machine.

To continue, a run needs the same config, seeds and environment. It warns if the machine differs.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantilax import devices, envs, pytree, switches
from quantilax.agent import Agent
from quantilax.errors import CheckpointError, ConfigError
from quantilax.host import limits
from quantilax.runs import checkpoints
from quantilax.runs.checkpoints import Checkpoint
from quantilax.runs.progress import RunProgress
from quantilax.runs.provenance import versions


def described(agent: Agent) -> dict[str, Any]:
    """Return algorithm, environment and all hyperparameters as a checkpoint stores them."""
    fields = {**envs.fields_of(agent.env), "env": agent.env.name}
    config = {"algorithm": agent.algorithm.name, **fields, **pytree.to_dict(agent.config)}
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def check_config(checkpoint: Checkpoint, agent: Agent, seeds: list[int]) -> None:
    """Check that config and seeds match the checkpoint's; `total_timesteps` may only be larger.

    A hyperparameter that is newer than the checkpoint had its default value then.

    Raises:
        ConfigError: they do not match.
        CheckpointError: the checkpoint has no valid `total_timesteps`.
    """
    run = checkpoint.path.parents[1]
    if checkpoint.facts.get("seeds") != seeds:
        raise ConfigError(
            f"{run / 'run.json'}: has seeds {seeds} and {checkpoint.path.stem} has {checkpoint.facts.get('seeds')};"
            " restore the original file"
        )
    kind = "jax_default_prng_impl"
    keys, ours = checkpoint.facts.get(kind), switches.facts()[kind]
    if keys not in (None, ours):
        raise ConfigError(
            f"{run}: its random keys are of kind '{keys}', but here they are of kind '{ours}'; set JAX_DEFAULT_PRNG_IMPL={keys}"
        )
    there, here = checkpoint.facts["config"], described(agent)
    is_whole = type(there.get("total_timesteps")) is int
    there = {**json.loads(json.dumps(pytree.defaults(agent.algorithm.config))), **there}
    names = [name for name in {**there, **here} if name != "total_timesteps" and there.get(name) != here.get(name)]
    if names:
        told = "; ".join(f"{name} is {there.get(name)} there, {here.get(name)} here" for name in names[:3])
        more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
        raise ConfigError(
            f"{run / 'config.yaml'}: does not match {checkpoint.path.stem}: {told}{more};"
            " restore it, or start a new run with quantilax train"
        )
    if not is_whole:
        raise CheckpointError(f"{checkpoint.path}: its manifest has no whole number as total_timesteps")
    if here["total_timesteps"] < there["total_timesteps"]:
        raise ConfigError(
            f"{run / 'config.yaml'}: total_timesteps is {there['total_timesteps']} in {checkpoint.path.stem},"
            f" {here['total_timesteps']} here: a run can be extended, not shortened; restore the old value"
        )


def check_environment(checkpoint: Checkpoint, agent: Agent) -> None:
    """Check that an environment made from its name has the checkpoint's parameters.

    Raises:
        ConfigError: they differ, because the run was trained on an object of the user's own.
    """
    if checkpoint.facts.get("environment", here := environment(agent.env)) != here:
        raise ConfigError(
            f"{checkpoint.path.parents[1]}: was trained on '{agent.env.name}' with other parameters than its defaults; pass"
            " that environment again from Python, as env=..."
        )


def environment(env: Any) -> str:
    """Return a digest of an environment's fields, such as its physics and time limit."""
    digest = hashlib.sha256()
    for path, value in _parameters(env, ""):
        digest.update(f"{path}\0".encode() + value + b"\0")
    return digest.hexdigest()


NAMES = ("registered",)
"""Fields that hold an environment's name; the config's `env` is compared separately."""


def _parameters(value: Any, path: str) -> Iterator[tuple[str, bytes]]:
    """Yield the values of fields and attributes; Python numbers and arrays count the same."""
    if isinstance(value, envs.Identity):  # a plain object of the user's
        yield path, type(value.value).__qualname__.encode()
        yield from _parameters(getattr(value.value, "__dict__", {}), path)
    elif dataclasses.is_dataclass(value):
        for field in (one for one in dataclasses.fields(value) if one.name not in NAMES):
            yield from _parameters(getattr(value, field.name), f"{path}/{field.name}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _parameters(part, f"{path}/{i}")
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            yield from _parameters(value[name], f"{path}/{name}")
    elif isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        yield from _parameters(jax.random.key_data(value), path)
    elif isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        if np.issubdtype(array.dtype, np.floating):
            array = array.astype(np.float32)  # the precision within a program
        array = array.astype(np.float64)
        yield path, str(array.shape).encode() + array.tobytes()
    elif value is None or isinstance(value, str):
        yield path, repr(value).encode()
    else:  # an object that is not a dataclass is identified by its class alone
        yield path, type(value).__qualname__.encode()


def machine(agent: Agent, num_seeds: int) -> dict[str, Any]:
    """Return what decides a run's results besides its config, down to the low bits."""
    return {
        "versions": {**versions(), **envs.versions(agent.env)},
        "device": switches.devices()[0].device_kind,
        "devices": devices.layout(num_seeds).mesh.size,
        "cores": limits.cores(),
        "processor": limits.processor(),
        "code": code(agent),
        **switches.facts(),
    }


def code(agent: Agent) -> str:
    """Return a digest of the source that computes a run.

    It covers quantilax, without the parts that only handle runs (`HANDLING`), and the user's files
    that define the algorithm's functions and the environment's class.
    """
    algorithm, env = agent.algorithm, agent.env
    of_env = type(env.env.value if isinstance(env, envs.Opaque) else env)
    modules = {getattr(part, "__module__", None) for part in (*algorithm, of_env)}
    files = (getattr(sys.modules.get(name), "__file__", None) for name in modules if name)
    theirs = {Path(file) for file in files if file and PACKAGE not in Path(file).parents}
    ours = [file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] not in HANDLING]
    digest = hashlib.sha256()
    for file in (*sorted(ours), *sorted(theirs)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


PACKAGE = Path(__file__).parents[1]
HANDLING = (
    "__init__.py",
    "__main__.py",
    "host",
    "runs",
    "studies",
    "reports",
    "checks",
    "returns",
    "export",
    "cli",
    "errors.py",
    "statistics.py",
)
"""Parts of the package that do not affect a run's results."""


def tell_differences(checkpoint: Checkpoint, agent: Agent, progress: RunProgress) -> None:
    """Report what makes a resumed run differ from an uninterrupted one, such as another machine."""
    for difference in _other_machine(checkpoint, agent):
        progress.warn(f"{difference}: the results will not match an uninterrupted run bit for bit")
    if checkpoint.facts.get("environment", here := environment(agent.env)) != here:
        progress.warn("the environment's parameters differ from the checkpoint's; the run continues with the new ones")
    before, now = checkpoint.facts["config"]["total_timesteps"], agent.config.total_timesteps
    if before != now:
        progress.say(
            f"extended from {before:,} to {now:,} steps: from step {checkpoint.facts['env_step']:,} on, epsilon and the"
            " learning rate follow the schedules of a run of that length"
        )


def _other_machine(checkpoint: Checkpoint, agent: Agent) -> Iterator[str]:
    here = machine(agent, len(checkpoint.facts["seeds"]))
    for name, version in here["versions"].items():
        there = checkpoints.versions(checkpoint.facts).get(name)
        if there != version and name != "numpy":
            yield f"the checkpoint was written with {name} {there}, this is {version}"
    for name in ("device", "devices", "cores"):
        if checkpoint.facts.get(name) != here[name]:
            yield f"the checkpoint was written with {name} {checkpoint.facts.get(name)}, here it is {here[name]}"
    for name in switches.facts():
        if checkpoint.facts.get(name, here[name]) != here[name]:
            yield f"the checkpoint was written with {name} {checkpoint.facts[name]}, here it is {here[name]}"
    if checkpoint.facts.get("processor", here["processor"]) != here["processor"]:
        yield f"the checkpoint was written on {checkpoint.facts['processor']}, this is {here['processor']}"
    if checkpoint.facts.get("code", here["code"]) != here["code"]:
        yield "the checkpoint was written by different code: the source of quantilax or of the algorithm has changed"
