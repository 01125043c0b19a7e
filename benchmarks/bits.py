"""Whether two checkouts train alike, to the last bit: every algorithm with its options, final states and curves.

    python -m benchmarks.bits --against HEAD~1            # the commit before, in a worktree of its own
    python -m benchmarks.bits --against main --only iqn   # variants whose name has `iqn` in it

Each variant is trained for a few hundred steps on CartPole-v1 in both checkouts. Compared are the arrays of the
final state, whatever their names, and those of the curve by name. The exit status is 1 where anything differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

SMALL: dict[str, Any] = dict(
    total_timesteps=300,
    eval_freq=100,
    eval_episodes=4,
    num_envs=4,
    torso_sizes=(16,),
    learning_rate_end=0.5,
)
REPLAY: dict[str, Any] = SMALL | dict(
    num_epochs=2, buffer_size=120, fill_buffer=60, batch_size=16, head_sizes=(8,), target_update_freq=8
)
BASE: dict[str, dict[str, Any]] = {
    "DQN": REPLAY,
    "C51": REPLAY | dict(num_atoms=11, v_min=-5.0, v_max=30.0),
    "QRDQN": REPLAY | dict(num_quantiles=5),
    "IQN": REPLAY | dict(num_tau_samples=4, num_tau_prime_samples=3, num_quantile_samples=5, num_cosines=8),
    "FQF": REPLAY | dict(num_fractions=4, num_cosines=8, fraction_learning_rate=1e-3),
    "PQN": SMALL | dict(num_steps=8, num_epochs=2, num_minibatches=2),
}
SHARED: dict[str, dict[str, Any]] = {
    "base": {},
    "signals": dict(signals=True),
    "no metrics": dict(metrics=False),
    "normalised observations": dict(normalize_observations=True),
    "normalised rewards": dict(normalize_rewards=True, reward_scale=0.5),
    "LayerNorm": dict(layer_norm=True),
    "bfloat16": dict(compute_dtype="bfloat16"),
    "averaged": dict(weight_averaging=0.9),
    "no bootstrap": dict(bootstrap_truncated=False),
    "clipped": dict(max_grad_norm=0.1, eval_epsilon=0.1),
}
OF_REPLAY: dict[str, dict[str, Any]] = {
    "double": dict(double=True),
    "dueling": dict(dueling=True),
    "noisy": dict(noisy=True),
    "prioritized": dict(prioritized=True),
    "3 steps": dict(n_step=3),
    "repeats": dict(exploration_repeats=4),
    "soft target": dict(target_update_freq=1, polyak=0.9),
    "rainbow": dict(double=True, dueling=True, noisy=True, prioritized=True, n_step=2, signals=True),
}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "DQN": {"munchausen": dict(munchausen=True, signals=True)},
    "QRDQN": {"non-crossing": dict(non_crossing=True)},
    "IQN": {
        "munchausen": dict(munchausen=True, signals=True),
        "shared tau": dict(share_tau=True, tau_sampling="stratified", acting_tau_sampling="midpoints"),
        **{
            f"risk {name}": dict(risk=name, risk_eta=eta) for name, eta in (("cvar", 0.5), ("wang", -0.5), ("cpw", 0.7))
        },
    },
    "FQF": {"even targets": dict(weigh_targets=False, fraction_entropy=0.0)},
    "PQN": {
        "munchausen": dict(munchausen=True, signals=True),
        **{
            f"{head}{more}": dict(head=head, num_atoms=11, v_min=-5.0, v_max=30.0, num_quantiles=5, signals=bool(more))
            for head in ("quantile", "implicit_quantile", "categorical")
            for more in ("", " signals")
        },
    },
}


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (algorithm, settings)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for algorithm, base in BASE.items():
        options = {**SHARED, **(OF_REPLAY if base.items() >= REPLAY.items() else {}), **OWN.get(algorithm, {})}
        found |= {f"{algorithm.lower()} {name}": (algorithm, {**base, **more}) for name, more in options.items()}
    return found


def train(only: str) -> dict[str, dict[str, Any]]:
    """Train the variants with the quantilax that this process imports: digests of states and curves."""
    import warnings

    import jax
    import numpy as np

    import quantilax

    warnings.simplefilter("ignore")

    def digest(leaf: Any) -> str:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"

    found = {}
    for name, (algorithm, settings) in variants().items():
        if only not in name:
            continue
        state, record = getattr(quantilax, algorithm).create(env="CartPole-v1", **settings).records(jax.random.key(3))
        curve = {jax.tree_util.keystr(path): digest(x) for path, x in jax.tree_util.tree_leaves_with_path(record)}
        found[name] = {"state": sorted(map(digest, jax.tree.leaves(state))), "curve": curve}
        print(f"{name}: trained", file=sys.stderr, flush=True)
        jax.clear_caches()
    return found


def trained_in(checkout: Path, only: str) -> dict[str, dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, str(Path(__file__).resolve()), "--emit", "--only", only]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Lines on what differs of one variant."""
    before, after = Counter(there["state"]), Counter(here["state"])
    lines = [f"state: {leaf} is gone" for leaf in (before - after)] + [
        f"state: {leaf} is new" for leaf in (after - before)
    ]
    names = sorted({*there["curve"], *here["curve"]})
    return lines + [f"curve: {name}" for name in names if there["curve"].get(name) != here["curve"].get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", default="HEAD", help="a commit; the working tree is compared with it")
    parser.add_argument("--only", default="", help="a part of the variants' names")
    parser.add_argument("--emit", action="store_true", help="print the digests of the quantilax that is imported")
    arguments = parser.parse_args()
    if arguments.emit:
        print(json.dumps(train(arguments.only)))
        return
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "before"
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(other), arguments.against], check=True
        )
        try:
            there, here = trained_in(other, arguments.only), trained_in(ROOT, arguments.only)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(other)], check=True)
    unlike = 0
    for name in there:
        lines = differences(there[name], here[name])
        unlike += bool(lines)
        for line in lines:
            print(f"{name}: {line}")
    print(f"{len(there) - unlike} of {len(there)} variants are the same to the last bit")
    sys.exit(1 if unlike else 0)


if __name__ == "__main__":
    main()
