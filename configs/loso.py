"""Our headline: the paper's four tasks and recipe on IEMOCAP, leave-one-session-out, wav2vec 2.0 base.

    python train.py --config configs/loso.py --workdir runs/loso --config.corpus.path=/data/IEMOCAP_full_release

In its fold nothing of the tested session has been heard: neither its two speakers nor their dialogues. Scenarios and
scripted sentences are those of the other sessions. What that leaves to guess, without training anything:

    jax-mtlser leakage --config configs/loso.py --config.corpus.path=/data/IEMOCAP_full_release

Other divisions of the same corpus are in protocols.py.
"""

from jax_mtlser.config import Config
from jax_mtlser.paper import by_session


def get_config() -> Config:
    """The configuration."""
    return by_session("loso", checkpoint="facebook/wav2vec2-base")
