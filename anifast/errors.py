"""The errors a user can put right. The command line prints them as one line and exits with 1."""

from __future__ import annotations


class AnifastError(Exception):
    """Base of all errors whose message names the thing at fault and the way out."""


class DataError(AnifastError):
    """A data folder, picture or cache that cannot be used."""


class ImageError(DataError):
    """One picture that cannot be read; the message starts with its path."""


class CheckpointError(AnifastError):
    """A run folder or checkpoint file that cannot be used."""


class BackendError(AnifastError, RuntimeError):
    """A backend that was asked for explicitly and is not available here."""


class ToldElsewhere(AnifastError):
    """The run ends for a reason that another of its processes tells; this one ends in silence."""
