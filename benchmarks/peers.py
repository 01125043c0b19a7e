"""The peers that benchmarks compare with: packages from PyPI, each in an environment of its own."""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PEERS = {
    "rejax": ["rejax==0.1.3", "gymnax==0.0.9"],
    "sb3-contrib": ["sb3-contrib==2.9.2", "torch==2.13.0"],
    "sbx": ["sbx-rl==0.28.0", "sb3-contrib==2.9.2", "torch==2.13.0"],
    "tianshou": ["tianshou==2.0.1", "torch==2.13.0"],
    "minatar": ["MinAtar==1.0.15", "gymnax==1.0.1", "six>=1.16"],
}
"""What is installed for each. Dopamine is none of them: its IQN (4.1.2) has a convolutional network and settings for Atari
only, so there is nothing published to run on CartPole."""
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
"""What the processes of a benchmark see of this one's environment."""


def peer_python(peer: str) -> Path:
    """Return the interpreter of the peer's environment, made where it is not there yet."""
    home = ROOT / f".venv-{peer}"
    python = home / "bin" / "python"
    if not python.exists():
        print(f"making {home.name} ...", file=sys.stderr)
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[peer]], check=True)
    return python


def conformance(peer: str, side: Path, given: dict[str, Any], file: Path) -> None:
    """Run a peer's side of a comparison, write inputs and outputs, and print how much they changed.

    Args:
        peer, side: the environment, and the program that runs in it: side.py INPUTS OUTPUTS.
        given: arrays that both sides get.
        file: `.npz` file for the suite.
    """
    with tempfile.TemporaryDirectory() as directory:
        inputs, made = Path(directory) / "inputs.npz", Path(directory) / "outputs.npz"
        np.savez(inputs, **given)
        subprocess.run([peer_python(peer), side, inputs, made], check=True)
        outputs: dict[str, Any] = dict(np.load(made))
    if file.exists():
        before = dict(np.load(file))
        differences = [
            np.abs(before[name] - array).max()
            for name, array in outputs.items()
            if name in before and array.dtype.kind == "f"
        ]
        print(
            f"{len(differences)} of {len(outputs)} arrays were there; largest difference {max(differences, default=0):.3g}"
        )
    np.savez_compressed(file, **given, **outputs, versions=np.array(PEERS[peer]))
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes, {', '.join(PEERS[peer])}")
