"""`python -m abyssal` is the `abyssal` command."""

import sys

from abyssal.cli.main import main

sys.exit(main())
