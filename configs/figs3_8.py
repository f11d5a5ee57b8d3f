"""The paper's Figs. 3 to 8: one auxiliary task beside emotion, its weight varied; scores over epochs.

    python train.py --config configs/figs3_8.py:alpha --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/figs3_8.py:beta  --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/figs3_8.py:gamma --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/figs3_8.py:alpha --config.smoke=true

alpha weighs gender (Figs. 3, 4), beta the speaker (Figs. 5, 6), gamma speech recognition (Figs. 7, 8); the other two
are 0. Cost of each: 25 members (5 weights x 5 folds) of 100 epochs; the time of an epoch on your hardware: see
benchmarks/protocol.py. The paper does not say how often these were repeated: one repeat here, others with
--config.protocol.repeats=N.

Published (Wang, Yao, Yi 2026), as curves without numbers: best alpha = 0.4, best beta = 0.6, best gamma = 0.2. Our
curves are those of the validation parts; the table is of the test parts.
"""

from jax_mtlser.config import Config, grid
from jax_mtlser.paper import emotion_alone

WEIGHTS = {
    "alpha": (0.0, 0.2, 0.4, 0.6, 1.0),
    "beta": (0.0, 0.2, 0.6, 0.8, 1.0),
    "gamma": (0.0, 0.1, 0.2, 0.4, 1.0),
}


def get_config(weight: str = "alpha") -> Config:
    """The configuration for one weight.

    Args:
        weight: alpha, beta or gamma.
    """
    if weight not in WEIGHTS:
        raise ValueError(f"there is no weight {weight!r}; there are {', '.join(WEIGHTS)}")
    config = emotion_alone(f"figs3_8_{weight}", repeats=1)
    config.variants = grid({f"weights.{weight}": WEIGHTS[weight]})
    return config
