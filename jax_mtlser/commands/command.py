"""What every command shares: process set-up, and errors that a user can mend in a few lines."""

import sys
from collections.abc import Callable

from jax_mtlser import runtime
from jax_mtlser.config import ConfigError

__all__ = ["UsageError", "answer_errors", "set_up_process"]


class UsageError(Exception):
    """A command line that cannot be understood; shown without a traceback."""


def set_up_process() -> None:
    """Allocator and compilation cache, before jax starts its backend."""
    runtime.tune_allocator()
    runtime.enable_compilation_cache()


def answer_errors(run: Callable[[], int]) -> int:
    """Run a command; what a user can mend is said in a few lines, anything else keeps its traceback."""
    try:
        return run()
    except (UsageError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        from jax_mtlser.training.interruption import Interrupted

        if isinstance(error, Interrupted):
            print(f"stopped by {error}", file=sys.stderr)
            return 128 + error.signal
        if type(error).__module__.startswith("jax_mtlser."):
            print(f"error: {error}", file=sys.stderr)
            return 1
        raise
