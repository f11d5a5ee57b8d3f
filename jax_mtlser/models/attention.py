"""The transformer layer: masked self-attention and feed-forward network, post-LN or pre-LN."""

from typing import Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily
from jax_mtlser.models.dot_product_attention import dot_product_attention
from jax_mtlser.models.dropout import dropout
from jax_mtlser.models.layer_norm import LayerNorm
from jax_mtlser.models.layers import Affine, AffineParameters, Dense, Lora, activation, affine_maps

__all__ = ["DropoutKeys", "EncoderLayer", "FeedForward", "SelfAttention"]


@flax.struct.dataclass
class DropoutKeys:
    """Random keys of one layer, or of all along a leading axis; None where nothing is dropped.

    Attributes:
        shares, activations: inside attention and feed-forward network.
        attention, feed_forward: of their outputs.
    """

    shares: Array | None = None
    attention: Array | None = None
    activations: Array | None = None
    feed_forward: Array | None = None

    @classmethod
    def draw(cls, key: Key[Array, ""], layers: int) -> Self:
        """Keys of every layer, in one draw: each by itself would be a kernel or two."""
        shares, attention, activations, feed_forward = jax.random.split(key, (4, layers))
        return cls(shares, attention, activations, feed_forward)


class SelfAttention(nn.Module):
    """Multi-head self-attention in which no frame attends to padding.

    Attributes:
        arch: shape; whether keys have a bias and positions a gated bias follows from its family.
        dtype: compute type.
        lora: adapters on the four projections.
    """

    arch: EncoderArchitecture
    dtype: DTypeLike = jnp.float32
    lora: Lora | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        relative_position: Float[Array, "H T T"] | None = None,
        *,
        dropout_key: Key[Array, ""] | None,
    ) -> Float[Array, "B T D"]:
        arch = self.arch
        heads, head_size = arch.num_attention_heads, arch.hidden_size // arch.num_attention_heads
        init = jax.nn.initializers.normal(arch.initializer_range)

        def parameters(name: str, use_bias: bool = True) -> AffineParameters:
            affine = Affine(arch.hidden_size, kernel_init=init, use_bias=use_bias, lora=self.lora, name=name)
            return affine(x.shape[-1])

        key_has_bias = arch.family is not EncoderFamily.WHISPER
        maps = [parameters("query"), parameters("key", key_has_bias), parameters("value")]
        query, key, value = (
            y.reshape(*x.shape[:2], heads, head_size) for y in affine_maps(x, maps, self.dtype, self.lora)
        )
        context = dot_product_attention(
            query * head_size**-0.5,
            key,
            value,
            mask,
            self.dtype,
            gate=None if relative_position is None else self._gate(x),
            relative_position=relative_position,
            dropout_rate=arch.attention_dropout,
            dropout_key=dropout_key,
        )
        context = context.reshape(*x.shape[:2], arch.hidden_size)
        return Dense(arch.hidden_size, dtype=self.dtype, kernel_init=init, lora=self.lora, name="output")(context)

    def _gate(self, x: Float[Array, "B T D"]) -> Float[Array, "B H T"]:
        """How much of the relative position each query takes (WavLM, Chen et al. 2022, equation 3)."""
        heads = self.arch.num_attention_heads
        parts = x.reshape(*x.shape[:2], heads, -1)
        # Eight outputs, of which each four are summed: the released weights are that way.
        outputs = Dense(8, dtype=self.dtype, name="gate")(parts).astype(jnp.float32)
        update, reset = jnp.moveaxis(jax.nn.sigmoid(outputs.reshape(*outputs.shape[:-1], 2, 4).sum(-1)), -1, 0)
        scale = self.param("gate_scale", jax.nn.initializers.ones, (heads,))
        return (update * (reset * scale[None, None] - 1.0) + 2.0).swapaxes(1, 2)


class FeedForward(nn.Module):
    """Two affine maps with an activation between them."""

    arch: EncoderArchitecture
    dtype: DTypeLike = jnp.float32
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"], *, dropout_key: Key[Array, ""] | None) -> Float[Array, "*batch D"]:
        arch = self.arch
        init = jax.nn.initializers.normal(arch.initializer_range)
        x = Dense(arch.intermediate_size, dtype=self.dtype, kernel_init=init, lora=self.lora, name="intermediate")(x)
        x = activation(arch.hidden_act)(x)
        x = dropout(x, arch.activation_dropout, dropout_key)
        return Dense(arch.hidden_size, dtype=self.dtype, kernel_init=init, lora=self.lora, name="output")(x)


class EncoderLayer(nn.Module):
    """Attention and feed-forward with residual paths.

    ``arch.pre_norm`` normalises the input of each block (pre-LN), otherwise its sum with the residual path
    (post-LN).
    """

    arch: EncoderArchitecture
    dtype: DTypeLike = jnp.float32
    lora: Lora | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        relative_position: Float[Array, "H T T"] | None = None,
        *,
        dropout_keys: DropoutKeys | None = None,
    ) -> Float[Array, "B T D"]:
        arch, keys = self.arch, dropout_keys or DropoutKeys()
        attention = SelfAttention(arch, self.dtype, self.lora, name="attention")
        feed_forward = FeedForward(arch, self.dtype, self.lora, name="feed_forward")
        attention_norm = LayerNorm(self.dtype, arch.layer_norm_eps, name="attention_norm")
        feed_forward_norm = LayerNorm(self.dtype, arch.layer_norm_eps, name="feed_forward_norm")

        def attend(rows: Array) -> Array:
            y = attention(rows.reshape(x.shape), mask, relative_position, dropout_key=keys.shares)
            return dropout(y.reshape(rows.shape), arch.hidden_dropout, keys.attention)

        def feed(rows: Array) -> Array:
            return dropout(feed_forward(rows, dropout_key=keys.activations), arch.hidden_dropout, keys.feed_forward)

        # Frames of all utterances as rows: with three axes, XLA lays some of the sums out channel by channel.
        rows = x.reshape(-1, x.shape[-1])
        if arch.pre_norm:
            rows = rows + attend(attention_norm(rows))
            rows = rows + feed(feed_forward_norm(rows))
        else:
            rows = attention_norm(rows + attend(rows))
            rows = feed_forward_norm(rows + feed(rows))
        return rows.reshape(x.shape)
