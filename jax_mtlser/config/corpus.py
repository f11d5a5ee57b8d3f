"""Settings of the corpus: which utterances, and how recordings become samples."""

import dataclasses
import enum

__all__ = ["AudioConfig", "CorpusConfig", "CorpusKind", "DemoConfig"]


class CorpusKind(enum.Enum):
    """Where the utterances come from."""

    DEMO = "demo"  # synthesised on the spot, see corpora/demo.py
    IEMOCAP = "iemocap"  # the official full release
    TABLE = "table"  # a CSV file, one row per utterance, see corpora/manifest.py


@dataclasses.dataclass(kw_only=True)
class DemoConfig:
    """Size of the synthesised demo corpus.

    Attributes:
        sentences_per_style: utterances for each of the 10 voices in each of the 4 styles.
        seed: everything about the corpus follows from it.
    """

    sentences_per_style: int = 20
    seed: int = 0


@dataclasses.dataclass(kw_only=True)
class CorpusConfig:
    """Which utterances there are.

    Attributes:
        kind: the loader.
        path: IEMOCAP: the folder ``IEMOCAP_full_release``; table: the CSV file or a folder that holds
            ``metadata.csv`` or ``manifest.csv``; demo: where to write it (default: the user's cache).
        emotions: the classes to keep, in the order of the model's outputs; empty keeps all, sorted.
        demo: size of the demo corpus.
    """

    kind: CorpusKind
    path: str = ""
    emotions: tuple[str, ...] = ()
    demo: DemoConfig = dataclasses.field(default_factory=DemoConfig)


@dataclasses.dataclass(kw_only=True)
class AudioConfig:
    """How recordings become samples at 16 kHz.

    Attributes:
        min_seconds: shorter recordings are listed and left out.
        max_seconds: longer recordings are listed and left out.
        silence_dbfs: recordings whose peak stays below this level are listed and left out.
        cache_dir: where decoded corpora are kept; default ``$XDG_CACHE_HOME/jax_mtlser``.
    """

    min_seconds: float = 0.1
    max_seconds: float = 35.0
    silence_dbfs: float = -60.0
    cache_dir: str = ""
