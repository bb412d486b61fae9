"""Two versions that share an agent's requests: who gets which, what each has answered, and what that proves.

The same key always gets the same version, so requests of one key are not independent. Keys are therefore
spread over 100 buckets, and the variance is computed between buckets (the jackknife of a ratio). Divided by
what it would be if all requests were independent, it is the design effect (Kish 1965). Both versions get the
larger one of the two: a small arm may by chance lack the keys that differ most.

Anybody may look at the comparison at any time and stop when it suits them, so p-values and intervals are
always valid: those of a mixture sequential probability ratio test (Robbins 1970; Johari et al. 2022), whose
error bound holds over all looks together.
"""

import hashlib
import math
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from agentcore.api._events import BUCKETS, ArmCount, ArmsCounted, FeedbackGiven
from agentcore.evaluation import Verdict
from agentcore.journal import Event

ALPHA = 0.05
"""Of all claims of a comparison together; each gets an equal part (Bonferroni)."""
_FIGURES = 3
_FEWEST = 100
"""Requests of each version before anything is claimed: the variance is estimated."""
_FEWEST_BUCKETS = 20
_PSEUDO = 5
_RATE_SPREAD, _LOG_SPREAD = 0.05, 0.1
"""Standard deviation of the mixture: about the differences that are found soonest. Errors are bounded for any
value."""

Arm = Literal["champion", "challenger"]


def share_of(*parts: str) -> float:
    """A number in [0, 1) that is the same for the same texts, and otherwise as if drawn at random."""
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def arm_of(agent: str, challenger: str, key: str, share: float) -> Arm:
    """Which version answers a key. If the share grows, no key leaves the challenger."""
    return "challenger" if share_of("arm", agent, challenger, key) < share else "champion"


def bucket_of(key: str) -> int:
    """A key's bucket for the variances, independent of its version."""
    return int(share_of("bucket", key) * BUCKETS)


