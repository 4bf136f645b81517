"""``python -m rao_kernels.bench``, the same program as ``rao-kernels bench``."""

import sys

from ..errors import MissingDependencyError
from .program import PROG, main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MissingDependencyError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        sys.exit(2)
