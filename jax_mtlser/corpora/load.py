"""From a :class:`CorpusConfig` to a manifest."""

from collections.abc import Callable
from pathlib import Path

from jax_mtlser.config import CorpusConfig, CorpusKind
from jax_mtlser.corpora.demo import make_demo_corpus
from jax_mtlser.corpora.iemocap import read_iemocap
from jax_mtlser.corpora.manifest import Manifest, keep_emotions, read_manifest
from jax_mtlser.runtime import cache_root

__all__ = ["load_corpus"]


def load_corpus(config: CorpusConfig, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Read, or for the demo make, the corpus.

    Raises:
        ManifestError: it cannot be found or used; the message says what was looked for and where.
    """
    match config.kind:
        case CorpusKind.DEMO:
            size = f"demo-{config.demo.sentences_per_style}-seed{config.demo.seed}"
            folder = Path(config.path).expanduser() if config.path else cache_root() / "corpora" / size
            manifest = make_demo_corpus(folder, config.demo, progress=progress)
        case CorpusKind.IEMOCAP:
            return read_iemocap(Path(config.path).expanduser(), emotions=config.emotions)
        case CorpusKind.TABLE:
            manifest = read_manifest(Path(config.path).expanduser())
    return keep_emotions(manifest, config.emotions)
