"""Compares two models' answers to the same rows: metrics before and after, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import Unprocessable
from headrace.core.optimization import Comparison, Metric, OptimizationCreate
from headrace.core.schema import Signature, TensorSpec
from headrace.registry.gate import disagreement, paired_accuracy
from headrace.server.engines.port import Array

RESAMPLES = 1000
"""Of the bootstrap."""
Score = Callable[[NDArray[np.float64], NDArray[np.float64]], float]
"""(labels, answers) -> metric."""


class Judge:
    """Which output is judged, and how.

    Args:
        asked: metric, output, tolerance.
        signature: of the source.
        labels: of the held-out rows; None where there are none.

    Raises:
        Unprocessable: names the field that does not fit.
    """

    def __init__(self, asked: OptimizationCreate, signature: Signature, labels: Array | None) -> None:
        self._names = [spec.name for spec in signature.outputs]
        self._tolerance = asked.tolerance
        self._labels = labels
        classes = [spec for spec in signature.outputs if not spec.datatype.startswith("FP")]
        wide = [spec for spec in signature.outputs if len(spec.shape) == 2 and spec.shape[1] > 1]
        self.metric: Metric = asked.metric or (
            "agreement" if labels is None else "accuracy" if classes or wide else "r2"
        )
        if (self.metric != "agreement") and labels is None:
            text = f"metric: {self.metric} needs labels"
            raise Unprocessable(text, field="metric", hint="name the column of the labels: --label")
        if labels is not None and any(item is None or item != item for item in labels.reshape(-1).tolist()):
            raise Unprocessable("data: a label is missing", field="data")
        self._at = self._output(asked.output, signature, classes)

    def _output(self, name: str | None, signature: Signature, classes: list[TensorSpec]) -> int:
        if name is not None:
            if name not in self._names:
                raise Unprocessable(f"output: no output {name!r}, the model gives {self._names}", field="output")
            return self._names.index(name)
        floats = [spec for spec in signature.outputs if spec.datatype.startswith("FP")]
        fitting = {"accuracy": classes or floats, "agreement": list(signature.outputs)}.get(self.metric, floats)
        if not fitting:
            raise Unprocessable(f"metric: no output is a number for {self.metric}", field="metric")
        return self._names.index(fitting[0].name)

    def compare(self, before: list[Array], after: list[Array]) -> Comparison:
        """Compare the answers of source and candidate. Raises Unprocessable for labels that do not fit."""
        one, other = before[self._at], after[self._at]
        rows = len(one)
        if self.metric == "agreement":
            different = int((~_agree(one, other, self._tolerance)).sum())
            loss, low, high = disagreement(different, rows)
            return Comparison(self.metric, rows, 1.0, 1 - loss, loss, low, high, self._tolerance)
        assert self._labels is not None
        if self.metric == "accuracy":
            right = [_classes(answers) == _texts(self._labels) for answers in (one, other)]
            if not right[0].any():
                text = f"data: the source model is right on none of {rows} rows: are its labels the model's classes?"
                raise Unprocessable(text, field="data")
            better, worse = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
            loss, low, high = paired_accuracy(better, worse, rows)
            return Comparison(
                self.metric, rows, float(right[0].mean()), float(right[1].mean()), loss, low, high, self._tolerance
            )
        labels = _binary(self._labels) if self.metric == "auc" else _floats(self._labels)
        return self._bootstrap(labels, _scores(one), _scores(other))

    def _bootstrap(self, labels: Any, one: Any, other: Any) -> Comparison:
        """The loss over resamples of the rows, the same rows for both: its percentiles are the interval."""
        score = SCORES[self.metric]

        def lost(rows: Any) -> tuple[float, float, float]:
            before, after = score(labels[rows], one[rows]), score(labels[rows], other[rows])
            if self.metric != "rmse":
                return before, after, before - after
            return before, after, (after - before) / before if before else after

        count = len(labels)
        before, after, loss = lost(np.arange(count))
        drawn = np.random.default_rng(0)  # the same rows, the same verdict
        losses = np.array([lost(drawn.integers(0, count, count))[2] for _ in range(RESAMPLES)])
        low, high = np.nanpercentile(losses, [2.5, 97.5]).tolist()
        return Comparison(self.metric, count, before, after, loss, min(low, loss), max(high, loss), self._tolerance)


def differences(before: list[Array], after: list[Array]) -> tuple[float | None, float | None]:
    """Largest absolute and relative difference over all floating outputs."""
    absolute = relative = None
    for one, other in zip(before, after, strict=True):
        if one.dtype.kind == "f" and one.size:
            a, b = one.astype(np.float64), other.astype(np.float64)
            with np.errstate(invalid="ignore"):
                gap = np.nan_to_num(np.abs(a - b), nan=0.0)
                absolute = max(absolute or 0.0, float(gap.max()))
                relative = max(relative or 0.0, float((gap / np.maximum(1.0, np.nan_to_num(np.abs(a)))).max()))
    return absolute, relative


def _agree(one: Array, other: Array, tolerance: float) -> Any:
    """Per row: the same class, or numbers that are as close as the tolerance."""
    if one.dtype.kind != "f" or (one.ndim == 2 and one.shape[1] > 1):
        return _classes(one) == _classes(other)
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (one, other))
    close = np.abs(a - b) <= tolerance * np.maximum(1.0, np.abs(a))
    return (close | (np.isnan(a) & np.isnan(b))).all(1)


def _classes(answers: Array) -> Any:
    """Each row's class as text: a label output itself, the largest of several scores, or whether one is over .5."""
    if answers.dtype.kind != "f":
        return _texts(answers.reshape(len(answers), -1)[:, 0])
    table = answers.reshape(len(answers), -1)
    return _texts(table.argmax(1) if table.shape[1] > 1 else (table[:, 0] > 0.5).astype(np.int64))


