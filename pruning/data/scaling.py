"""What loss a model of some size should reach, from models of other sizes. Pure."""

from collections.abc import Sequence

import numpy as np

_EXPONENTS = np.geomspace(1e-3, 4.0, 4000)


def fitted_loss(measured: Sequence[tuple[int, float]], num_parameters: int) -> float:
    """The loss at a size by a · N^-b + c with a, c >= 0 (Sheared-LLaMA, arXiv 2310.06694).

    `measured` are sizes and losses. Two give a power law without a floor c; with three or more the
    three numbers are fitted by least squares.
    """
    sizes = np.array([size for size, _ in measured], dtype=np.float64)
    losses = np.array([loss for _, loss in measured], dtype=np.float64)
    # Sizes relative to the one that is asked for: the loss there is then a + c.
    ratios = sizes / num_parameters
    if len(measured) == 2:
        (slope, intercept) = np.polyfit(np.log(ratios), np.log(losses), 1)
        return float(np.exp(intercept) if slope < 0 else losses.mean())
    fits = [_fit(ratios**-exponent, losses) for exponent in _EXPONENTS]
    _, amplitude, floor = min(fits)
    return amplitude + floor


def _fit(powers: np.ndarray, losses: np.ndarray) -> tuple[float, float, float]:
    """Squared error, a >= 0 and c >= 0 of losses = a · powers + c."""
    spread = powers - powers.mean()
    amplitude = float(max(0.0, spread @ losses / max(1e-300, spread @ spread)))
    floor = float(losses.mean() - amplitude * powers.mean())
    if floor < 0:
        amplitude, floor = float(powers @ losses / (powers @ powers)), 0.0
    error = float(((amplitude * powers + floor - losses) ** 2).sum())
    return error, amplitude, floor
