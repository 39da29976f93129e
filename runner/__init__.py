"""The loop and everything around it. Raises ImportError where another package has the name of one of this project's."""

from importlib.util import find_spec
from pathlib import Path


def _check(root: Path) -> None:
    for name in ("data", "models", "tasks"):
        spec = find_spec(name)
        place = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if place != root / name:
            raise ImportError(
                f"`{name}` is a package of this project ({root / name}), and here it is {place or 'none'}: call yours "
                f"otherwise, or run this where yours is not on Python's path",
                name=name,
            )


_check(Path(__file__).resolve().parent.parent)
