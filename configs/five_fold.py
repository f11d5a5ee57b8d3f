"""The paper's 5-fold experiment: as ``ten_fold.py``, with 5 folds and 5 repeats.

    python train.py --config configs/five_fold.py --workdir runs/five_fold \
        --config.corpus.path=/data/IEMOCAP_full_release

Cost: 25 members (5 folds x 5 repeats) of 100 epochs; the time of an epoch on your hardware: see
benchmarks/protocol.py. In small: --config.smoke=true.

Published: WA 83.24 +- 0.75, UA 83.36 +- 0.73 (Wang, Yao, Yi 2026, Table 2).
"""

from jax_mtlser.config import Config
from jax_mtlser.paper import table_1


def get_config() -> Config:
    """The configuration."""
    return table_1("five_fold", folds=5, repeats=5)
