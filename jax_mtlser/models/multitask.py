"""The four-task model: one encoder, four heads."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.config import HeadInput
from jax_mtlser.models.gradient_scale import scale_gradient
from jax_mtlser.models.heads import Head, HeadInputs, logits, utterance_logits
from jax_mtlser.models.layer_norm import standardised
from jax_mtlser.models.layers import masked_mean
from jax_mtlser.models.positional_conv import with_spectra
from jax_mtlser.models.speech_encoder import speech_encoder
from jax_mtlser.models.transformer import EncoderOptions, EncoderOutput

__all__ = ["TASKS", "UTTERANCE_TASKS", "HeadSizes", "MultitaskModel", "MultitaskOutput", "ready_to_multiply"]

UTTERANCE_TASKS = ("emotion", "gender", "speaker")  # one label each
TASKS = (*UTTERANCE_TASKS, "asr")


def ready_to_multiply(params: Any, dtype: DTypeLike) -> Any:
    """Parameters of the model with the encoder's kernels as its products take them: nothing that it says changes but by
    rounding.

    In training they are float32, and each step casts or transforms them; where they stay the same, once is enough.
    """

    def cast(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [entry.key for entry in path]
        # The first convolution may be computed in float32 whatever the type, see normalised_conv.
        multiplied = names[0] == "encoder" and names[-1] == "kernel" and "conv_0" not in names
        return leaf.astype(dtype) if multiplied else leaf

    ready = jax.tree_util.tree_map_with_path(cast, params)
    encoder = ready["encoder"]
    if "positional_conv" not in encoder:
        return ready
    return {**ready, "encoder": {**encoder, "positional_conv": with_spectra(encoder["positional_conv"])}}


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
        pooled: [B, D] what the heads of utterances read as long as they weigh all layers alike: with
            ``HeadInput.LAST``, the embedding.
    """

    emotion: Array | None
    gender: Array | None
    speaker: Array | None
    asr: Array | None
    frame_lengths: Array
    embedding: Array
    pooled: Array


class MultitaskModel(nn.Module):
    """Hard parameter sharing: every task reads the same encoder.

    Attributes:
        arch: of the encoder.
        sizes: of the heads.
        options: how the encoder is computed.
        head_input: what the heads read.
        frozen_encoder: the encoder is not trained at all, so it runs without dropout and SpecAugment; warped
            frequencies reach it.
    """

    arch: EncoderArchitecture
    sizes: HeadSizes
    options: EncoderOptions = EncoderOptions()
    head_input: HeadInput = HeadInput.LAST
    frozen_encoder: bool = False

    def setup(self) -> None:
        self.encoder = speech_encoder(self.arch, self.options)
        self.emotion_head = self._head(self.sizes.emotion)
        self.gender_head = self._head(self.sizes.gender)
        self.speaker_head = self._head(self.sizes.speaker)
        self.asr_head = self._head(self.sizes.asr)

    def _head(self, classes: int) -> Head | None:
        return Head(classes, self.arch.final_dropout) if classes else None

    def __call__(
        self,
        audio: Float[Array, "B S"] | None,
        lengths: Int[Array, " B"],
        *,
        train: bool,
        frozen: Sequence[Array] | None = None,
        gradient_factors: Mapping[str, Array] | None = None,
    ) -> MultitaskOutput:
        """Encode a batch and read every head; see :meth:`encode` for ``frozen``, :meth:`read` for the factors."""
        encoded = self.encode(audio, lengths, train=train, frozen=frozen)
        return self.read(encoded, train=train, gradient_factors=gradient_factors)

    def encode(
        self,
        audio: Float[Array, "B S"] | None,
        lengths: Int[Array, " B"],
        *,
        train: bool,
        frozen: Sequence[Array] | None = None,
    ) -> EncoderOutput:
        """What all heads share.

        Args:
            audio: not needed with ``frozen``.
            lengths: samples of each utterance.
            train: switches on dropout.
            frozen: from :func:`~jax_mtlser.models.frozen.frozen_frames`, zero on padding: what the frozen part of the
                encoder gives for these utterances.
        """
        every_layer = self.head_input is HeadInput.WEIGHTED_SUM
        if frozen is not None and self.frozen_encoder:
            return EncoderOutput(frozen[-1], self.arch.num_frames(lengths), tuple(frozen) if every_layer else None)
        known: dict[str, Any] = {} if frozen is None else {"features": frozen[0]}
        train = train and not self.frozen_encoder
        heard: Any = audio
        return self.encoder(heard, lengths, train=train, output_hidden_states=every_layer, **known)

    def read(
        self,
        encoded: EncoderOutput,
        *,
        train: bool,
        copies: Mapping[str, EncoderOutput] | None = None,
        gradient_factors: Mapping[str, Array] | None = None,
    ) -> MultitaskOutput:
        """Logits of all heads.

        Args:
            encoded: from :meth:`encode`.
            train: switches on dropout.
            copies: the same by task, where each is to have a gradient of its own.
            gradient_factors: by task, what its gradient is multiplied by on its way into the encoder; tasks without
                one have 1.
        """

        shared = self._frames_and_means(encoded)

        def inputs(task: str) -> HeadInputs:
            frames, means = shared if copies is None else self._frames_and_means(copies[task])
            x = frames if task == "asr" else means
            if gradient_factors and task in gradient_factors:
                x = jax.tree.map(lambda layer: scale_gradient(layer, gradient_factors[task]), x)
            return getattr(self, f"{task}_head")(x, train=train)

        tasks = [task for task in UTTERANCE_TASKS if getattr(self.sizes, task)]
        classes = dict(zip(tasks, utterance_logits([inputs(task) for task in tasks]), strict=True))
        pooled = shared[1] if isinstance(shared[1], list) else [shared[1]]
        return MultitaskOutput(
            emotion=classes.get("emotion"),
            gender=classes.get("gender"),
            speaker=classes.get("speaker"),
            asr=logits(inputs("asr")) if self.sizes.asr else None,
            frame_lengths=encoded.lengths,
            embedding=masked_mean(encoded.frames, encoded.mask),
            pooled=sum(layer.astype(jnp.float32) for layer in pooled) / len(pooled),
        )

    def _frames_and_means(self, encoded: EncoderOutput) -> tuple[Any, Any]:
        """What the heads read of every frame, and of utterances: one array, or one for each layer."""
        frames: Array | list[Array] = encoded.frames
        if self.head_input is HeadInput.WEIGHTED_SUM:
            assert encoded.hidden_states is not None
            # The last layer as the encoder gives it: behind the final norm, where there is one. All on one scale:
            # in some encoders a few channels of some layers are hundreds of times larger than everything else, and
            # neither the layers' weights nor a head's kernel could learn beside them.
            frames = [standardised(layer) for layer in (*encoded.hidden_states[:-1], encoded.frames)]
        return frames, jax.tree.map(lambda layer: masked_mean(layer, encoded.mask), frames)
