"""`python -m cv_hf` is `cv-hf`."""

import sys

from cv_hf.cli import main

sys.exit(main())
