"""Multi-task speech emotion recognition in JAX: emotion, gender, speaker and speech recognition at once.

Letters in shape annotations, everywhere in this package:

=====  =========================================
``B``  utterances in a batch
``S``  audio samples (16 kHz), padded
``T``  encoder frames
``M``  spectrogram frames
``F``  mel channels
``D``  hidden size
``H``  attention heads
``V``  CTC symbols, blank included
``N``  transcript length in symbols, padded
``C``  classes
``P``  population members
=====  =========================================
"""

from typing import TYPE_CHECKING, Any

from jax_mtlser import runtime

if TYPE_CHECKING:
    from jax_mtlser.inference.recognizer import Recognizer

__all__ = ["Recognizer"]

__version__ = "0.1.0"

# Before anything of JAX can run: see runtime.py for the wrong results that this keeps away.
runtime.prepare_xla()


def __getattr__(name: str) -> Any:
    # On first use: whoever wants something else need not wait for JAX.
    if name == "Recognizer":
        from jax_mtlser.inference.recognizer import Recognizer

        return Recognizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
