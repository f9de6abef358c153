"""`python -m cutaway` is `cutaway`."""

import sys

from cutaway.cli.main import main

sys.exit(main())
