"""Fit a classifier to the half of the settings that is not kept out, and count what it names in the other half.

python investigations/0023-diagnosis-elsewhere/fit.py

Everything that is chosen (penalty, threshold) is chosen by leaving one of the fitted settings out
at a time.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.optimize
from faults import FAULTS, SETTINGS, SINGLE

HERE = Path(__file__).parent
KEPT_OUT = {setting.name for setting in SETTINGS if setting.kept_out}
CAUSES = {fault.name: fault.causes for fault in FAULTS}
CLASSES = ["none", *dict.fromkeys(fault.causes[0] for fault in SINGLE)]
IS_SINGLE = {fault.name for fault in FAULTS if len(fault.causes) < 2}


class Scaled:
    """Features around the healthy median, in units of the healthy spread over all fitted settings."""

    def __init__(self, X: np.ndarray, healthy: np.ndarray) -> None:
        """Measure middle and spread in the healthy rows."""
        self.middle = np.nanmedian(X[healthy], axis=0)
        low, high = np.nanquantile(X[healthy], [0.05, 0.95], axis=0)
        self.unit = np.maximum(high - low, 0.1)
        self.used = np.isfinite(self.middle)

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Scale rows; what was not measured is in the middle, and far values count no further."""
        z = np.nan_to_num((X - self.middle) / self.unit)[:, self.used]
        return np.tanh(z / 4) * 4


def softmax(x: np.ndarray) -> np.ndarray:
    """Probabilities of the classes."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def fitted(Z: np.ndarray, y: np.ndarray, weight: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression with a penalty on the squares of the weights."""
    n, k = Z.shape[1], len(CLASSES)
    truth = np.eye(k)[y]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        W, b = flat[:-k].reshape(n, k), flat[-k:]
        p = softmax(Z @ W + b)
        error = weight[:, None] * (p - truth)
        value = -(weight * np.log(p[np.arange(len(y)), y] + 1e-12)).sum() + penalty / 2 * (W**2).sum()
        return value, np.concatenate([(Z.T @ error + penalty * W).ravel(), error.sum(axis=0)])

    found = scipy.optimize.minimize(loss, np.zeros(n * k + k), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return found.x[:-k].reshape(n, k), found.x[-k:]


def weights(table: pl.DataFrame, y: np.ndarray) -> np.ndarray:
    """Each setting counts the same, and in it each class; healthy runs count as much as five classes."""
    keys = list(zip(table["setting"], y.tolist(), strict=True))
    counts = {key: keys.count(key) for key in set(keys)}
    return np.array([(5.0 if key[1] == 0 else 1.0) / counts[key] for key in keys])


def learned(table: pl.DataFrame, X: np.ndarray, y: np.ndarray, rows: np.ndarray, penalty: float) -> Any:
    """Fit to some rows: a function from features to probabilities."""
    scaled = Scaled(X[rows], y[rows] == 0)
    W, b = fitted(scaled(X[rows]), y[rows], weights(table.filter(pl.Series(rows)), y[rows]), penalty)
    return lambda Z: softmax(scaled(Z) @ W + b)


def counts(p: np.ndarray, table: pl.DataFrame, threshold: float) -> dict[str, float]:
    """Shares of runs: right first, right among three, and named though healthy."""
    order = np.argsort(-p[:, 1:], axis=1) + 1
    named = p[:, 0] < threshold
    causes = [CAUSES[fault] for fault in table["fault"]]
    sick = np.array([len(c) > 0 for c in causes])
    single = np.array([len(c) == 1 for c in causes])
    first = np.array([named[i] and CLASSES[order[i, 0]] in c for i, c in enumerate(causes)])
    three = np.array(
        [named[i] and all(x in [CLASSES[j] for j in order[i, :3]] for x in c) for i, c in enumerate(causes)]
    )
    return {
        "first": first[single].mean() if single.any() else np.nan,
        "of three": three[single].mean() if single.any() else np.nan,
        "both of two": three[sick & ~single].mean() if (sick & ~single).any() else np.nan,
        "false alarms": named[~sick].mean(),
    }


def main() -> None:
    """Choose, fit, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=HERE / "features.parquet")
    asked = parser.parse_args()
    table = pl.read_parquet(asked.features)
    table = table.filter(pl.col("seed") < 100)  # larger ones set own ranges
    names = [name for name in table.columns[3:] if not name.startswith("curve:")]
    X = table.select(names).to_numpy().astype(float) / 1000
    y = np.array([CLASSES.index(CAUSES[f][0]) if CAUSES[f] else 0 for f in table["fault"]])
    usable = np.array([f in IS_SINGLE for f in table["fault"]])
    setting = table["setting"].to_numpy()
    fit = np.array([s not in KEPT_OUT for s in setting])
    for penalty in (0.01, 0.03, 0.1, 0.3, 1.0):
        p = np.zeros((len(y), len(CLASSES)))
        for left in sorted(set(setting[fit])):
            mine = fit & (setting == left)
            p[mine] = learned(table, X, y, fit & usable & (setting != left), penalty)(X[mine])
        healthy = fit & np.array([not CAUSES[f] for f in table["fault"]])
        threshold = float(np.quantile(p[healthy, 0], 0.05))
        print(
            f"penalty {penalty:g}, threshold {threshold:.2g}, left out:",
            counts(p[fit], table.filter(pl.Series(fit)), threshold),
        )
        for left in sorted(set(setting[fit])):
            mine = fit & (setting == left)
            print(
                "   ",
                left,
                {k: round(float(v), 2) for k, v in counts(p[mine], table.filter(pl.Series(mine)), threshold).items()},
            )


if __name__ == "__main__":
    main()
