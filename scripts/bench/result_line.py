"""A result of the benchmark as a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResultLine:
    """One result. unit: `x` for ratios of times; detail: the values behind it; threshold: which the value has to reach,
    from below if `higher_is_better`, None for a value without verdict."""

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
        """The value with three significant digits, or all digits before the decimal point."""
        return f"{self.value:.0f}" if abs(self.value) >= 1000 else f"{self.value:.3g}"

    @property
    def verdict(self) -> str:
        if self.threshold is None:
            return ""
        sign, verdict = "≥" if self.higher_is_better else "≤", "pass" if self.passed else "fail"
        return f"threshold {sign} {self.threshold:g}{self.unit} {verdict}"

    def __str__(self) -> str:
        return f"{self.name:<42} {self.formatted_value:>7}{self.unit:<2} {self.detail}  {self.verdict}".rstrip()


def speedup(
    name: str, seconds: float, other_seconds: float, threshold: float | None = None,
    names: tuple[str, str] = ("ours", "reference"),
) -> ResultLine:  # fmt: skip
    """How many times as long the other side takes, both in seconds per image."""
    return ResultLine(
        name, other_seconds / seconds, "x", f"{names[0]} {seconds:.2f} s  {names[1]} {other_seconds:.2f} s", threshold
    )
