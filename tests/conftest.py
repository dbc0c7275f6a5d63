"""Set for all tests."""

import os

# Every model is checked when it is opened; the cache of whoever runs the tests plays no part.
os.environ.setdefault("HEADATLAS_SELF_CHECK", "1")
