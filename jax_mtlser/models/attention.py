"""The transformer layer: masked self-attention and feed-forward network, post-LN or pre-LN."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily
from jax_mtlser.models import products
from jax_mtlser.models.layers import Dense, Lora, activation, layer_norm

__all__ = ["EncoderLayer", "FeedForward", "SelfAttention"]


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
        train: bool,
    ) -> Float[Array, "B T D"]:
        arch = self.arch
        heads, head_size = arch.num_attention_heads, arch.hidden_size // arch.num_attention_heads
        init = jax.nn.initializers.normal(arch.initializer_range)

        def project(name: str, use_bias: bool = True) -> Float[Array, "B T H E"]:
            dense = Dense(arch.hidden_size, self.dtype, kernel_init=init, use_bias=use_bias, lora=self.lora, name=name)
            return dense(x).reshape(*x.shape[:2], heads, head_size)

        query, value = project("query"), project("value")
        key = project("key", use_bias=arch.family is not EncoderFamily.WHISPER)
        scores = products.einsum("bqhe,bkhe->bhqk", query * head_size**-0.5, key, self.dtype).astype(jnp.float32)
        if relative_position is not None:
            scores = scores + self._gate(x)[..., None] * relative_position[None]
        # A finite value: a row of padding only (all keys masked) must stay finite too.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        shares = nn.Dropout(arch.attention_dropout, deterministic=not train)(shares)
        context = products.einsum("bhqk,bkhe->bqhe", shares, value, self.dtype)
        context = context.reshape(*x.shape[:2], arch.hidden_size)
        return Dense(arch.hidden_size, self.dtype, kernel_init=init, lora=self.lora, name="output")(context)

    def _gate(self, x: Float[Array, "B T D"]) -> Float[Array, "B H T"]:
        """How much of the relative position each query takes (WavLM, Chen et al. 2022, equation 3)."""
        heads = self.arch.num_attention_heads
        parts = x.reshape(*x.shape[:2], heads, -1)
        # Eight outputs, of which each four are summed: the released weights are that way.
        outputs = Dense(8, self.dtype, name="gate")(parts).astype(jnp.float32)
        update, reset = jnp.moveaxis(jax.nn.sigmoid(outputs.reshape(*outputs.shape[:-1], 2, 4).sum(-1)), -1, 0)
        scale = self.param("gate_scale", jax.nn.initializers.ones, (heads,))
        return (update * (reset * scale[None, None] - 1.0) + 2.0).swapaxes(1, 2)


class FeedForward(nn.Module):
    """Two affine maps with an activation between them."""

    arch: EncoderArchitecture
    dtype: DTypeLike = jnp.float32
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, train: bool) -> Float[Array, "B T D"]:
        arch = self.arch
        init = jax.nn.initializers.normal(arch.initializer_range)
        x = Dense(arch.intermediate_size, self.dtype, kernel_init=init, lora=self.lora, name="intermediate")(x)
        x = activation(arch.hidden_act)(x)
        x = nn.Dropout(arch.activation_dropout, deterministic=not train)(x)
        x = Dense(arch.hidden_size, self.dtype, kernel_init=init, lora=self.lora, name="output")(x)
        return nn.Dropout(arch.hidden_dropout, deterministic=not train)(x)


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
        train: bool,
    ) -> Float[Array, "B T D"]:
        arch = self.arch
        attention = SelfAttention(arch, self.dtype, self.lora, name="attention")
        feed_forward = FeedForward(arch, self.dtype, self.lora, name="feed_forward")
        attention_norm = layer_norm("attention_norm", self.dtype, arch.layer_norm_eps)
        feed_forward_norm = layer_norm("feed_forward_norm", self.dtype, arch.layer_norm_eps)
        dropout = nn.Dropout(arch.hidden_dropout, deterministic=not train)
        if arch.pre_norm:
            x = x + dropout(attention(attention_norm(x), mask, relative_position, train=train))
            return x + feed_forward(feed_forward_norm(x), train=train)
        x = attention_norm(x + dropout(attention(x, mask, relative_position, train=train)))
        return feed_forward_norm(x + feed_forward(x, train=train))
