"""Train held-out seeds of shipped sections with signals, and write the ranges of their figures into the bands.

python investigations/0025-own-ranges/run.py --out runs/own-ranges

Seeds 7000 to 7019 were used for nothing else. A study that is there is not run again.
"""

import argparse
from pathlib import Path

from quantilax.checks import bands
from quantilax.studies import definition, start

CONFIGS = Path(__file__).parents[2] / "configs"
SECTIONS = (
    *(("gymnax/cartpole.yaml", name) for name in ("iqn", "pqn", "qrdqn", "c51", "dqn", "fqf", "rainbow")),
    ("gymnax/pendulum.yaml", "sac"),
    ("gymnax/pendulum.yaml", "tqc"),
    ("gymnax/pendulum.yaml", "td3"),
    ("gymnax/acrobot.yaml", "iqn"),
    ("gymnax/mountain_car.yaml", "iqn"),
)


def main() -> None:
    """Make what is missing, and write every band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own-ranges"))
    parser.add_argument("--sections", nargs="*", help="only these, as FILE-SECTION")
    asked = parser.parse_args()
    made = []
    for file, section in SECTIONS:
        config = CONFIGS / file
        name = f"{config.stem}-{section}"
        if asked.sections and name not in asked.sections:
            continue
        base = {"config": str(config), "section": section, "overrides": {"signals": True}}
        study = definition.make({"base": base, "seeds": 20, "first_seed": 7000}, name)
        store = start.run(study, asked.out / name, resume=(asked.out / name).exists(), quiet=True)
        made.append((config, section, bands.of_store(store, "base")))
        print(f"{name}: {store.status}", flush=True)
    for config, section, band in made:  # at the end: until then the checkout has no changes
        bands.write(config, section, band)


if __name__ == "__main__":
    main()
