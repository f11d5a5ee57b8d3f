"""The four-task model: one encoder, four heads."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_mtlser.config import EncoderArchitecture
from jax_mtlser.models.heads import Head
from jax_mtlser.models.layers import frame_mask, masked_mean
from jax_mtlser.models.speech_encoder import SpeechEncoder

__all__ = ["HeadSizes", "MultitaskModel", "MultitaskOutput"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSizes:
    """Classes of each head; 0 leaves the head out.

    Attributes:
        emotion, gender, speaker: classes.
        asr: CTC symbols, blank included.
    """

    emotion: int = 0
    gender: int = 0
    speaker: int = 0
    asr: int = 0


@flax.struct.dataclass
class MultitaskOutput:
    """Logits, float32; None for a head that the model does not have.

    Attributes:
        emotion, gender, speaker: [B, C].
        asr: [B, T, V].
        frame_lengths: [B] frames that belong to each utterance.
        embedding: [B, D] frames averaged over the utterance (v* in the paper).
    """

    emotion: Array | None
    gender: Array | None
    speaker: Array | None
    asr: Array | None
    frame_lengths: Array
    embedding: Array


class MultitaskModel(nn.Module):
    """Hard parameter sharing: every task reads the same encoder frames.

    Attributes:
        arch: of the encoder.
        sizes: of the heads.
        dtype: compute type of the encoder.
        hf_compat: see :class:`~jax_mtlser.models.feature_encoder.FeatureEncoder`.
    """

    arch: EncoderArchitecture
    sizes: HeadSizes
    dtype: DTypeLike = jnp.float32
    hf_compat: bool = False

    @nn.compact
    def __call__(self, audio: Float[Array, "B S"], lengths: Int[Array, " B"], *, train: bool) -> MultitaskOutput:
        encoded = SpeechEncoder(self.arch, self.dtype, self.hf_compat, name="encoder")(audio, lengths, train=train)
        pooled = masked_mean(encoded.frames, frame_mask(encoded.lengths, encoded.frames.shape[1]))

        def read(name: str, x: Array) -> Array | None:
            classes = getattr(self.sizes, name)
            if not classes:
                return None
            return Head(classes, self.arch.final_dropout, name=f"{name}_head")(x, train=train)

        return MultitaskOutput(
            emotion=read("emotion", pooled),
            gender=read("gender", pooled),
            speaker=read("speaker", pooled),
            asr=read("asr", encoded.frames),
            frame_lengths=encoded.lengths,
            embedding=pooled,
        )
