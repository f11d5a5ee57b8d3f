"""From a :class:`CorpusConfig` to a manifest."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jax_mtlser.config import CorpusConfig, CorpusKind
from jax_mtlser.corpora.crema_d import read_crema_d
from jax_mtlser.corpora.demo import make_demo_corpus
from jax_mtlser.corpora.emo_db import read_emo_db
from jax_mtlser.corpora.emobox import read_emobox
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.esd import read_esd
from jax_mtlser.corpora.iemocap import read_iemocap
from jax_mtlser.corpora.join import join_manifests
from jax_mtlser.corpora.label_maps import relabelled, select_classes
from jax_mtlser.corpora.manifest import Manifest, read_manifest
from jax_mtlser.corpora.meld import read_meld
from jax_mtlser.corpora.msp_improv import read_msp_improv
from jax_mtlser.corpora.msp_podcast import read_msp_podcast
from jax_mtlser.corpora.nemo import read_nemo
from jax_mtlser.corpora.ravdess import read_ravdess
from jax_mtlser.corpora.releases import RELEASES, require_recordings, require_release
from jax_mtlser.corpora.savee import read_savee
from jax_mtlser.corpora.shemo import read_shemo
from jax_mtlser.corpora.tess import read_tess
from jax_mtlser.runtime import cache_root

__all__ = ["load_corpus", "read_corpus"]

_Progress = Callable[[int, int], None]


def load_corpus(config: CorpusConfig, progress: _Progress | None = None) -> Manifest:
    """Read, or for the demo make, the corpus, judge it by its official release and select its classes.

    Raises:
        ManifestError: it cannot be found or used; the message says what was looked for and where. Counts or
            recordings other than those of the official release are a reason, unless ``config.partial`` is set.
    """
    if config.kind is CorpusKind.JOINED:
        return select_classes(_joined(config, progress), config)
    manifest = read_corpus(config, progress)
    if not config.partial:
        require_release(manifest, config.kind, "corpus.partial")
    manifest = select_classes(manifest, config)
    if not config.partial and config.kind in RELEASES:
        require_recordings(manifest, config.kind, "corpus.partial")
    return manifest


def _joined(config: CorpusConfig, progress: _Progress | None) -> Manifest:
    """All labels of the parts, each judged by its own release."""
    parts = []
    for number, part in enumerate(config.parts):
        setting = f"corpus.parts[{number}].partial"
        alone = CorpusConfig(kind=part.kind, path=part.path, partial=part.partial, demo=config.demo)
        manifest = read_corpus(alone, progress)
        if not part.partial:
            require_release(manifest, part.kind, setting)
            if part.kind in RELEASES:
                require_recordings(manifest, part.kind, setting)
        manifest = relabelled(manifest, part.relabel)
        parts.append(dataclasses.replace(manifest, name=part.name or manifest.name))
    return join_manifests(parts)


def read_corpus(config: CorpusConfig, progress: _Progress | None = None) -> Manifest:
    """Everything that a corpus of any kind but JOINED has on disk, in the corpus' own classes.

    Raises:
        ManifestError: it cannot be found or read.
    """
    path = Path(config.path).expanduser()
    match config.kind:
        case CorpusKind.DEMO:
            size = f"demo-{config.demo.sentences_per_style}-seed{config.demo.seed}"
            folder = path if config.path else cache_root() / "corpora" / size
            return make_demo_corpus(folder, config.demo, progress=progress)
        case CorpusKind.IEMOCAP:
            return read_iemocap(path, votes=config.votes)
        case CorpusKind.MSP_IMPROV:
            return read_msp_improv(path, votes=config.votes)
        case CorpusKind.EMO_DB:
            return read_emo_db(path)
        case CorpusKind.RAVDESS:
            return read_ravdess(path)
        case CorpusKind.CREMA_D:
            return read_crema_d(path)
        case CorpusKind.TESS:
            return read_tess(path)
        case CorpusKind.SAVEE:
            return read_savee(path)
        case CorpusKind.ESD:
            return read_esd(path)
        case CorpusKind.SHEMO:
            return read_shemo(path)
        case CorpusKind.NEMO:
            return read_nemo(path)
        case CorpusKind.MELD:
            return read_meld(path)
        case CorpusKind.MSP_PODCAST:
            return read_msp_podcast(path)
        case CorpusKind.EMOBOX:
            return read_emobox(path)
        case CorpusKind.TABLE:
            return read_manifest(path)
        case CorpusKind.JOINED:
            raise ManifestError("a joined corpus is no single one; its parts are read one by one")
