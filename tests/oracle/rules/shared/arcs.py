"""Arcs between vectors and mean directions on the sphere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def arc(
    a: np.ndarray, b: np.ndarray, t: float, axis: int, straight_above: float = 1.0
) -> np.ndarray:
    """[sin((1 - t) omega) a + sin(t omega) b] / sin omega along an axis, omega the angle between a and b.

    Straight where |cos omega| is above `straight_above`, and where sin omega vanishes. Zero vectors have cosine 0.
    """
    length = np.linalg.norm(a, axis=axis, keepdims=True) * np.linalg.norm(
        b, axis=axis, keepdims=True
    )
    dot = (a * b).sum(axis=axis, keepdims=True)
    cosine = np.clip(np.divide(dot, length, out=np.zeros_like(dot), where=length > 0), -1, 1)
    omega = np.arccos(cosine)
    straight = (np.abs(cosine) > straight_above) | (1 - np.abs(cosine) < 1e-15)
    sine = np.where(straight, 1.0, np.sin(omega))
    first = np.where(straight, 1 - t, np.sin((1 - t) * omega) / sine)
    second = np.where(straight, t, np.sin(t * omega) / sine)
    return first * a + second * b


def mean_direction(
    vectors: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    steps: int,
    tolerance: float,
    zero: float,
) -> np.ndarray:
    """The Karcher mean of directions times the mean length.

    Vectors no longer than `zero` have no direction but count in the length.
    """
    share = np.array(weights) / sum(weights)
    lengths = np.array([np.linalg.norm(v) for v in vectors])
    directed = [k for k, length in enumerate(lengths) if length > zero]
    if not directed:
        return np.zeros_like(vectors[0])
    units = [vectors[k] / lengths[k] for k in directed]
    start = sum(share[k] * u for k, u in zip(directed, units, strict=True))
    size = np.linalg.norm(start)
    mean = start / size if size > 1e-12 else units[0]
    for _ in range(steps):
        step = np.zeros_like(mean)
        for k, unit in zip(directed, units, strict=True):
            cosine = float(np.clip(np.vdot(mean, unit), -1, 1))
            across = unit - cosine * mean
            sine = np.linalg.norm(across)
            # The angle by its tangent: arccos loses half of the digits near 0.
            angle = np.arctan2(sine, cosine)
            if angle >= tolerance and np.pi - angle >= 1e-7:
                step += share[k] * angle / sine * across
        length = np.linalg.norm(step)
        if length < tolerance:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * step
        mean = mean / np.linalg.norm(mean)
    return float(share @ lengths) * mean
