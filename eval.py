"""Recompute a run's results from its saved models: ``python eval.py --workdir runs/demo``."""

import sys

from jax_mtlser.commands.evaluate import eval_command

if __name__ == "__main__":
    sys.exit(eval_command(sys.argv))
