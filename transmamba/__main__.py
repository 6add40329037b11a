"""`python -m transmamba VERB ...`: the same as `transmamba VERB ...`."""

import sys

from .cli.main import main

sys.exit(main())
