"""Every section of every shipped config is read, makes an agent without a warning, and says what it claims."""

from pathlib import Path

import pytest
import yaml

from quantilax.algorithms import IQN
from quantilax.runs import load_section

CONFIGS = Path(__file__).parents[2] / "configs"
SECTIONS = [(file, name) for file in sorted(CONFIGS.rglob("*.yaml")) for name in yaml.safe_load(file.read_text())]


@pytest.mark.parametrize(("file", "name"), SECTIONS, ids=lambda x: getattr(x, "stem", x))
def test_a_shipped_section_makes_an_agent_without_a_warning(file, name):
    algo = load_section(file, name).create()
    assert algo.evaluation_steps[-1] == algo.config.total_timesteps


def test_iqn_research_holds_the_published_values():
    config = load_section(CONFIGS / "gymnax" / "cartpole.yaml", "iqn_research").create().config
    # What the paper gives per agent step or for Atari, and the section therefore translates; its comments say how.
    translated = {
        "total_timesteps", "eval_freq", "num_envs", "num_epochs", "target_update_freq", "exploration_fraction",
        "torso", "torso_sizes",
    }  # fmt: skip
    for name, published in IQN.PAPER.items():
        if name not in translated:
            assert getattr(config, name) == published, name
    assert config.num_epochs / config.num_envs == IQN.PAPER["num_epochs"]
    derived = config.derived()
    assert config.target_update_freq / derived["updates_per_env_step"] == 10_000
    assert derived["epsilon_end_at_env_step"] == 1_000_000
