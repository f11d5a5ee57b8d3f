"""What is raised for a configuration that cannot be run."""

__all__ = ["ConfigError"]


class ConfigError(ValueError):
    """A configuration that cannot be run. The message names each value, its limit and the fix."""
