"""`python -m d2vpr_hf`, for where the command `d2vpr` isn't on the path."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
