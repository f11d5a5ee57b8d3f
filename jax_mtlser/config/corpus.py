"""Settings of the corpus: which utterances, which classes, and how recordings become samples."""

import dataclasses
import enum

__all__ = ["AudioConfig", "ClassSet", "CorpusConfig", "CorpusKind", "CorpusPart", "DemoConfig"]


class CorpusKind(enum.Enum):
    """Where the utterances come from; the reader of each is in the file of its name in ``corpora/``."""

    DEMO = "demo"  # synthesised on the spot
    IEMOCAP = "iemocap"  # and all up to MSP_PODCAST: the folder of the official release
    EMO_DB = "emo_db"
    RAVDESS = "ravdess"
    CREMA_D = "crema_d"
    TESS = "tess"
    SAVEE = "savee"
    ESD = "esd"
    SHEMO = "shemo"
    NEMO = "nemo"
    MELD = "meld"
    MSP_IMPROV = "msp_improv"
    MSP_PODCAST = "msp_podcast"
    EMOBOX = "emobox"  # a corpus as EmoBox's lists describe it, with their folds
    TABLE = "table"  # a CSV or JSONL file, one row per utterance, see manifest.py
    JOINED = "joined"  # several of these as one, see ``CorpusConfig.parts``


class ClassSet(enum.Enum):
    """Which emotions are told apart; corpora/label_maps.py says which labels each class holds."""

    USUAL = "usual"  # what results on this corpus are reported on; for most corpora all their classes
    FOUR = "four"  # angry, happy (with excited), neutral, sad
    FIVE = "five"  # these and frustrated
    SIX = "six"  # these with excited apart from happy
    BASIC = "basic"  # the six basic emotions and neutral
    NINE = "nine"  # all that IEMOCAP's annotators could choose, except "other"
    ALL = "all"  # every label; utterances on which the annotators did not agree stay without emotion


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
class CorpusPart:
    """One of several corpora that are joined.

    Attributes:
        kind: the reader; not JOINED.
        path: as in :class:`CorpusConfig`.
        name: stands in front of ids, speakers and groups and in the column ``corpus``; empty: the corpus' own.
        relabel, partial: as in :class:`CorpusConfig`.
    """

    kind: CorpusKind
    path: str = ""
    name: str = ""
    relabel: dict[str, str] = dataclasses.field(default_factory=dict)
    partial: bool = False


@dataclasses.dataclass(kw_only=True)
class CorpusConfig:
    """Which utterances there are.

    Attributes:
        kind: the reader.
        path: folder of the official release; table: the CSV or JSONL file, or a folder that holds
            ``metadata.csv`` or ``manifest.csv``; emobox: a corpus' folder of lists, or one list; demo: where to
            write it (default: the user's cache).
        classes: the emotions that are told apart.
        emotions: of these classes the ones to keep, in the order of the model's outputs; empty keeps all, sorted.
        relabel: emotions of the corpus that get another name before classes are formed, such as
            ``{"calm": "neutral"}``; set in the configuration file.
        partial: take a release as it is, although utterances or recordings of the official one are missing.
        votes: keep how many annotators chose each emotion, as columns ``votes_angry`` and so on (IEMOCAP,
            MSP-IMPROV).
        parts: the corpora to join (JOINED).
        demo: size of the demo corpus.
    """

    kind: CorpusKind
    path: str = ""
    classes: ClassSet = ClassSet.USUAL
    emotions: tuple[str, ...] = ()
    relabel: dict[str, str] = dataclasses.field(default_factory=dict)
    partial: bool = False
    votes: bool = False
    parts: tuple[CorpusPart, ...] = ()
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
