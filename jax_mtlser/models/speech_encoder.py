"""The wav2vec 2.0 encoder, exact under padding: an utterance's frames do not depend on its batch or bucket."""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_mtlser.config import EncoderArchitecture
from jax_mtlser.models import products
from jax_mtlser.models.attention import EncoderLayer
from jax_mtlser.models.feature_encoder import FeatureEncoder, FeatureProjection
from jax_mtlser.models.layers import activation, frame_mask, layer_norm
from jax_mtlser.models.spec_augment import span_mask

__all__ = ["EncoderOutput", "SpeechEncoder"]


@flax.struct.dataclass
class EncoderOutput:
    """What an encoder gives.

    Attributes:
        frames: [B, T, D] last hidden state; zero on padding.
        lengths: [B] frames that belong to each utterance.
        hidden_states: input of the first layer and output of every layer, [B, T, D] each (not masked, and before
            the final norm of pre-LN encoders), as transformers 5's ``output_hidden_states``; None unless asked for.
    """

    frames: Array
    lengths: Array
    hidden_states: tuple[Array, ...] | None = None


class SpeechEncoder(nn.Module):
    """Feature encoder, projection, SpecAugment, positional convolution and transformer layers.

    Random streams: ``dropout``, ``spec_augment``, ``layerdrop``; used only with ``train=True``.

    Attributes:
        arch: shape and regularisation.
        dtype: compute type.
        hf_compat: see :class:`FeatureEncoder`.
    """

    arch: EncoderArchitecture
    dtype: DTypeLike = jnp.float32
    hf_compat: bool = False

    @nn.compact
    def __call__(
        self,
        audio: Float[Array, "B S"],
        lengths: Int[Array, " B"],
        *,
        train: bool,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """Encode a batch.

        Args:
            audio: samples at 16 kHz, normalised as the checkpoint asks, zero behind each utterance.
            lengths: samples that belong to each utterance; 0 for rows that only fill the batch.
            train: dropout, SpecAugment and LayerDrop are active.
            output_hidden_states: also return every layer's output.
        """
        arch = self.arch
        features = FeatureEncoder(arch, self.dtype, self.hf_compat, name="feature_encoder")(audio, lengths)
        frame_lengths = jnp.clip(arch.num_frames(lengths), 0, features.shape[1])
        mask = frame_mask(frame_lengths, features.shape[1])

        x = FeatureProjection(arch, self.dtype, name="feature_projection")(features, train=train)
        x = self._spec_augment(x, frame_lengths, train)
        x = jnp.where(mask[..., None], x, 0)  # the positional convolution must see silence, not padding
        x = x + _PositionalConv(arch, self.dtype, name="positional_conv")(x)
        final_norm = layer_norm("norm", self.dtype, arch.layer_norm_eps)
        if not arch.do_stable_layer_norm:
            x = final_norm(x)
        x = nn.Dropout(arch.hidden_dropout, deterministic=not train)(x)

        hidden_states = [x]
        for index in range(arch.num_hidden_layers):
            y = EncoderLayer(arch, self.dtype, name=f"layer_{index}")(x, mask, train=train)
            x = self._layerdrop(x, y, train)
            hidden_states.append(x)
        if arch.do_stable_layer_norm:
            x = final_norm(x)
        return EncoderOutput(
            frames=jnp.where(mask[..., None], x, 0),
            lengths=frame_lengths,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )

    def _spec_augment(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"], train: bool) -> Float[Array, "B T D"]:
        arch = self.arch
        if arch.mask_time_prob <= 0 and arch.mask_feature_prob <= 0:
            return x
        # The parameter belongs to the checkpoint, whether or not this run augments.
        embedding = self.param("masked_frame", jax.nn.initializers.uniform(1.0), (arch.hidden_size,))
        if not (train and arch.apply_spec_augment):
            return x
        time_key, feature_key = jax.random.split(self.make_rng("spec_augment"))
        if arch.mask_time_prob > 0:
            masked = span_mask(
                time_key, lengths, x.shape[1],
                probability=arch.mask_time_prob, span=arch.mask_time_length, min_spans=arch.mask_time_min_masks,
            )  # fmt: skip
            x = jnp.where(masked[..., None], embedding.astype(x.dtype)[None, None], x)
        if arch.mask_feature_prob > 0:
            channels = jnp.full_like(lengths, x.shape[2])
            masked = span_mask(
                feature_key, channels, x.shape[2],
                probability=arch.mask_feature_prob, span=arch.mask_feature_length,
                min_spans=arch.mask_feature_min_masks,
            )  # fmt: skip
            x = jnp.where(masked[:, None, :], 0, x)
        return x

    def _layerdrop(self, x: Float[Array, "B T D"], y: Float[Array, "B T D"], train: bool) -> Float[Array, "B T D"]:
        if not train or self.arch.layerdrop <= 0:
            return y
        # A select, not a branch: under vmap over members each member drops its own layers.
        dropped = jax.random.bernoulli(self.make_rng("layerdrop"), self.arch.layerdrop)
        return jnp.where(dropped, x, y)


class _PositionalConv(nn.Module):
    """Convolutional relative position: wide grouped convolution with weight normalisation, then activation."""

    arch: EncoderArchitecture
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        arch = self.arch
        width, group_size = (
            arch.num_conv_pos_embeddings,
            arch.hidden_size // arch.num_conv_pos_embedding_groups,
        )
        std = 2.0 * math.sqrt(1.0 / (width * arch.hidden_size))
        direction = self.param("direction", jax.nn.initializers.normal(std), (width, group_size, arch.hidden_size))
        # One gain per tap: PyTorch's weight_norm(dim=2).
        gain = self.param("gain", lambda key: _tap_norm(direction))
        bias = self.param("bias", jax.nn.initializers.zeros, (arch.hidden_size,))
        kernel = direction * (gain / _tap_norm(direction))[:, None, None]
        x = products.same_grouped_conv(x, kernel, self.dtype) + bias.astype(self.dtype)[None, None]
        return activation(arch.feat_extract_activation)(x)


def _tap_norm(direction: Float[Array, "K G D"]) -> Float[Array, " K"]:
    return jnp.sqrt(jnp.sum(jnp.square(direction), axis=(1, 2)))
