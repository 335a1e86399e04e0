"""`python -m components VERB`: the stages with no orchestration installed."""

from components.cli import main

raise SystemExit(main())
