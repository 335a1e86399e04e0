"""Writes docs/commands.md from the parser itself, or with --check fails where the two differ.

Knows nothing of what the verbs do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from flows.cli import whole_parser

PAGE = Path(__file__).with_name("commands.md")


def page() -> str:
    """Every verb with its help, as Markdown."""
    os.environ["COLUMNS"] = "100"
    parser = whole_parser()
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = ["# Commands\n\nWritten by `make docs` from the parser; `make check` fails where the two differ.\n"]
    parts += [f"\n## stepforge {name}\n\n```text\n{sub.format_help()}```\n" for name, sub in _every(verbs)]
    return "".join(parts)


def _every(verbs: argparse._SubParsersAction) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every verb, and below it the verbs that it has itself."""
    for name, sub in verbs.choices.items():
        yield name, sub
        for action in sub._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from ((f"{name} {inner}", parser) for inner, parser in _every(action))


def main() -> int:
    """Write, or check with --check."""
    if "--check" not in sys.argv:
        PAGE.write_text(page())
        return 0
    if not PAGE.exists() or PAGE.read_text() != page():
        print("error: docs/commands.md: differs from the parser\nhint: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
