"""Train a configuration: ``python train.py --config configs/demo.py --workdir runs/demo``."""

import sys

from jax_mtlser.commands.train import train_command

if __name__ == "__main__":
    sys.exit(train_command(sys.argv))
