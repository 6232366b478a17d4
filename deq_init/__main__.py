"""``python -m deq_init`` is the command ``deq-init``."""

import sys

from deq_init.cli import main

sys.exit(main())
