"""`python -m components VERB`: the stages with no orchestration installed."""

from components.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
