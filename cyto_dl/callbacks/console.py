"""Lines of log above a progress bar instead of through it."""

import logging
import sys
from typing import TextIO


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to what sys.stdout is now: while a bar is shown, rich has put a stream there that writes above the bar."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Make the handler.

        Args:
            stream: What hydra's configuration names; sys.stdout is taken instead, each time.
        """
        super().__init__(stream)

    @property
    def stream(self) -> TextIO:
        """The stream of this moment."""
        return sys.stdout

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """Nothing: logging sets it once, to the stream of that moment."""
