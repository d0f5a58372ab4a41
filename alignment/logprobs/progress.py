"""Says now and then how fast scoring goes and how long it still takes."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 10.0


class Progress:
    """Tokens done out of `tokens`, prompts counted with every completion."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.seen = tokens, 0
        self.began = self.said = time.monotonic()

    def done(self, tokens: int) -> None:
        self.seen += tokens
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_REPORTS:
            self.said = now
            rate = self.seen / (now - self.began)
            left = (self.tokens - self.seen) / rate
            logger.info("scored %d of %d tokens, %.0f tokens/s, %.0f s left", self.seen, self.tokens, rate, left)
