"""A line of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResultLine:
    """One measured thing. value: with its unit, `x` for ratios of time; detail: what it is made of; threshold: what is
    wanted, `higher_is_better` where more is better, None where it is only shown."""

    name: str
    value: float
    unit: str
    detail: str
    threshold: float | None = None
    higher_is_better: bool = True

    @property
    def passed(self) -> bool:
        return self.threshold is None or (
            self.value >= self.threshold if self.higher_is_better else self.value <= self.threshold
        )

    @property
    def formatted_value(self) -> str:
        """The value in three digits, or all of those before the point."""
        return f"{self.value:.0f}" if abs(self.value) >= 1000 else f"{self.value:.3g}"

    @property
    def verdict(self) -> str:
        if self.threshold is None:
            return ""
        sign, verdict = "≥" if self.higher_is_better else "≤", "ok" if self.passed else "short"
        return f"bar {sign} {self.threshold:g}{self.unit} {verdict}"

    def __str__(self) -> str:
        return f"{self.name:<34} {self.formatted_value:>7}{self.unit:<2} {self.detail}  {self.verdict}".rstrip()


def speedup(
    name: str, seconds: float, theirs: float, bar: float | None = None, names: tuple[str, str] = ("ours", "reference")
) -> ResultLine:  # fmt: skip
    """How many times as long the other side takes, both in seconds per picture."""
    return ResultLine(name, theirs / seconds, "x", f"{names[0]} {seconds:.2f} s  {names[1]} {theirs:.2f} s", bar)
