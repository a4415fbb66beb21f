"""`python -m eupe_pipeline.pipeline …` is `eupe-pipeline …`, for an environment whose scripts are not on the path."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main())
