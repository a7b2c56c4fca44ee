"""What came of each prediction: every rule's, acting or not."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable

import numpy as np

from failavoid.monitor.state import State
from failavoid.prediction.scoring import Calibration
from failavoid.shared.messages import Prediction, RuleScore

Key = tuple[str, str, str, str]  # rule, mode, job, host


class Scorer:
    """Follows predictions until they came true, did not, or cannot be judged any more."""

    def __init__(self, state: State, judged_after_s: float, acting: str) -> None:
        self._state = state
        self._judged_after_s = judged_after_s
        self._acting = acting
        self._calibrations: dict[str, Calibration] = {}
        # what a monitor left open when it ended is followed on
        self._open: dict[Key, Prediction] = {
            (one.rule, one.mode, one.job, one.host): one for one in state.all(Prediction) if one.outcome == "open"
        }

    def calibration(self, mode: str) -> Calibration:
        """What predictions of a failure mode have taught of the next one's interval."""
        if mode not in self._calibrations:
            self._calibrations[mode] = Calibration(self._state.came_true(mode))
        return self._calibrations[mode]

    def predict(self, key: Key, now: float, value: float, predicted_s: float, doubt: float) -> Prediction:
        """A rule has begun to hold for a host."""
        rule, mode, job, host = key
        foreseen = bool(np.isfinite(predicted_s))
        prediction = Prediction(
            id=f"prediction-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(3)}",
            rule=rule,
            acting=rule == self._acting,
            mode=mode,
            host=host,
            job=job,
            time=now,
            value=value,
            predicted_failure_s=predicted_s if foreseen else None,
            predicted_failure_interval_s=list(self.calibration(mode).interval(predicted_s, doubt))
            if foreseen
            else None,
            doubt=doubt if foreseen else None,
        )
        if key in self._open:
            self._end(key, "unknown", now)
        self._open[key] = prediction
        self._state.put(prediction.id, prediction)
        return prediction

    def failed(self, rules: Iterable[str], mode: str, job: str, host: str, now: float, value: float) -> None:
        """A host of a job has reached failure."""
        for rule in rules:
            key = (rule, mode, job, host)
            prediction = self._open.get(key)
            if prediction is None:
                missed = self.predict(key, now, value, np.inf, 1.0)
                missed.lead_s = 0.0
                self._end(key, "missed", now)
                continue
            prediction.lead_s = now - prediction.time
            predicted_s, doubt = prediction.predicted_failure_s, prediction.doubt
            if rule == "robust" and predicted_s is not None and doubt is not None:
                calibration = self.calibration(mode)
                calibration.learn([(predicted_s, doubt, prediction.lead_s, _held(prediction) is True)])
                self._state.keep_came_true(mode, calibration.seen)
            self._end(key, "true", now)

    def cleared(self, key: Key, now: float) -> None:
        """A rule no longer holds for a host that has not failed."""
        if key in self._open:
            self._end(key, "false", now)

    def follow(self, members: set[tuple[str, str]], now: float) -> None:
        """Judge what is overdue; ``members`` are the (job, host) of this moment."""
        for key, prediction in list(self._open.items()):
            if (key[2], key[3]) not in members:
                self._end(key, "unknown", now)
            elif now - prediction.time > self._judged_after_s:
                self._end(key, "false", now)

    def _end(self, key: Key, outcome: str, now: float) -> None:
        prediction = self._open.pop(key)
        prediction.outcome, prediction.ended = outcome, now
        self._state.put(prediction.id, prediction)


def score(predictions: Iterable[Prediction]) -> list[RuleScore]:
    """How good each rule was for each failure mode."""
    by_rule: dict[tuple[str, str], list[Prediction]] = {}
    for prediction in predictions:
        by_rule.setdefault((prediction.mode, prediction.rule), []).append(prediction)
    scores = []
    for (mode, rule), found in sorted(by_rule.items()):
        count = {
            name: sum(one.outcome == name for one in found) for name in ("true", "false", "unknown", "open", "missed")
        }
        leads = [one.lead_s for one in found if one.outcome == "true" and one.lead_s is not None]
        held = [inside for one in found if one.outcome == "true" and (inside := _held(one)) is not None]
        judged, failures = count["true"] + count["false"], count["true"] + count["missed"]
        scores.append(
            RuleScore(
                rule=rule,
                mode=mode,
                acting=found[-1].acting,
                predictions=len(found) - count["missed"],
                true=count["true"],
                false=count["false"],
                unknown=count["unknown"],
                open=count["open"],
                missed=count["missed"],
                precision=count["true"] / judged if judged else None,
                recall=count["true"] / failures if failures else None,
                lead_median_s=float(np.median(leads)) if leads else None,
                lead_p5_s=float(np.percentile(leads, 5)) if leads else None,
                interval_coverage=float(np.mean(held)) if held else None,
            )
        )
    return scores


def _held(prediction: Prediction) -> bool | None:
    """Whether the failure came within the interval that was foretold; None if there is nothing to say."""
    span, lead_s = prediction.predicted_failure_interval_s, prediction.lead_s
    return span[0] <= lead_s <= span[1] if span and lead_s is not None else None
