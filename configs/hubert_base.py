"""HuBERT base on IEMOCAP, the paper's four tasks and recipe, one session held out in each of five folds.

    python train.py --config configs/hubert_base.py --workdir runs/hubert_base \
        --config.corpus.path=/data/IEMOCAP_full_release

In its fold nothing of the tested session has been heard: neither its two speakers nor their dialogues. For
comparison, with the encoder frozen and emotion alone: WA 64.92 (SUPERB), WA 63.10, UA 63.87 (EmoBox). As with
wav2vec2-base, samples are normalised and GroupNorm statistics exclude padding.
"""

from jax_mtlser.config import Config
from jax_mtlser.paper import by_session


def get_config() -> Config:
    """The configuration."""
    return by_session("hubert_base", checkpoint="facebook/hubert-base-ls960")
