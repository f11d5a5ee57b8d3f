"""Which corpus lies in a folder, by its files."""

import itertools
from collections import Counter
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import audio_files
from jax_mtlser.corpora.crema_d import CREMA_D_NAME
from jax_mtlser.corpora.emo_db import EMO_DB_NAME
from jax_mtlser.corpora.emobox import find_emobox
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.esd import ESD_NAME
from jax_mtlser.corpora.iemocap import find_iemocap
from jax_mtlser.corpora.manifest import find_table
from jax_mtlser.corpora.meld import find_meld
from jax_mtlser.corpora.msp_improv import find_msp_improv
from jax_mtlser.corpora.msp_podcast import find_msp_podcast
from jax_mtlser.corpora.ravdess import RAVDESS_NAME
from jax_mtlser.corpora.savee import SAVEE_NAME
from jax_mtlser.corpora.shemo import SHEMO_NAME
from jax_mtlser.corpora.tess import TESS_NAME

__all__ = ["guess_kind"]

_NAMES = {
    CorpusKind.EMO_DB: EMO_DB_NAME,
    CorpusKind.RAVDESS: RAVDESS_NAME,
    CorpusKind.CREMA_D: CREMA_D_NAME,
    CorpusKind.TESS: TESS_NAME,
    CorpusKind.SAVEE: SAVEE_NAME,
    CorpusKind.ESD: ESD_NAME,
    CorpusKind.SHEMO: SHEMO_NAME,
}
# Recordings that are looked at; stray files of other names may be among them.
_LOOKED_AT = 1000


def guess_kind(path: Path) -> CorpusKind:
    """The kind of the corpus at a path.

    Label files of a release decide first, then a table, then the names of the recordings, of which most have to
    follow one corpus' rule.

    Raises:
        ManifestError: nothing there, or nothing that is known.
    """
    if not path.exists():
        raise ManifestError(f"there is no {path}; name the folder of a corpus, or a table")
    if find_emobox(path):
        return CorpusKind.EMOBOX
    if path.is_file():
        return CorpusKind.TABLE
    found = {
        CorpusKind.IEMOCAP: find_iemocap(path),
        CorpusKind.MSP_IMPROV: find_msp_improv(path),
        CorpusKind.MSP_PODCAST: find_msp_podcast(path),
        CorpusKind.NEMO: (path / "data.tsv").is_file() and (path / "samples").is_dir(),
        CorpusKind.TABLE: find_table(path),
        CorpusKind.MELD: find_meld(path),
    }
    for kind, there in found.items():
        if there:
            return kind
    return _by_names(path)


def _by_names(path: Path) -> CorpusKind:
    files = list(itertools.islice(audio_files(path), _LOOKED_AT))
    fits = Counter(kind for file in files for kind, name in _NAMES.items() if name.fullmatch(file.stem))
    for kind, count in fits.most_common(1):
        if count * 2 > len(files):
            return kind
    seen = f"{len(files)} recordings, such as {files[0].relative_to(path)}" if files else "no recordings"
    raise ManifestError(
        f"{path} is no corpus that is known by its files ({seen}); say which one with --kind, or write a table with a "
        "column 'path' (manifest.csv)"
    )
