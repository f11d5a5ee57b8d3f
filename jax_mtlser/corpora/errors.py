"""What is raised for a corpus that cannot be used."""

__all__ = ["ManifestError"]


class ManifestError(ValueError):
    """A corpus or table of utterances that cannot be used; the message names file, line and column."""
