"""WavLM base+ on IEMOCAP, the paper's four tasks and recipe, one session held out in each of five folds.

    python train.py --config configs/wavlm_base_plus.py --workdir runs/wavlm_base_plus \
        --config.corpus.path=/data/IEMOCAP_full_release

In its fold nothing of the tested session has been heard: neither its two speakers nor their dialogues. For
comparison, with the encoder frozen and emotion alone: WA 67.98 (SUPERB). Whether samples are normalised follows
the checkpoint's preprocessor_config.json: WavLM's base models were pre-trained without.
"""

from jax_mtlser.config import Config
from jax_mtlser.paper import by_session


def get_config() -> Config:
    """The configuration."""
    return by_session("wavlm_base_plus", checkpoint="microsoft/wavlm-base-plus")
