"""Set for all tests."""

import os

from hypothesis import settings

# Every model is checked when it is opened; the cache of whoever runs the tests plays no part.
os.environ.setdefault("HEADATLAS_SELF_CHECK", "1")

# A machine may be busy. The deadline is there to notice what never ends, such as a reader led astray.
settings.register_profile("headatlas", deadline=60_000)
settings.load_profile("headatlas")
