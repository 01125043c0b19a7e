"""Export trained policies to files that run without quantilax: ONNX, and StableHLO.

Both formats have the same inputs and outputs by name; docs/guides/deploy.md lists them.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from quantilax import arguments, switches
from quantilax.agent import Agent
from quantilax.errors import ConfigError, reason
from quantilax.export import function
from quantilax.host import files, paths
from quantilax.runs import loading
from quantilax.runs.directory import RunDirectory
from quantilax.types import State

PLATFORMS = ("cpu", "cuda", "tpu")
"""Where an exported StableHLO program runs."""


def to_onnx(algo: Agent, state: State, outputs: Collection[str] = function.OUTPUTS, **facts: Any) -> bytes:
    """Return the policy of a state as an ONNX model.

    Args:
        algo, state: an agent, and the state of one run.
        outputs: which of `action`, `q` and `quantiles` the file computes. `action` is always
            included.
        facts: more entries of the file's metadata, beside algorithm, environment and version.

    Raises:
        ConfigError: onnx is not installed, the policy has memory, it uses a primitive of JAX for
            which there is no operator, or there is no output of this name.
    """
    _need("onnx")
    from quantilax.export import graph

    made = function.of_agent(algo, state, outputs)
    inputs = {name: made.inputs[name].meaning for name in sorted(made.inputs)}
    outputs = {name: made.outputs[name] for name in sorted(made.outputs)}
    model = graph.model(made.program, inputs, outputs, _facts(algo, state) | {k: str(v) for k, v in facts.items()})
    return bytes(model.SerializeToString(deterministic=True))


@switches.standard()
def to_stablehlo(algo: Agent, state: State, outputs: Collection[str] = function.OUTPUTS) -> bytes:
    """Return the policy of a state as StableHLO, as `jax.export` serialises it.

    `jax.export.deserialize(bytearray(data)).call(inputs)` runs it on a CPU, a GPU or a TPU.

    Args:
        algo, state, outputs: as for `to_onnx`.

    Raises:
        ConfigError: flatbuffers is not installed, the policy has memory, or there is no output of
            this name.
    """
    _need("flatbuffers")
    made = function.of_agent(algo, state, outputs)
    frames = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # no paths of this machine in the file
    try:
        exported = jax.export.export(jax.jit(made.call), platforms=PLATFORMS)(made.specification)
    finally:
        jax.config.update("jax_traceback_in_locations_limit", frames)
    return bytes(exported.serialize())


WRITERS = {".onnx": to_onnx, ".stablehlo": to_stablehlo}


def export(
    run: Path | str,
    out: Path | str = "policy.onnx",
    *,
    outputs: Collection[str] = function.OUTPUTS,
    checkpoint: str | int = "last",
    seed: int | None = None,
    env: Any = None,
) -> Path:
    """Write the policy that a run learned to a file, and return its path.

    Args:
        run: the run's directory.
        out: the file, which must not exist. It ends with `.onnx` or with `.stablehlo`.
        outputs: as for `to_onnx`.
        checkpoint, seed, env: as for `quantilax.load`.

    Raises:
        ConfigError, CheckpointError: as for `quantilax.load`; or the file exists, cannot be written
            or has another suffix; or as for `to_onnx` and `to_stablehlo`.
    """
    path = paths.check(out)
    if path.suffix not in WRITERS:
        raise ConfigError(f"--out: {path}: expected a name that ends with .onnx or .stablehlo")
    if os.path.lexists(path):
        raise ConfigError(f"--out: {path} exists, and nothing is overwritten; choose another name")
    if not path.parent.is_dir():
        raise ConfigError(f"--out: {path.parent} is no directory; choose another name")
    algo, state, _ = loading.load(run, checkpoint, seed=seed, env=env)
    if path.suffix == ".onnx":
        facts = RunDirectory.open(Path(run)).facts
        chosen = facts["seeds"][0] if seed is None else seed
        data = to_onnx(algo, state, outputs, seed=chosen, commit=facts["starts"][-1].get("commit") or "unknown")
    else:
        data = to_stablehlo(algo, state, outputs)
    try:
        files.write_whole(path, data)
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be written: {reason(error)}; choose another name") from None
    return path


def _facts(algo: Agent, state: State) -> dict[str, str]:
    state = arguments.one_state(state)
    told: dict[str, Any] = {
        "version": importlib.metadata.version("quantilax"),
        "algorithm": algo.algorithm.name,
        "head": getattr(algo.config, "head", ""),
        "environment": algo.env.name,
        "gamma": getattr(algo.config, "gamma", ""),
        "env_steps": int(state.env_steps),
        "action": function.action_of(algo.env),
    }
    return {name: str(fact) for name, fact in told.items() if fact != ""}


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{package} is not installed; pip install 'quantilax[export]'")
