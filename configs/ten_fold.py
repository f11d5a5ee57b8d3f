"""The paper's main experiment: four tasks on IEMOCAP, random stratified 10-fold cross-validation, 10 repeats.

    python train.py --config configs/ten_fold.py --workdir runs/ten_fold \
        --config.corpus.path=/data/IEMOCAP_full_release

Wang, Yao, Yi (Appl. Sci. 2026, 16(10), 5166), Table 1 and 2: wav2vec 2.0 base, AdamW, learning rate 1e-5, batches
of 8, 100 epochs, alpha 0.4, beta 0.6, gamma 0.1; published WA 83.86 +- 0.66, UA 84.23 +- 0.63.

Cost: 100 members (10 folds x 10 repeats) of 100 epochs; the time of an epoch on your hardware: see
benchmarks/protocol.py. In small: --config.smoke=true.

What the paper leaves open is listed in ``jax_mtlser/paper.py``. One repeat is --config.protocol.repeats=1, one fold
--config.protocol.only_folds=0.

Random utterance folds put turns of one dialogue on both sides; read the warning that the report prints.
"""

from jax_mtlser.config import Config
from jax_mtlser.paper import table_1


def get_config() -> Config:
    """The configuration."""
    return table_1("ten_fold", folds=10, repeats=10)
