"""``python -m bench``, the same program as ``rao-kernels bench``."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
