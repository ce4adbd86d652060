"""`python -m retrypolicy` is the command `retrypolicy`."""

from retrypolicy.cli import main

raise SystemExit(main())
