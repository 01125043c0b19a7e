"""The conditions of a run: its config, seeds and machine; what must be there again to go on, and what is told if it differs."""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from quantilax import devices, pytree, switches, train
from quantilax.agent import Agent, ConfigWarning
from quantilax.pytree import ConfigError
from quantilax.runs import checkpoints, configs, limits
from quantilax.runs.checkpoints import Checkpoint
from quantilax.runs.directory import versions
from quantilax.runs.errors import CheckpointError
from quantilax.runs.progress import RunProgress


def load_agent(path: Path, env: Any = None, eval_callback: Callable[..., PyTree] | None = None) -> Agent:
    """Build the agent of a run directory from its `config.yaml`.

    Args:
        path: the run's directory.
        env: the environment, where it is an object of your own; None: the one that the config names.
        eval_callback: that of the agent.

    Raises:
        ConfigError: a damaged config, or an environment or algorithm that is not known here.
    """
    section = configs.load_section(path / "config.yaml")
    with warnings.catch_warnings(category=ConfigWarning, action="ignore"):  # told when the run began
        return section.create(env, eval_callback)


def described(agent: Agent) -> dict[str, Any]:
    """Return algorithm, environment and every hyperparameter as a checkpoint keeps them."""
    config = {"algorithm": agent.algorithm.name, "env": agent.env.name, **pytree.to_dict(agent.config)}
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def check_config(checkpoint: Checkpoint, agent: Agent, seeds: list[int]) -> None:
    """Check that the run's config and seeds are the checkpoint's; only `total_timesteps` may differ, and be larger.

    A hyperparameter that came after the checkpoint stood at its default then.

    Raises:
        ConfigError: they are not.
        CheckpointError: the checkpoint says no `total_timesteps`.
    """
    run = checkpoint.path.parents[1]
    if checkpoint.facts.get("seeds") != seeds:
        raise ConfigError(
            f"{run / 'run.json'}: has seeds {seeds} and {checkpoint.path.stem} has {checkpoint.facts.get('seeds')}; put"
            " back the file as it was written"
        )
    kind = "jax_default_prng_impl"
    keys, ours = checkpoint.facts.get(kind), switches.facts()[kind]
    if keys not in (None, ours):
        raise ConfigError(
            f"{run}: its random keys are of the kind '{keys}' and here they are '{ours}'; set JAX_DEFAULT_PRNG_IMPL={keys}"
        )
    there, here = checkpoint.facts["config"], described(agent)
    is_whole = type(there.get("total_timesteps")) is int
    there = {**json.loads(json.dumps(pytree.defaults(agent.algorithm.config))), **there}
    names = [name for name in {**there, **here} if name != "total_timesteps" and there.get(name) != here.get(name)]
    if names:
        told = "; ".join(f"{name} is {there.get(name)} there, {here.get(name)} here" for name in names[:3])
        more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
        raise ConfigError(
            f"{run / 'config.yaml'}: is not the config of {checkpoint.path.stem}: {told}{more};"
            " put it back, or begin a new run with quantilax train"
        )
    if not is_whole:
        raise CheckpointError(f"{checkpoint.path}: its manifest has no whole number as total_timesteps")
    if here["total_timesteps"] < there["total_timesteps"]:
        raise ConfigError(
            f"{run / 'config.yaml'}: total_timesteps is {there['total_timesteps']} in {checkpoint.path.stem},"
            f" {here['total_timesteps']} here: a run can be extended, not shortened; put it back"
        )


def check_environment(checkpoint: Checkpoint, agent: Agent) -> None:
    """Check that an environment made by its name has the parameters that the checkpoint's had.

    Raises:
        ConfigError: it has others, so that it was an object of the user's own.
    """
    if checkpoint.facts.get("environment", here := environment(agent.env)) != here:
        raise ConfigError(
            f"{checkpoint.path.parents[1]}: was trained on '{agent.env.name}' with other parameters than it has by default;"
            " give the environment again, from Python: env=..."
        )


