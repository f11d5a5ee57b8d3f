"""The paper's Table 5: fixed task weights against methods that choose them. Random stratified 5-fold, 5 repeats.

    python train.py --config configs/table5.py --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/table5.py:fixed,dwa,famo --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/table5.py --config.smoke=true

Without names: the paper's four, fixed (alpha 0.4, beta 0.6, gamma 0.1), uncertainty, gradnorm, dwa. Behind the colon
may stand any methods (WeightingMethod in jax_mtlser/config/training.py); how each is set: --config.weights.FIELD.
Cost: 100 members (4 methods x 5 folds x 5 repeats) of 100 epochs; the time of an epoch on your hardware: see
benchmarks/protocol.py. One repeat (20 members) is --config.protocol.repeats=1.

Published (Wang, Yao, Yi 2026), WA: fixed 0.8324, Uncertainty Weighting 0.8140, GradNorm 0.8201, DWA 0.8172. The
paper does not say how the methods were set, and the fixed weights are the best of a search on the same folds.
"""

from jax_mtlser.config import Config, Variant, WeightingMethod
from jax_mtlser.paper import table_1


def get_config(methods: str = "fixed,uncertainty,gradnorm,dwa") -> Config:
    """The configuration.

    Args:
        methods: their names, with commas between.
    """
    names, known = methods.split(","), [method.value for method in WeightingMethod]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no weighting method {unknown[0]!r}; there are {', '.join(known)}")
    config = table_1("table5", folds=5, repeats=5)
    config.variants = tuple(Variant(name=name, overrides={"weights.method": name}) for name in names)
    return config
