"""The paper's Fig. 2: which encoder. Random stratified 5-fold cross-validation, 5 repeats, one run per encoder.

    python train.py --config configs/fig2.py:wav2vec2-base --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/fig2.py:hubert-base   --config.corpus.path=/data/IEMOCAP_full_release
    python train.py --config configs/fig2.py:wavlm-base    --config.corpus.path=/data/IEMOCAP_full_release

Published (Wang, Yao, Yi 2026): wav2vec 2.0 first, in bars without numbers. Behind the colon may stand any short
name (jax_mtlser/models/pretrained/presets.py); the run folder is runs/fig2_NAME. The folds are the same for every
encoder. Random utterance folds overstate accuracy; hubert_base.py and wavlm_base_plus.py hold out whole sessions.
"""

from jax_mtlser.config import Config
from jax_mtlser.models.pretrained.presets import PRESETS
from jax_mtlser.paper import table_1


def get_config(encoder: str = "wav2vec2-base") -> Config:
    """The configuration for one encoder.

    Args:
        encoder: short name of the checkpoint.
    """
    if encoder not in PRESETS:
        raise ValueError(f"there is no encoder {encoder!r}; there are {', '.join(PRESETS)}")
    return table_1(f"fig2_{encoder}", folds=5, repeats=5, checkpoint=encoder)