def environment(env: Any) -> str:
    """Return a digest of an environment's parameters: its physics, its time limit, whatever its fields hold."""
    digest = hashlib.sha256()
    for path, value in _parameters(env, ""):
        digest.update(f"{path}\0".encode() + value + b"\0")
    return digest.hexdigest()


NAMES = ("registered",)
"""Fields of environments that say what they are called; `env` of the config is compared besides."""


def _parameters(value: Any, path: str) -> Iterator[tuple[str, bytes]]:
    """Give what the fields of dataclasses come to; a number is the same as a Python number and as an array."""
    if dataclasses.is_dataclass(value):
        for field in (one for one in dataclasses.fields(value) if one.name not in NAMES):
            yield from _parameters(getattr(value, field.name), f"{path}/{field.name}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _parameters(part, f"{path}/{i}")
    elif isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        yield from _parameters(jax.random.key_data(value), path)
    elif isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        if np.issubdtype(array.dtype, np.floating):
            array = array.astype(np.float32)  # as a program has it
        array = array.astype(np.float64)
        yield path, str(array.shape).encode() + array.tobytes()
    elif value is None or isinstance(value, str):
        yield path, repr(value).encode()
    else:  # of an object that is no dataclass nothing but its class can be told
        yield path, type(value).__qualname__.encode()


def extended(agent: Agent, total_timesteps: int) -> Agent:
    """Return the agent of a longer run; raise `ConfigError` where it is none, or one with another warm-up."""
    config = agent.config
    if total_timesteps < config.total_timesteps:
        raise ConfigError(
            f"--total-timesteps: {total_timesteps} is less than the run's {config.total_timesteps}; give a larger number"
        )
    extended = agent.replace(total_timesteps=total_timesteps)
    if extended.config.warmup_steps != config.warmup_steps:
        raise ConfigError(
            f"--total-timesteps: the run ended within its warm-up of {extended.config.warmup_steps} steps and cannot be"
            " extended; begin a new one with quantilax train"
        )
    return extended


def machine(agent: Agent, num_seeds: int) -> dict[str, Any]:
    """Return what besides its config decides a run's numbers, down to the low bits."""
    return {
        "versions": versions(),
        "device": switches.devices()[0].device_kind,
        "devices": devices.layout(num_seeds).mesh.size,
        "cores": limits.cores(),
        "processor": processor(),
        "code": code(agent),
        **switches.facts(),
    }


def code(agent: Agent) -> str:
    """Return a digest of the source that computes a run: quantilax without what only handles runs, and files of the user's own.

    Of these it has those in which the algorithm's functions and the environment's class stand.
    """
    algorithm = agent.algorithm
    parts = (algorithm.config, algorithm.init, algorithm.update, algorithm.policy, type(agent.env))
    files = (getattr(sys.modules.get(part.__module__), "__file__", None) for part in parts)
    theirs = {Path(file) for file in files if file and PACKAGE not in Path(file).parents}
    ours = [file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] not in HANDLING]
    digest = hashlib.sha256()
    for file in (*sorted(ours), *sorted(theirs)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


PACKAGE = Path(__file__).parents[1]
HANDLING = ("__init__.py", "__main__.py", "runs", "studies", "cli", "statistics.py")
"""Parts of the package that compute nothing of a run."""


def processor() -> str:
    """Return the name of the processor, by whose instructions XLA compiles; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def tell_differences(checkpoint: Checkpoint, agent: Agent, progress: RunProgress) -> None:
    """Say what keeps a resumed run from the end of the uninterrupted one: another machine, another length."""
    for difference in _other_machine(checkpoint, agent):
        progress.warn(f"{difference}: the end will not be that of the uninterrupted run, bit for bit")
    if checkpoint.facts.get("environment", here := environment(agent.env)) != here:
        progress.warn("the environment has other parameters than that of the checkpoint, and the run goes on in it")
    before, now = checkpoint.facts["config"]["total_timesteps"], agent.config.total_timesteps
    if before != now:
        progress.say(
            f"extended from {before:,} to {now:,} steps: from step {checkpoint.facts['env_step']:,} on, epsilon and the"
            " learning rate are where a run of that length has them"
        )


def _other_machine(checkpoint: Checkpoint, agent: Agent) -> Iterator[str]:
    here = machine(agent, len(checkpoint.facts["seeds"]))
    for name in ("quantilax", "jax", "jaxlib", "flax", "optax", "gymnax"):
        there = checkpoints.versions(checkpoint.facts).get(name)
        if there != here["versions"][name]:
            yield f"the checkpoint was written with {name} {there}, this is {here['versions'][name]}"
    for name in ("device", "devices", "cores"):
        if checkpoint.facts.get(name) != here[name]:
            yield f"the checkpoint was written with {name} {checkpoint.facts.get(name)}, here it is {here[name]}"
    for name in switches.facts():
        if checkpoint.facts.get(name, here[name]) != here[name]:
            yield f"the checkpoint was written with {name} {checkpoint.facts[name]}, here it is {here[name]}"
    if checkpoint.facts.get("processor", here["processor"]) != here["processor"]:
        yield f"the checkpoint was written on {checkpoint.facts['processor']}, this is {here['processor']}"
    if checkpoint.facts.get("code", here["code"]) != here["code"]:
        yield "the checkpoint was written by other code: the source of quantilax or of the algorithm has changed"


def check_memory(agent: Agent, num_seeds: int) -> None:
    """Raise `ConfigError` where the state of all seeds is larger than the memory that this process may use (CPU only)."""
    needed = train.state_bytes(*agent.arguments())["total"] * num_seeds
    if switches.platform() != "cpu":
        return
    there = limits.memory()
    if needed > there:
        raise ConfigError(
            f"the state of {num_seeds} seed(s) takes {needed / 2**30:.1f} GiB and this process may use"
            f" {there / 2**30:.1f}; lower buffer_size or --seeds"
        )


def use_all_cores(num_seeds: int, elsewhere: bool = False, asked: bool = False) -> None:
    """Make JAX see a device per core, as far as there are seeds to fill them, so that seeds train side by side.

    For CPUs; to be called before anything else of JAX. Without effect where JAX has begun to compute, or where `XLA_FLAGS`
    say how many devices there are.

    Args:
        num_seeds: how many devices can be filled.
        elsewhere: they are for other machines, which may have more cores than there are here.
        asked: the user, or a run that was begun, wants that number: a quota of processor time does not lower it.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # JAX has begun to compute
        there = limits.scheduled_cores() if asked else limits.usable_cores()
        jax.config.update("jax_num_cpu_devices", num_seeds if elsewhere else min(there, num_seeds))


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache directory, so that a second start takes no compiling.

    There `CACHE_BYTES` bound them, or JAX itself where `JAX_COMPILATION_CACHE_MAX_SIZE` is set. `JAX_COMPILATION_CACHE_DIR`
    names another place, which is the user's to clear; a place that cannot be written to is left alone.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantilax" / "xla"
            cache.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # the latter where the user has no home
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
        if jax.config.jax_compilation_cache_max_size == -1:  # type: ignore[attr-defined]
            _make_room(cache, CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


CACHE_BYTES = 2**30
"""How much compiled programs may take when a command starts; a run's take about 1 MiB."""


def _make_room(cache: Path, most: int) -> None:
    """Delete the programs that were not used for the longest time, by the file system's notes, while all take more than `most`.

    JAX's own bound reads the whole directory for each program that it adds, and adds none where one lies that was kept
    without it.
    """
    found, total = [], 0
    with contextlib.suppress(OSError), os.scandir(cache) as entries:
        for entry in entries:
            if entry.name.endswith("-cache") and entry.is_file(follow_symlinks=False):
                status = entry.stat()
                found.append((max(status.st_atime, status.st_mtime), status.st_size, entry.path))
                total += status.st_size
    for _, size, path in sorted(found):
        if total <= most:
            break
        with contextlib.suppress(OSError):  # another process deleted it, or it is not ours to delete
            os.unlink(path)
        with contextlib.suppress(OSError):
            os.unlink(path.removesuffix("-cache") + "-atime")  # by which JAX's own bound would go
        total -= size
