"""Read configs from YAML: one file per environment, with a section per algorithm or variant.

iqn:
  env: CartPole-v1
  learning_rate: 1e-3
iqn_research:
  algorithm: iqn          # default: the section's name
  env: CartPole-v1
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from quantilax import agent, algorithms, envs, pytree
from quantilax.errors import ConfigError, did_you_mean
from quantilax.host import strict_yaml
from quantilax.types import Algorithm

NAMING = ("algorithm", *envs.FIELDS)
"""Fields of a section that are not hyperparameters."""


class Section(NamedTuple):
    """A section of a config file with overrides applied."""

    name: str
    where: str
    """File and section, for error messages."""
    algorithm: Algorithm
    env: str
    hyperparameters: dict[str, Any]
    env_args: Mapping[str, Any] = {}
    """Arguments with which the environment is made."""
    wrappers: Sequence[Any] = ()
    """Wrappers around it, the innermost first."""

    @property
    def environment(self) -> dict[str, Any]:
        """The fields that say which environment to make, without those that are empty."""
        given = {"env": self.env, "env_args": dict(self.env_args), "wrappers": list(self.wrappers)}
        return {name: value for name, value in given.items() if value}

    def create(self, env: Any = None, eval_callback: Callable[..., PyTree] | None = None) -> agent.Agent:
        """Build the agent; see `quantilax.agent.create`.

        Args:
            env: an environment object; None: the environment that the section names.
            eval_callback: the agent's callback at evaluations.
        """
        fields = self.environment if env is None else {"env": env}
        return agent.create(
            self.algorithm,
            hyperparameters=self.hyperparameters,
            where=self.where,
            eval_callback=eval_callback,
            **fields,
        )


def load_section(path: str | Path, name: str | None = None, overrides: Mapping[str, Any] | None = None) -> Section:
    """Read a section of a YAML file, and apply the overrides.

    Args:
        path: the file, or the name of a config that comes with quantilax, such as
            `gymnax/cartpole`.
        name: the section; None: the only one in the file.
        overrides: values by field; `env` and `algorithm` may be among them.

    Raises:
        ConfigError: the file, the section or a field is wrong; the message says how to fix it.
    """
    path = Path(path)
    return select(read_yaml(find(path)), path, name, overrides)


def shipped() -> dict[str, Path]:
    """Return the files of the configs that come with quantilax, by name: `gymnax/cartpole`."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    root = inside if inside.is_dir() else package.parents[1] / "configs"  # in a checkout they are beside `src`
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in sorted(root.rglob("*.yaml"))}


def find(path: Path) -> Path:
    """Return the file of a config.

    If the path does not exist, it is taken as the name of a config that comes with quantilax.
    """
    there = {} if os.path.exists(path) else shipped()
    return there.get(path.as_posix().removesuffix(".yaml"), path)


def select(
    sections: Mapping[str, Any], path: Path, name: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Section:
    """Select a section from the content of a file; see `load_section`."""
    if name is None:
        if len(sections) > 1:
            raise ConfigError(f"{path}: has several sections; name one of {', '.join(sections)}")
        name = next(iter(sections))
    if name not in sections:
        raise ConfigError(f"{path}: no section '{name}'{did_you_mean(name, sections, 'sections')}")
    where, section = f"{path}: {name}", sections[name]
    if not isinstance(section, dict):
        raise ConfigError(f"{where}: expected fields such as 'env: CartPole-v1', got {section!r}")
    return _section(name, where, {"algorithm": name, **section}, overrides or {}, "command line")


def with_overrides(section: Section, overrides: Mapping[str, Any], origin: str) -> Section:
    """Apply overrides to a section.

    Args:
        section: the section.
        overrides: values by field; `algorithm` and `NAMING` may be among them.
        origin: where the overrides come from, for error messages.
    """
    there = {"algorithm": section.algorithm.name, **section.environment, **section.hyperparameters}
    return _section(section.name, section.where, there, overrides, origin)


def _section(name: str, where: str, fields: Mapping[str, Any], overrides: Mapping[str, Any], origin: str) -> Section:
    named = {k: v for k, v in overrides.items() if k in NAMING}
    if named.get("env", fields.get("env")) != fields.get("env"):  # another environment takes other arguments
        fields = {k: v for k, v in fields.items() if k != "env_args"}
    merged = {**fields, **named}
    for key in ("algorithm", "env"):
        if key not in merged:
            raise ConfigError(f"{where}: missing field '{key}'; add a line such as 'env: CartPole-v1'")
        if not isinstance(merged[key], str):
            own = "; name a class of your own as module:Class" if key == "env" else ""
            raise ConfigError(f"{where}: {key}: expected a name, got {merged[key]!r}{own}")
    try:
        algorithm = algorithms.get(merged["algorithm"])
    except ConfigError as error:
        raise ConfigError(
            f"{where}: {error}; if the section has another name than its algorithm, add a line such as 'algorithm: iqn'"
        ) from None
    hyperparameters = {
        **pytree.convert(algorithm.config, _without(fields), where),
        **pytree.convert(algorithm.config, _without(overrides), origin),
    }
    return Section(name, where, algorithm, merged["env"], hyperparameters, *_of_environment(merged, where))


def _of_environment(fields: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], Sequence[Any]]:
    """Return `env_args` and `wrappers` of a section."""
    arguments, wrappers = fields.get("env_args") or {}, fields.get("wrappers") or ()
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ConfigError(
            f"{where}: env_args: expected names with values, such as {{gravity: -5.0}}, got {arguments!r}"
        )
    if isinstance(wrappers, str) or not isinstance(wrappers, Sequence):
        raise ConfigError(f"{where}: wrappers: expected a list such as [flatten], got {wrappers!r}")
    return arguments, wrappers


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Turn `key=value` arguments into a dictionary; the values are read as YAML.

    Raises:
        ConfigError: an argument has no `=`, a key is given twice, or a value is not YAML.
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"command line: expected field=value, got '{argument}'; for example learning_rate=1e-3")
        if key in overrides:
            raise ConfigError(f"command line: {key} is given twice; leave one out")
        try:
            overrides[key] = strict_yaml.parse(value)
        except strict_yaml.BrokenError as error:
            raise ConfigError(f"command line: {key}: cannot read '{value}' as a YAML value: {error}") from None
    return overrides


def read_yaml(
    path: Path, holds: str = "sections; expected lines such as 'iqn:' with fields indented below"
) -> dict[str, Any]:
    """Read a YAML file that maps names to values; no name may occur twice.

    Args:
        path: the file.
        holds: what the file should hold, for error messages.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; quantilax configs lists those that come with quantilax") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; expected YAML in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:  # a null byte
        raise ConfigError(f"{str(path)!r}: is not a file name") from None
    sections = parse_yaml(text, path)
    if not isinstance(sections, dict) or not sections:
        raise ConfigError(f"{path}: contains no {holds}")
    return sections


def parse_yaml(text: str, path: Path) -> Any:
    """Parse a file's text by `quantilax.host.strict_yaml`.

    Raises:
        ConfigError: the text is not valid YAML.
    """
    try:
        return strict_yaml.parse(text)
    except strict_yaml.BrokenError as error:
        line = "" if error.line is None else f", line {error.line}"
        raise ConfigError(f"{path}{line}: broken YAML: {error}") from None


def _without(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if k not in NAMING}


def section_of(fields: Mapping[str, Any], name: str, where: str) -> Section:
    """Return the section whose resolved fields are given, as studies store them."""
    return _section(name, where, fields, {}, where)
