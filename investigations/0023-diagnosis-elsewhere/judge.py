"""Print what `diagnose`, as it is, names in each run of `run.py`; a star marks what lint alone names.

python investigations/0023-diagnosis-elsewhere/judge.py --data runs/diagnosis-elsewhere
"""

import argparse
import warnings
from pathlib import Path

import polars as pl
from faults import FAULTS, SETTINGS, agent

from quantilax import pytree
from quantilax.checks.diagnosis import Diagnosis, diagnose
from quantilax.checks.ranges import ranges


def shown(one: Diagnosis) -> str:
    """Outcome and causes of a seed."""
    causes = (cause.cause + ("" if cause.evidence else "*") for cause in one.causes)
    return f"{one.outcome.word}: {', '.join(causes) or '-'}"


def main() -> None:
    """Print a line per setting and fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/diagnosis-elsewhere"))
    asked = parser.parse_args()
    for setting in SETTINGS:
        for fault in FAULTS:
            files = sorted((asked.data / setting.name).glob(f"{fault.name.replace('/', 'over')}-[0-9]*-[0-9]*.parquet"))
            if not files:
                continue
            made = agent(setting, fault, 1.0)
            with warnings.catch_warnings(action="ignore"):
                found = diagnose(
                    pl.concat(map(pl.read_parquet, files)), pytree.to_dict(made.config), list(ranges(made))
                )
            print(f"{setting.name}, {fault.name}: {' | '.join(map(shown, found))}")


if __name__ == "__main__":
    main()
