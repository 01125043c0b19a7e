"""The command line from outside: real processes where it pays, `main` in this process for the rest."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

TINY = """\
iqn:
  env: probe/corridor
  total_timesteps: 300
  eval_freq: 100
  eval_episodes: 4
  num_envs: 4
  num_epochs: 1
  buffer_size: 1000
  fill_buffer: 40
  batch_size: 16
  torso_sizes: [8]
  head_sizes: [8]
  num_cosines: 4
  num_tau_samples: 2
  num_tau_prime_samples: 2
  num_quantile_samples: 2
"""

TINY_DQN = TINY.replace("iqn:", "dqn:").split("  num_cosines")[0]
"""For tests that train often and to which the head does not matter."""

TINY_PQN = """\
pqn:
  env: probe/corridor
  total_timesteps: 256
  eval_freq: 128
  eval_episodes: 4
  num_envs: 4
  num_steps: 16
  num_epochs: 1
  num_minibatches: 2
  torso_sizes: [8]
"""


class Ended(NamedTuple):
    """The outcome of a command."""

    arguments: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """Lines on standard error; matplotlib may say, once per machine, that it builds its font cache."""
        return [line for line in self.stderr.splitlines() if not line.startswith("Matplotlib is building")]


OF_TINY_CONFIGS = (
    "each row of the curve is a mean over",
    "a weight can move about",
    ": the target is slow: ",
    "the schedule has no effect",
)
"""What is said of every config that trains as little as those above."""


def heard(stderr: str) -> str:
    """Leave out the warnings that every config as tiny as those above gets."""
    lines = stderr.splitlines(keepends=True)
    return "".join(
        line for line in lines if not (line.startswith("warning: ") and any(x in line for x in OF_TINY_CONFIGS))
    )


def ended(arguments: tuple[str, ...], status: int, stdout: str, stderr: str) -> Ended:
    """Make an `Ended`."""
    return Ended(arguments, status, stdout, heard(stderr))


Call = Callable[..., Ended]


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below `root`: files with their bytes, directories with None."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def process(cwd: Path, cache: Path, *arguments: str) -> Ended:
    """Run the command line as a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "quantilax.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    return ended(arguments, done.returncode, done.stdout, done.stderr)


@pytest.fixture
def call(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Call]:
    """Run `main` in this process, in `tmp_path`, where `tiny.yaml` and `tiny_pqn.yaml` lie; the cache is elsewhere."""
    from quantilax import cli

    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "tiny_pqn.yaml").write_text(TINY_PQN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["quantilax", *arguments])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return ended(arguments, status, out, err)

    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield run
    for name, value in before.items():
        jax.config.update(name, value)


class Session(NamedTuple):
    """The processes that all tests share, and the directory that they ran in."""

    root: Path
    cache: Path
    iqn: Ended
    """Two seeds, into `iqn/`."""
    pqn: Ended
    """Seed 7 alone, quietly and without LayerNorm, into `pqn/`; the section is not named."""
    compiled: set[str]
    """Names of the cached programs after these two."""
    again: Ended
    """`iqn/config.yaml`, with the same seeds, into `again/`."""
    diverging: Ended
    """As `iqn`, quietly, with a learning rate beyond all reason, into `diverging/`."""
    into_iqn: Ended
    """Refused: `iqn/` holds a run."""
    misspelt: Ended
    """Refused: an unknown field."""
    before: dict[str, bytes | None]
    """Everything on disk before the refusals and the two runs beside them."""
    after: dict[str, bytes | None]


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Run every process once, two at a time."""
    root, cache = tmp_path_factory.mktemp("session"), tmp_path_factory.mktemp("cache")
    (root / "tiny.yaml").write_text(TINY)
    (root / "tiny_pqn.yaml").write_text(TINY_PQN)
    seeds = ("--seeds", "2")

    with ThreadPoolExecutor(2) as pool:

        def start(*arguments: str) -> Future[Ended]:
            return pool.submit(process, root, cache, *arguments)

        iqn = start("train", "tiny.yaml", "iqn", *seeds, "learning_rate=1e-3", "--out", "iqn")
        pqn = start("train", "-q", "tiny_pqn.yaml", "layer_norm=false", "--seed", "7", "--out", "pqn")
        misspelt = start("train", "tiny.yaml", "iqn", "learning_rat=1e-3", "--out", "misspelt")
        iqn, pqn = iqn.result(), pqn.result()
        compiled, before = programs(cache), tree(root)
        again = start("train", "iqn/config.yaml", *seeds, "--out", "again")
        diverging = start("train", "tiny.yaml", *seeds, "--quiet", "learning_rate=1e30", "--out", "diverging")
        into_iqn = start("train", "tiny.yaml", *seeds, "--out", "iqn")
    return Session(
        root,
        cache,
        iqn,
        pqn,
        compiled,
        again.result(),
        diverging.result(),
        into_iqn.result(),
        misspelt.result(),
        before,
        tree(root),
    )


def programs(cache: Path) -> set[str]:
    """Names of the compiled programs in a cache; jax notes the time of each use in a file beside it."""
    return {p.name for p in (cache / "quantilax" / "xla").glob("*-cache")}
