"""Encoders of the wav2vec 2.0 family, exact under padding: an utterance's frames do not depend on its batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_mtlser.architecture import EncoderFamily, Wav2Vec2Architecture
from jax_mtlser.models.feature_encoder import FeatureEncoder, FeatureProjection
from jax_mtlser.models.layers import frame_mask
from jax_mtlser.models.positional_conv import PositionalConv, PositionalConvStack
from jax_mtlser.models.relative_position import RelativePosition
from jax_mtlser.models.spec_augment import spec_augment
from jax_mtlser.models.transformer import EncoderOptions, EncoderOutput, Transformer

__all__ = ["Wav2Vec2Encoder"]


class Wav2Vec2Encoder(nn.Module):
    """Feature encoder, projection, SpecAugment, positions and transformer; see speech_encoder.py for the interface."""

    arch: Wav2Vec2Architecture
    options: EncoderOptions = EncoderOptions()

    @nn.compact
    def __call__(
        self,
        audio: Float[Array, "B S"] | None,
        lengths: Int[Array, " B"],
        *,
        train: bool,
        output_hidden_states: bool = False,
        features: Float[Array, "B T C"] | None = None,
    ) -> EncoderOutput:
        """Encode a batch, from ``features`` where they are there: what the feature encoder gives."""
        arch, dtype, hf_compat = self.arch, self.options.dtype, self.options.hf_compat
        if features is None:
            assert audio is not None
            features = FeatureEncoder(arch, dtype, hf_compat, name="feature_encoder")(audio, lengths)
        frame_lengths = jnp.clip(arch.num_frames(lengths), 0, features.shape[1])
        mask = frame_mask(frame_lengths, features.shape[1])

        x = FeatureProjection(arch, dtype, name="feature_projection")(features, train=train)
        x = self._spec_augment(x, frame_lengths, train)
        x = jnp.where(mask[..., None], x, 0)  # the positional convolution must see silence, not padding
        x = x + self._positions(x, mask)
        relative_position = None
        if arch.family is EncoderFamily.WAVLM:
            relative_position = RelativePosition(arch, name="relative_position")(x.shape[1])
        x, hidden_states = Transformer(arch, self.options, name="transformer")(
            x, mask, relative_position, train=train, output_hidden_states=output_hidden_states
        )
        return EncoderOutput(jnp.where(mask[..., None], x, 0), frame_lengths, hidden_states)

    def _spec_augment(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"], train: bool) -> Float[Array, "B T D"]:
        arch = self.arch
        if not arch.has_masked_frame:
            return x
        # The parameter belongs to the checkpoint, whether or not this run augments.
        embedding = self.param("masked_frame", jax.nn.initializers.uniform(1.0), (arch.hidden_size,))
        if not (train and arch.apply_spec_augment):
            return x
        return spec_augment(self.make_rng("spec_augment"), x, lengths, arch, embedding)

    def _positions(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        arch, dtype = self.arch, self.options.dtype
        if arch.family is EncoderFamily.DATA2VEC_AUDIO:
            return PositionalConvStack(arch, dtype, self.options.hf_compat, name="positional_conv")(x, mask)
        return PositionalConv(arch, dtype, name="positional_conv")(x)
