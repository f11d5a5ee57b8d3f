"""Ways to divide IEMOCAP, with the paper's recipe: how much of a score is the protocol's.

    python train.py --config configs/protocols.py:NAME --config.corpus.path=/data/IEMOCAP_full_release
    jax-mtlser leakage --config configs/protocols.py:NAME --config.corpus.path=/data/IEMOCAP_full_release

NAME                 test part, and what training may know of it
session              one session of five (the default); no speaker, no dialogue
speaker              one speaker of ten, their partner is validated on; no speaker, no dialogue
speaker_dropped      the same, the partner is in no part
speaker_paired       the same, the partner is trained on: the other half of every tested dialogue
dialogue             whole dialogues, 10 folds; speakers are known
file_prefix          the 10 folds of Cai et al. 2021: sessions by who wore the markers; speakers are known
scenario             whole scenarios, 10 folds; no text of a script, but speakers are known
text                 equal transcripts together, 10 folds; speakers and dialogues are known
improvised           one session of five, improvised dialogues only: no scripts at all
random               random utterances, 10 folds (the paper); all of it

The run folder is runs/protocol_NAME.
"""

from jax_mtlser.config import Config, Mates, ProtocolConfig, ProtocolKind
from jax_mtlser.paper import by_session


def _grouped(column: str, folds: int = 0, **further: object) -> ProtocolConfig:
    return ProtocolConfig(kind=ProtocolKind.GROUPED, group_column=column, folds=folds, **further)  # type: ignore[arg-type]


_PROTOCOLS = {
    "session": _grouped("session"),
    "speaker": _grouped("speaker", mate_column="session", mates=Mates.VALIDATION),
    "speaker_dropped": _grouped("speaker", mate_column="session", mates=Mates.DROP),
    "speaker_paired": _grouped("speaker", mate_column="session", mates=Mates.TRAIN),
    "dialogue": _grouped("dialogue", 10),
    "file_prefix": _grouped("id", group_pattern=r"^Ses\d\d[FM]"),
    "scenario": _grouped("scenario", 10),
    "text": _grouped("text", 10),
    "improvised": _grouped("session", filter_column="improvised", filter_values=("yes",)),
    "random": ProtocolConfig(kind=ProtocolKind.STRATIFIED, folds=10),
}


def get_config(name: str = "session") -> Config:
    """The configuration of one division.

    Args:
        name: see above.
    """
    if name not in _PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}; there are {', '.join(_PROTOCOLS)}")
    config = by_session(f"protocol_{name}", checkpoint="facebook/wav2vec2-base")
    config.protocol = _PROTOCOLS[name]
    return config
