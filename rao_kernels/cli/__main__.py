"""`python -m rao_kernels.cli` is `rao-kernels`."""

import sys

from .main import main

sys.exit(main())
