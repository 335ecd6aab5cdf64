"""Speech pretraining and fine-tuning: the facts that the scripts share. docs/design.md shows the floors."""

__version__ = "0.1.0"


class InputError(Exception):
    """A fault of the user's flags, files or tables: scripts print its one line and leave with exit code 2."""