def pair_stream(destination: str, agent: str, champion: str, challenger: str, share: float) -> str:
    """The id of the stream of two versions with one share. With another share, counting begins anew: if rates
    change over time, totals of different shares can't be compared."""
    text = "\0".join(("traffic", destination, agent, champion, challenger, repr(share)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ArmCounter:
    """Counts what one process answers with two versions. Thread-safe."""

    def __init__(self) -> None:
        self._process = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[list[int], list[int], list[float]]] = {}
        self._changed = False

    def add(self, version: str, key: str, milliseconds: float | None) -> None:
        """Count an answer.

        Args:
            milliseconds: how long it took; None if it failed.
        """
        bucket = bucket_of(key)
        with self._lock:
            requests, errors, logs = self._counts.setdefault(
                version, ([0] * BUCKETS, [0] * BUCKETS, [0.0] * BUCKETS)
            )
            requests[bucket] += 1
            if milliseconds is None:
                errors[bucket] += 1
            else:
                logs[bucket] += math.log(max(milliseconds, 1e-3))
            self._changed = True

    def event(self) -> ArmsCounted | None:
        """The totals, if they have changed since the last time."""
        with self._lock:
            if not self._changed:
                return None
            self._changed = False
            versions = {
                name: ArmCount(
                    requests=list(requests), errors=list(errors), log_ms=[round(value, 4) for value in logs]
                )
                for name, (requests, errors, logs) in self._counts.items()
            }
        return ArmsCounted(process=self._process, versions=versions)

    def keep(self) -> None:
        """The last totals could not be written."""
        with self._lock:
            self._changed = True


@dataclass(frozen=True)
class ArmTotals:
    """What a version has answered, by bucket: arrays of `BUCKETS` numbers."""

    requests: "np.ndarray"
    errors: "np.ndarray"
    log_ms: "np.ndarray"
    ratings: "np.ndarray"
    score: "np.ndarray"


class Tally:
    """What a stream of two versions says so far; new events are added without reading the old ones again."""

    def __init__(self) -> None:
        self.seq = 0
        """Of the last entry that was added."""
        self._processes: dict[str, ArmsCounted] = {}
        self._rated: dict[str, FeedbackGiven] = {}

    def add(self, event: Event) -> None:
        """Take an event into account: a process's latest totals, and the last rating of a request."""
        if isinstance(event, ArmsCounted):
            self._processes[event.process] = event
        elif isinstance(event, FeedbackGiven):
            self._rated[event.request_id] = event

    def totals(self, version: str) -> ArmTotals:
        """A version's totals over all processes."""
        zeros = np.zeros(BUCKETS)
        requests, errors, logs = zeros.copy(), zeros.copy(), zeros.copy()
        for event in self._processes.values():
            count = event.versions.get(version)
            if count is not None:
                requests += np.asarray(count.requests, dtype=float)
                errors += np.asarray(count.errors, dtype=float)
                logs += np.asarray(count.log_ms)
        rated = [item for item in self._rated.values() if item.version == version]
        buckets = np.asarray([item.bucket for item in rated], dtype=int)
        scores = np.asarray([item.score for item in rated])
        ratings = np.bincount(buckets, minlength=BUCKETS).astype(float)
        return ArmTotals(requests, errors, logs, ratings, np.bincount(buckets, scores, BUCKETS))


class ArmFigures(BaseModel):
    """What a version has answered."""

    model_config = ConfigDict(frozen=True)

    version: str
    requests: int
    errors: int
    error_rate: float | None
    latency_ms: float | None
    """Geometric mean over the requests that succeeded."""
    ratings: int
    score: float | None
    """Mean of the feedback, 0–1."""


class ArmClaim(BaseModel):
    """One figure of the challenger against the champion's."""

    model_config = ConfigDict(frozen=True)

    figure: Literal["error_rate", "latency_ms", "score"]
    difference: float | None
    """Challenger minus champion; of the latency, as a share of the champion's."""
    low: float | None
    high: float | None
    """The interval that holds the true difference at every look, with all figures together in 95% of
    comparisons."""
    p_value: float
    """Valid however often somebody looks."""
    verdict: Verdict
    """`not proven` unless p is below 0.05 / 3."""
    note: str | None = None


def figures_of(version: str, totals: ArmTotals) -> ArmFigures:
    """A version's figures."""
    requests, errors = int(totals.requests.sum()), int(totals.errors.sum())
    answered, ratings = requests - errors, int(totals.ratings.sum())
    return ArmFigures(
        version=version,
        requests=requests,
        errors=errors,
        error_rate=errors / requests if requests else None,
        latency_ms=math.exp(float(totals.log_ms.sum()) / answered) if answered else None,
        ratings=ratings,
        score=float(totals.score.sum()) / ratings if ratings else None,
    )


def claims_of(champion: ArmTotals, challenger: ArmTotals) -> list[ArmClaim]:
    """What is proven of the challenger against the champion."""
    both = (champion, challenger)
    rates = [(item.errors, item.requests) for item in both]
    latencies = [(item.log_ms, item.requests - item.errors) for item in both]
    scores = [(item.score, item.ratings) for item in both]
    return [
        _claim("error_rate", rates, _RATE_SPREAD, higher_is_better=False, binary=True),
        _claim("latency_ms", latencies, _LOG_SPREAD, higher_is_better=False, binary=False),
        _claim("score", scores, _RATE_SPREAD, higher_is_better=True, binary=True),
    ]


def _claim(
    figure: Literal["error_rate", "latency_ms", "score"],
    samples: "Sequence[tuple[np.ndarray, np.ndarray]]",
    spread: float,
    *,
    higher_is_better: bool,
    binary: bool,
) -> ArmClaim:
    counts = [int(sizes.sum()) for _, sizes in samples]
    what = "ratings" if figure == "score" else "answers" if figure == "latency_ms" else "requests"
    buckets = min(int((sizes > 0).sum()) for _, sizes in samples)
    if min(counts) < _FEWEST or buckets < _FEWEST_BUCKETS:
        note = (
            f"needs {_FEWEST} {what} of each version, spread over at least {_FEWEST_BUCKETS} buckets of keys"
        )
        return ArmClaim(
            figure=figure, difference=None, low=None, high=None, p_value=1.0, verdict="not proven", note=note
        )
    arms = [_Mean.of(*sample, binary=binary) for sample in samples]
    effect = max(item.effect for item in arms)
    difference = arms[1].mean - arms[0].mean
    variance = max(sum(item.variance(effect) for item in arms), 1e-12)
    p_value, half = always_valid(difference, variance, spread, ALPHA / _FIGURES)
    verdict: Verdict = "not proven"
    if p_value < ALPHA / _FIGURES:
        verdict = "better" if (difference > 0) == higher_is_better else "worse"
    shown = math.expm1 if figure == "latency_ms" else float
    return ArmClaim(
        figure=figure,
        difference=shown(difference),
        low=shown(difference - half),
        high=shown(min(difference + half, 700.0)),
        p_value=p_value,
        verdict=verdict,
    )


@dataclass(frozen=True)
class _Mean:
    """The mean over all requests of a version.

    Attributes:
        effect: the design effect: the variance of the mean between buckets, divided by what it would be if
            all requests were independent (for other than binary values, if the variance of one were 1).
    """

    mean: float
    size: float
    binary: bool
    effect: float

    @classmethod
    def of(cls, sums: "np.ndarray", sizes: "np.ndarray", *, binary: bool) -> "_Mean":
        """From sums and numbers of requests by bucket; the variance between buckets is the jackknife's."""
        total = float(sizes.sum())
        mean = float(sums.sum()) / total
        used = sizes > 0
        count = int(used.sum())
        left_out = (sums[used] - mean * sizes[used]) / (total - sizes[used])
        variance = (count - 1) / count * float((left_out**2).sum())
        found = cls(mean, total, binary, 1.0)
        effect = variance / found.variance(1.0)
        return replace(found, effect=max(1.0, effect) if binary else effect)

    def variance(self, effect: float) -> float:
        """Of the mean, with a design effect. Of binary values, as if five more independent ones had failed,
        and five not: no error seen does not mean that there are none."""
        if not self.binary:
            return effect / self.size
        more = _PSEUDO * effect
        share = (self.mean * self.size + more) / (self.size + 2 * more)
        return effect * share * (1 - share) / self.size


def always_valid(difference: float, variance: float, spread: float, alpha: float) -> tuple[float, float]:
    """p-value and half the width of the interval at 1 − alpha of a mixture sequential probability ratio test
    with a normal mixture (Johari, Koomen, Pekelis, Walsh 2022, equations 9 and 10)."""
    mixed = spread**2
    log_ratio = 0.5 * math.log(variance / (variance + mixed)) + mixed * difference**2 / (
        2 * variance * (variance + mixed)
    )
    half = math.sqrt(
        variance
        * (variance + mixed)
        / mixed
        * (2 * math.log(1 / alpha) + math.log((variance + mixed) / variance))
    )
    return math.exp(min(0.0, -log_ratio)), half


class ArmsReply(BaseModel):
    """Two versions that share an agent's requests."""

    model_config = ConfigDict(frozen=True)

    agent: str
    share: float
    """The challenger's share of the keys."""
    champion: ArmFigures | None
    challenger: ArmFigures | None
    claims: list[ArmClaim]
    summary: str


def summary_of(claims: Sequence[ArmClaim], champion: str, challenger: str) -> str:
    """One sentence on a comparison."""
    words = {"error_rate": "error rate", "latency_ms": "latency", "score": "score"}
    proven = [f"{words[item.figure]} {item.verdict}" for item in claims if item.verdict != "not proven"]
    open_ = [words[item.figure] for item in claims if item.verdict == "not proven"]
    whom = f"version {challenger} against version {champion}"
    if not proven:
        return f"{whom}: no difference is proven"
    return f"{whom}: {', '.join(proven)}" + (f"; not proven: {', '.join(open_)}" if open_ else "")


def compared(agent: str, share: float, versions: Mapping[Arm, str], tally: Tally) -> ArmsReply:
    """The comparison of the two versions, from what their stream says."""
    champion, challenger = versions.get("champion"), versions.get("challenger")
    if champion is None or challenger is None or champion == challenger:
        why = "no version is in production" if champion is None else "there is no challenger"
        return ArmsReply(agent=agent, share=share, champion=None, challenger=None, claims=[], summary=why)
    old, new = tally.totals(champion), tally.totals(challenger)
    claims = claims_of(old, new)
    return ArmsReply(
        agent=agent,
        share=share,
        champion=figures_of(champion, old),
        challenger=figures_of(challenger, new),
        claims=claims,
        summary=summary_of(claims, champion, challenger),
    )
