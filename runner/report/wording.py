"""Numbers, shares and durations as a page writes them."""

from __future__ import annotations


def format_number(value: object) -> str:
    """A plain value in few characters: four significant digits, yes or no, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage, with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


def two_digits(value: float, sign: str = "") -> str:
    """A number with two decimals and a true minus; sign: "+" to write it for positive numbers too."""
    return f"{value:{sign}.2f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds, or minutes and hours where these read better: 3.9 s, 35 s, 7.8 min, 2.1 h."""
    if seconds < 120:
        return f"{seconds:.1f}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    return f"{seconds / 60:.1f}\u00a0min" if seconds < 7200 else f"{seconds / 3600:.1f}\u00a0h"


def count(n: int, noun: str) -> str:
    """A number and what is counted: "1 image", "2 images", "1 class", "2 classes"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}{'es' if noun.endswith('s') else 's'}"


def share_of(k: int, n: int, noun: str, one: str, more: str) -> str:
    """A part of what is counted with its verb: "1 of 4 images is", "3 of 4 images are"."""
    return f"{k} of {count(n, noun)} {one if k == 1 else more}"
