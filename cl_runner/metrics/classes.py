"""How well given labels are told apart, beside accuracy: numbers of a whole test set, not means over its examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: name -> what it is, of the classes c that the test set has; a prediction that is no label is wrong, and no class.
CLASS_SCORES: dict[str, str] = {
    "macro_f1": "mean_c 2 TP_c / (2 TP_c + FP_c + FN_c)",
    "balanced_accuracy": "mean_c TP_c / (TP_c + FN_c)",
    "matthews_correlation": "100 times the Matthews correlation coefficient (MCC; of several classes Gorodkin's R_K)",
}


def tallies(answers: Sequence[str], predictions: Sequence[str], labels: Sequence[str]) -> Floats:
    """[n, 3 C + 1]: of each example whether class c is its answer, its prediction (or no class is), and both.

    Args:
        labels: of which the C classes are those that some answer has; texts are compared as `accuracy` does.
    """
    truth = np.array([answer.strip() for answer in answers])
    classes = np.array([label for label in dict.fromkeys(label.strip() for label in labels) if label in truth])
    true = truth[:, None] == classes
    found = np.array([prediction.strip() for prediction in predictions])[:, None] == classes
    return np.concatenate([true, found, ~found.any(1, keepdims=True), true & found], axis=1).astype(np.float64)


def percents(counted: Floats) -> dict[str, float]:
    """Each of CLASS_SCORES of all examples together, from their `tallies`."""
    return {name: float(value) for name, value in class_scores(counted.sum(0)).items()}


def class_scores(sums: Floats) -> dict[str, Floats]:
    """Each of CLASS_SCORES in percent, [...], from sums of `tallies` over examples, [..., 3 C + 1].

    A class that a draw of examples lacks has no part in its means; a correlation without any variation is 0.
    """
    count = sums.shape[-1] // 3
    true, found, right = sums[..., :count], sums[..., count : 2 * count + 1], sums[..., -count:]
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * right / (true + found[..., :-1])
        recall = right / true
        total = true.sum(-1)
        joint = right.sum(-1) * total - (true * found[..., :-1]).sum(-1)
        spread = np.sqrt((total**2 - (true**2).sum(-1)) * (total**2 - (found**2).sum(-1)))
        correlation = np.where(spread > 0, joint / spread, 0.0)
    means = (100 * np.nanmean(f1, axis=-1), 100 * np.nanmean(recall, axis=-1), 100 * correlation)
    return dict(zip(CLASS_SCORES, means, strict=True))
