"""The report of an evaluation of generated applications, and the figures that it gives."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agentcore._json import jsonable
from agentcore.errors import DataError

TOP_SCORE = 5.0
"""Scores of single applications are from 0 to 5; `overall_quality_score` is from 0 to 1."""
_FIGURE = re.compile(r"\w+_rate|avg_\w+|\w+_score")
_NESTED = ("summary", "metrics_summary", "metrics", "aggregate")
_NOT_RATES = frozenset({"evaluated", "error", "skipped"})


class AppResult(BaseModel):
    """One generated application. Further fields are kept: booleans give a rate, a `…_score` an average.

    Attributes:
        build_success, runtime_success, tests_pass, databricks_connectivity: None if not checked.
        local_runability_score, deployability_score: 0 to 5.
        cost_usd, output_tokens, turns: of its generation.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str | None = None
    build_success: bool | None = None
    runtime_success: bool | None = None
    tests_pass: bool | None = None
    databricks_connectivity: bool | None = None
    local_runability_score: float | None = Field(default=None, ge=0, le=TOP_SCORE)
    deployability_score: float | None = Field(default=None, ge=0, le=TOP_SCORE)
    cost_usd: float | None = Field(default=None, ge=0)
    output_tokens: int | None = Field(default=None, ge=0)
    turns: float | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("metrics"), Mapping):
            return {**given["metrics"], **{key: value for key, value in given.items() if key != "metrics"}}
        return given

    def values(self) -> dict[str, Any]:
        """Every field that has a value."""
        return {
            name: value
            for name, value in {**dict(self), **(self.model_extra or {})}.items()
            if value is not None
        }


class GenerationReport(BaseModel):
    """A report of an evaluation: its figures, the applications, or both. Unknown fields are kept.

    Figures may also stand in `summary`, `metrics_summary`, `metrics` or `aggregate`.

    Attributes:
        total_apps: default: the number of `apps`.
        evaluated: how many of them could be evaluated.
        apps: a list, or a dict by name.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    mode: str | None = None
    timestamp: str | None = None
    model_version: str | None = None
    total_apps: int | None = Field(default=None, ge=0)
    evaluated: int | None = Field(default=None, ge=0)
    build_success_rate: float | None = Field(default=None, ge=0, le=1)
    runtime_success_rate: float | None = Field(default=None, ge=0, le=1)
    tests_pass_rate: float | None = Field(default=None, ge=0, le=1)
    databricks_connectivity_rate: float | None = Field(default=None, ge=0, le=1)
    avg_local_runability_score: float | None = Field(default=None, ge=0, le=TOP_SCORE)
    avg_deployability_score: float | None = Field(default=None, ge=0, le=TOP_SCORE)
    overall_quality_score: float | None = Field(default=None, ge=0, le=1)
    generation_cost_usd: float | None = Field(default=None, ge=0)
    total_output_tokens: int | None = Field(default=None, ge=0)
    avg_turns_per_app: float | None = Field(default=None, ge=0)
    apps_per_dollar: float | None = Field(default=None, ge=0)
    apps: list[AppResult] = []

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        found = dict(given)
        for part in _NESTED:
            inner = found.get(part)
            if isinstance(inner, Mapping):
                for name, value in inner.items():
                    if isinstance(value, Mapping) and part in _NESTED and name in _NESTED:
                        found = {**value, **found}
                    elif name in cls.model_fields or _FIGURE.fullmatch(str(name)):
                        found.setdefault(str(name), value)
        apps = found.get("apps")
        if isinstance(apps, Mapping):
            found["apps"] = [{"name": str(name), **dict(app)} for name, app in apps.items()]
        return found

    @field_validator("timestamp", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return value.isoformat() if hasattr(value, "isoformat") else value

    @model_validator(mode="after")
    def _figures_are_numbers(self) -> "GenerationReport":
        for name, value in (self.model_extra or {}).items():
            if not _FIGURE.fullmatch(name) or value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} must be a number, not {value!r}")
            if name.endswith("_rate") and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value:g}: a rate is a share from 0 to 1")
        return self

    def figures(self) -> dict[str, float]:
        """Every figure, as given or computed from the applications.

        `overall_quality_score`, where the report has none: the mean of all rates, and of all average scores
        divided by 5.
        """
        found: dict[str, float] = {}
        given = {**dict(self), **(self.model_extra or {})}
        for name, value in given.items():
            known = name in type(self).model_fields or _FIGURE.fullmatch(name)
            if known and isinstance(value, (int, float)) and not isinstance(value, bool):
                found[name] = float(value)
        computed = self._computed()
        found = {**computed, **found}
        parts = [value for name, value in found.items() if name.endswith("_rate")]
        parts += [
            value / TOP_SCORE
            for name, value in found.items()
            if name.startswith("avg_") and name.endswith("_score") and value <= TOP_SCORE
        ]
        if parts:
            found.setdefault("overall_quality_score", sum(parts) / len(parts))
        cost, total = found.get("generation_cost_usd"), found.get("total_apps")
        if cost and total:
            found.setdefault("apps_per_dollar", total / cost)
        return found

    def _computed(self) -> dict[str, float]:
        if not self.apps:
            return {}
        rows = [app.values() for app in self.apps]
        found = {
            "total_apps": float(len(rows)),
            "evaluated": float(sum(row.get("evaluated", not row.get("error")) is not False for row in rows)),
        }
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row[name] for row in rows if name in row]
            if all(isinstance(value, bool) for value in values) and name not in _NOT_RATES:
                found[f"{name}_rate"] = sum(values) / len(values)
            elif name.endswith("_score") and all(_is_number(value) for value in values):
                found[f"avg_{name}"] = sum(values) / len(values)
        for name, total in (("cost_usd", "generation_cost_usd"), ("output_tokens", "total_output_tokens")):
            if all(name in row for row in rows):
                found[total] = float(sum(row[name] for row in rows))
        turns = [row["turns"] for row in rows if "turns" in row]
        if turns:
            found["avg_turns_per_app"] = sum(turns) / len(turns)
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def report_of(given: Any) -> GenerationReport:
    """A report from a dict, a Pydantic model or an object of fields.

    Raises:
        DataError: what is wrong with which field.
    """
    if isinstance(given, GenerationReport):
        return given
    plain = jsonable(given)
    if not isinstance(plain, Mapping):
        raise DataError(f"an evaluation report is a dict of figures and apps, not {type(given).__name__}")
    try:
        return GenerationReport.model_validate(plain)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'report'}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False)[:5]
        )
        raise DataError(f"the evaluation report has wrong fields: {told}") from None
