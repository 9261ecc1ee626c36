"""`python -m tensorlrf.cli`."""

import sys

from tensorlrf.cli import main

if __name__ == "__main__":
    sys.exit(main())
