"""The four-task model: one encoder, four heads."""

import dataclasses

import flax.linen as nn
import flax.struct
from jaxtyping import Array, Float, Int

from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.config import HeadInput
from jax_mtlser.models.heads import Head, HeadInputs, logits, utterance_logits
from jax_mtlser.models.layer_norm import standardised
from jax_mtlser.models.layers import masked_mean
from jax_mtlser.models.speech_encoder import speech_encoder
from jax_mtlser.models.transformer import EncoderOptions

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
    """Hard parameter sharing: every task reads the same encoder.

    Attributes:
        arch: of the encoder.
        sizes: of the heads.
        options: how the encoder is computed.
        head_input: what the heads read.
        frozen_encoder: the encoder is not trained at all, so it runs without dropout and SpecAugment.
    """

    arch: EncoderArchitecture
    sizes: HeadSizes
    options: EncoderOptions = EncoderOptions()
    head_input: HeadInput = HeadInput.LAST
    frozen_encoder: bool = False

    @nn.compact
    def __call__(self, audio: Float[Array, "B S"], lengths: Int[Array, " B"], *, train: bool) -> MultitaskOutput:
        encoder = speech_encoder(self.arch, self.options, name="encoder")
        every_layer = self.head_input is HeadInput.WEIGHTED_SUM
        encoded = encoder(audio, lengths, train=train and not self.frozen_encoder, output_hidden_states=every_layer)
        frames, mask = encoded.frames, encoded.mask
        pooled = masked_mean(frames, mask)
        frames_read: Array | list[Array] = frames
        pooled_read: Array | list[Array] = pooled
        if every_layer:
            assert encoded.hidden_states is not None
            # The last layer as the encoder gives it: behind the final norm, where there is one. All on one scale:
            # in some encoders a few channels of some layers are hundreds of times larger than everything else, and
            # neither the layers' weights nor a head's kernel could learn beside them.
            frames_read = [standardised(layer) for layer in (*encoded.hidden_states[:-1], frames)]
            pooled_read = [masked_mean(layer, mask) for layer in frames_read]

        def read(name: str, x: Array | list[Array]) -> HeadInputs:
            return Head(getattr(self.sizes, name), self.arch.final_dropout, name=f"{name}_head")(x, train=train)

        tasks = [task for task in ("emotion", "gender", "speaker") if getattr(self.sizes, task)]
        classes = dict(zip(tasks, utterance_logits([read(task, pooled_read) for task in tasks]), strict=True))
        return MultitaskOutput(
            emotion=classes.get("emotion"),
            gender=classes.get("gender"),
            speaker=classes.get("speaker"),
            asr=logits(read("asr", frames_read)) if self.sizes.asr else None,
            frame_lengths=encoded.lengths,
            embedding=pooled,
        )
