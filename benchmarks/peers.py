"""The peers that benchmarks compare with: packages from PyPI, each in an environment of its own."""

import os
import subprocess
import sys
import venv
from pathlib import Path

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
