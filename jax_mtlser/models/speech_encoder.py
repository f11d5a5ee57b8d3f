"""The encoder that an architecture describes: samples in, frames out, whatever its family.

Every encoder is a Flax module that is called as

    encoder(audio, lengths, train=False, output_hidden_states=False) -> EncoderOutput

``audio`` is float32 [B, S] at 16 kHz, normalised as the checkpoint asks and zero behind each utterance; ``lengths``
is int32 [B], the samples that belong to each utterance, 0 for rows that only fill the batch. ``train`` switches on
dropout, SpecAugment and LayerDrop, each with its own random stream (``dropout``, ``spec_augment``, ``layerdrop``).
Whisper's frequencies are warped, where its architecture asks for it, whenever there is a stream ``frequency_warp``: in
front of a frozen encoder too. An utterance's frames do not depend on its batch or bucket.
"""

from jax_mtlser.architecture import EncoderArchitecture, Wav2Vec2Architecture, WhisperArchitecture
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.models.wav2vec2_encoder import Wav2Vec2Encoder
from jax_mtlser.models.whisper_encoder import WhisperEncoder

__all__ = ["SpeechEncoder", "speech_encoder"]

SpeechEncoder = Wav2Vec2Encoder | WhisperEncoder


def speech_encoder(arch: EncoderArchitecture, options: EncoderOptions, name: str | None = None) -> SpeechEncoder:
    """The module of an architecture.

    Args:
        arch: what is computed.
        options: how it is computed.
        name: of the module in its parent's parameters.
    """
    match arch:
        case Wav2Vec2Architecture():
            return Wav2Vec2Encoder(arch, options, name=name)
        case WhisperArchitecture():
            return WhisperEncoder(arch, options, name=name)
    raise TypeError(f"{type(arch).__name__} is no architecture of an encoder here")
