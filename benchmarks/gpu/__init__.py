"""What a GPU has to show of packed passes and steps, in five minutes on a bare image: `bash benchmarks/gpu.sh OUT`."""

from __future__ import annotations

import time

BEGAN = time.monotonic()
"""Importing torch on a cold machine is part of the time."""
