"""A line of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One measured thing. value: with its unit, `x` for ratios of time; detail: what it is made of; bar: what is
    wanted, `high` where more is better, None where it is only shown."""

    name: str
    value: float
    unit: str
    detail: str
    bar: float | None = None
    high: bool = True

    @property
    def ok(self) -> bool:
        return self.bar is None or (self.value >= self.bar if self.high else self.value <= self.bar)

    @property
    def figure(self) -> str:
        """The value in three digits, or all of those before the point."""
        return f"{self.value:.0f}" if abs(self.value) >= 1000 else f"{self.value:.3g}"

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        return f"bar {'≥' if self.high else '≤'} {self.bar:g}{self.unit} {'ok' if self.ok else 'short'}"

    def __str__(self) -> str:
        return f"{self.name:<34} {self.figure:>7}{self.unit:<2} {self.detail}  {self.verdict}".rstrip()


def ratio(
    name: str, ours: float, theirs: float, bar: float | None = None, names: tuple[str, str] = ("ours", "reference")
) -> Line:  # fmt: skip
    """How many times as long the other side takes, both in seconds per picture."""
    return Line(name, theirs / ours, "x", f"{names[0]} {ours:.2f} s  {names[1]} {theirs:.2f} s", bar)
