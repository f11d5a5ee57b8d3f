"""The paper's Figs. 9 to 11: two auxiliary tasks beside emotion, both weights varied.

    python train.py --config configs/figs9_11.py:alpha_beta  --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/figs9_11.py:alpha_gamma --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/figs9_11.py:gamma_beta  --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/figs9_11.py:alpha_beta --config.smoke=true

alpha weighs gender, beta the speaker, gamma speech recognition; the third weight is 0. Cost: 80 members (16 pairs x
5 folds) for alpha_beta (Fig. 9), 75 (15 pairs) for alpha_gamma (Fig. 10), 60 (12 pairs) for gamma_beta (Fig. 11), of
100 epochs each; the time of an epoch on your hardware: see benchmarks/protocol.py. The paper does not say how often
these were repeated: one repeat here, others with --config.protocol.repeats=N.

Published (Wang, Yao, Yi 2026), best pairs only: alpha 0.2 with beta 0.4; alpha 0.6 with gamma 0.2; beta 0.6 with
gamma 0.1.
"""

from jax_mtlser.config import Config, grid
from jax_mtlser.paper import emotion_alone

PAIRS: dict[str, dict[str, tuple[float, ...]]] = {
    "alpha_beta": {"weights.alpha": (0.0, 0.2, 0.4, 0.6), "weights.beta": (0.2, 0.4, 0.6, 0.8)},
    "alpha_gamma": {"weights.alpha": (0.0, 0.2, 0.4, 0.6, 0.8), "weights.gamma": (0.1, 0.2, 0.3)},
    "gamma_beta": {"weights.gamma": (0.0, 0.1, 0.2, 0.3), "weights.beta": (0.4, 0.6, 0.8)},
}


def get_config(pair: str = "alpha_beta") -> Config:
    """The configuration for one pair of weights.

    Args:
        pair: alpha_beta, alpha_gamma or gamma_beta.
    """
    if pair not in PAIRS:
        raise ValueError(f"there is no pair {pair!r}; there are {', '.join(PAIRS)}")
    config = emotion_alone(f"figs9_11_{pair}", repeats=1)
    config.variants = grid(PAIRS[pair])
    return config
