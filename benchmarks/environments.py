"""Compare gymnax's MinAtar with the original, step by step: what docs/guides/environments.md says of the two.

python -m benchmarks.environments

Both run in an environment of their own (`environments_minatar.py`). Exit status 1: they differ in more than that page tells.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import ENVIRONMENT, PEERS, peer_python

SIDE = Path(__file__).with_name("environments_minatar.py")
STEPS = 3_000
KNOWN = {"Seaquest": {"last observation"}}
"""What may differ in a game."""


def main() -> int:
    """Print a row per game; return the exit status."""
    print(f"{', '.join(PEERS['minatar'])}; {STEPS:,} steps of each game\n")
    print(
        "| game | reward in all | episodes | reward differs | end differs | observation differs | last observation differs |"
    )
    print("|---|---|---|---|---|---|---|")
    status = 0
    with subprocess.Popen(
        [peer_python("minatar"), SIDE, str(STEPS)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as side:
        assert side.stdout is not None
        for line in side.stdout:
            told: dict[str, Any] = json.loads(line)
            if "free rows" in told:
                free, nothing, gone = told.values()
                print(
                    f"Asterix, {free} of 8 rows free: nothing appears in {nothing:.1%}, an entity vanishes in {gone:.1%}"
                )
                continue
            differs = told["differs"]
            columns = [differs.get(what, 0) for what in ("reward", "end", "observation", "last observation")]
            print(f"| {' | '.join(str(x) for x in (told['game'], told['reward'], told['episodes'], *columns))} |")
            if set(differs) - KNOWN.get(told["game"], set()):
                status = 1
    return max(status, side.returncode)


if __name__ == "__main__":
    sys.exit(main())
