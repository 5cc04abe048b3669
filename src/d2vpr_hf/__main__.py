"""`python -m d2vpr_hf`, for where the command `d2vpr` isn't on the path."""

from .cli.main import main

raise SystemExit(main())
