"""The paper's Fig. 2: which encoder. Random stratified 5-fold cross-validation, 5 repeats, the same folds for each.

    python train.py --config configs/fig2.py --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/fig2.py:wavlm-base,wavlm-base-plus --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/fig2.py --config.smoke=true

Without names: wav2vec2-base, hubert-base, wavlm-base. Behind the colon may stand any short names
(jax_mtlser/models/pretrained/presets.py); a single one is a run of its own, runs/fig2_NAME.
Cost: 75 members (3 encoders x 5 folds x 5 repeats) of 100 epochs; the time of an epoch on your hardware: see
benchmarks/protocol.py.

Published (Wang, Yao, Yi 2026): wav2vec 2.0 first, in bars without numbers. Random utterance folds overstate
accuracy; hubert_base.py and wavlm_base_plus.py hold out whole sessions.
"""

from jax_mtlser.config import Config, Variant
from jax_mtlser.models.pretrained.presets import PRESETS
from jax_mtlser.paper import table_1


def get_config(encoders: str = "wav2vec2-base,hubert-base,wavlm-base") -> Config:
    """The configuration.

    Args:
        encoders: short names of the checkpoints, with commas between.
    """
    names = encoders.split(",")
    if unknown := [name for name in names if name not in PRESETS]:
        raise ValueError(f"there is no encoder {unknown[0]!r}; there are {', '.join(PRESETS)}")
    if len(names) == 1:
        return table_1(f"fig2_{names[0]}", folds=5, repeats=5, checkpoint=names[0])
    config = table_1("fig2", folds=5, repeats=5)
    config.variants = tuple(Variant(name=name, overrides={"model.encoder.checkpoint": name}) for name in names)
    return config
