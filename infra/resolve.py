"""Write the lock of what this environment has installed of StepForge's requirements, and of theirs in turn.

Knows nothing of where packages come from. Run by `make lock` in an environment that passes the tests.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(root: str, extras: set[str]) -> dict[str, str]:
    """Package -> version of everything that `root[extras]` needs here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(root), frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(
                f"error: {name}: required, but not installed\nhint: install it, run the tests, lock again"
            ) from None
        found[name] = package.version.split("+")[0]  # a local build such as +cpu is the machine's choice
        for line in package.requires or []:
            need = Requirement(line)
            markers = [{"extra": extra} for extra in wanted or {""}]
            if need.marker is None or any(need.marker.evaluate(m) for m in markers):
                waiting.append((canonicalize_name(need.name), frozenset(need.extras)))
    found.pop(canonicalize_name(root))
    return found


if __name__ == "__main__":
    for name, version in sorted(closure("stepforge", set(sys.argv[1:])).items()):
        print(f"{name}=={version}")
