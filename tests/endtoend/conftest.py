"""The command line from outside: real processes where it pays, `main` in this process for the rest."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from tests.endtoend.processes import Ended, Server, ended, process

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

Call = Callable[..., Ended]


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below `root`: files with their bytes, directories with None."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


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
    """Run every process once; all but one are forked."""
    root, cache = tmp_path_factory.mktemp("session"), tmp_path_factory.mktemp("cache")
    (root / "tiny.yaml").write_text(TINY)
    (root / "tiny_pqn.yaml").write_text(TINY_PQN)
    seeds = ("--seeds", "2")
    with closing(Server(tmp_path_factory.mktemp("server"), cache)) as server:
        pqn = server.begin(root, "train", "-q", "tiny_pqn.yaml", "layer_norm=false", "--seed", "7", "--out", "pqn")
        iqn = process(root, cache, "train", "tiny.yaml", "iqn", *seeds, "learning_rate=1e-3", "--out", "iqn")
        misspelt = server.run(root, "train", "tiny.yaml", "iqn", "learning_rat=1e-3", "--out", "misspelt")
        pqn = pqn.wait()
        compiled, before = programs(cache), tree(root)
        lives = [
            server.begin(root, "train", *arguments)
            for arguments in (
                ("iqn/config.yaml", *seeds, "--out", "again"),
                ("tiny.yaml", *seeds, "--quiet", "learning_rate=1e30", "--out", "diverging"),
                ("tiny.yaml", *seeds, "--out", "iqn"),
            )
        ]
        again, diverging, into_iqn = (life.wait() for life in lives)
    return Session(root, cache, iqn, pqn, compiled, again, diverging, into_iqn, misspelt, before, tree(root))


def programs(cache: Path) -> set[str]:
    """Names of the compiled programs in a cache; jax notes the time of each use in a file beside it."""
    return {p.name for p in (cache / "quantilax" / "xla").glob("*-cache")}