def _texts(values: Array) -> Any:
    """Classes as text: 1, 1.0, True and b"1" are the same."""
    return np.array([_text(item) for item in values.reshape(-1).tolist()], object)


def _text(item: object) -> str:
    if isinstance(item, bytes):
        return item.decode(errors="replace")
    if isinstance(item, bool):
        return str(int(item))
    if isinstance(item, float) and item.is_integer():
        return str(int(item))
    return str(item)


def _scores(answers: Array) -> NDArray[np.float64]:
    column: NDArray[np.float64] = answers.reshape(len(answers), -1)[:, -1].astype(np.float64)
    return column


def _floats(labels: Array) -> NDArray[np.float64]:
    try:
        found = np.array([float(item) for item in labels.reshape(-1).tolist()])
    except (TypeError, ValueError):
        raise Unprocessable("data: a label is no number", field="data") from None
    if not np.isfinite(found).all():
        raise Unprocessable("data: a label is missing or infinite", field="data")
    return found


def _binary(labels: Array) -> NDArray[np.float64]:
    texts = _texts(labels)
    kinds = sorted(set(texts))
    if len(kinds) != 2:
        raise Unprocessable(f"data: AUC needs two classes, its labels have {len(kinds)}", field="data")
    found: NDArray[np.float64] = (texts == kinds[1]).astype(np.float64)
    return found


def _auc(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """The chance that a positive scores above a negative; ties count half. NaN where there are none of one kind."""
    positive, negative = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / 2 / (len(positive) * len(negative)))


def _r2(labels: NDArray[np.float64], answers: NDArray[np.float64]) -> float:
    spread = float(((labels - labels.mean()) ** 2).sum())
    return 1 - float(((labels - answers) ** 2).sum()) / spread if spread else float("nan")


def _rmse(labels: NDArray[np.float64], answers: NDArray[np.float64]) -> float:
    return float(np.sqrt(((labels - answers) ** 2).mean()))


SCORES: dict[str, Score] = {"auc": _auc, "r2": _r2, "rmse": _rmse}
