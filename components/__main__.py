"""`python -m components VERB`: the stages with no orchestration installed."""

from components.cli import leave, main

if __name__ == "__main__":
    leave(main())
