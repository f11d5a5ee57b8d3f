"""The transformer layer: masked self-attention and feed-forward network, post-LN or pre-LN."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jax_mtlser.config import EncoderArchitecture
from jax_mtlser.models import products
from jax_mtlser.models.layers import Dense, activation, layer_norm

__all__ = ["EncoderLayer", "FeedForward", "SelfAttention"]


class SelfAttention(nn.Module):
    """Multi-head self-attention in which no frame attends to padding."""

    arch: EncoderArchitecture
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], *, train: bool) -> Float[Array, "B T D"]:
        arch = self.arch
        heads, head_size = arch.num_attention_heads, arch.hidden_size // arch.num_attention_heads
        init = jax.nn.initializers.normal(arch.initializer_range)

        def project(name: str) -> Float[Array, "B T H E"]:
            y = Dense(arch.hidden_size, self.dtype, kernel_init=init, name=name)(x)
            return y.reshape(*x.shape[:2], heads, head_size)

        query, key, value = project("query"), project("key"), project("value")
        scores = products.einsum("bqhe,bkhe->bhqk", query * head_size**-0.5, key, self.dtype).astype(jnp.float32)
        # A finite value: a row of padding only (all keys masked) must stay finite too.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        shares = nn.Dropout(arch.attention_dropout, deterministic=not train)(shares)
        context = products.einsum("bhqk,bkhe->bqhe", shares, value, self.dtype)
        context = context.reshape(*x.shape[:2], arch.hidden_size)
        return Dense(arch.hidden_size, self.dtype, kernel_init=init, name="output")(context)


class FeedForward(nn.Module):
    """Two affine maps with an activation between them."""

    arch: EncoderArchitecture
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, train: bool) -> Float[Array, "B T D"]:
        arch = self.arch
        init = jax.nn.initializers.normal(arch.initializer_range)
        x = Dense(arch.intermediate_size, self.dtype, kernel_init=init, name="intermediate")(x)
        x = activation(arch.hidden_act)(x)
        x = nn.Dropout(arch.activation_dropout, deterministic=not train)(x)
        x = Dense(arch.hidden_size, self.dtype, kernel_init=init, name="output")(x)
        return nn.Dropout(arch.hidden_dropout, deterministic=not train)(x)


class EncoderLayer(nn.Module):
    """Attention and feed-forward with residual paths.

    ``arch.do_stable_layer_norm`` normalises the input of each block (pre-LN), otherwise its sum with the
    residual path (post-LN).
    """

    arch: EncoderArchitecture
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], *, train: bool) -> Float[Array, "B T D"]:
        arch = self.arch
        attention = SelfAttention(arch, self.dtype, name="attention")
        feed_forward = FeedForward(arch, self.dtype, name="feed_forward")
        attention_norm = layer_norm("attention_norm", self.dtype, arch.layer_norm_eps)
        feed_forward_norm = layer_norm("feed_forward_norm", self.dtype, arch.layer_norm_eps)
        dropout = nn.Dropout(arch.hidden_dropout, deterministic=not train)
        if arch.do_stable_layer_norm:
            x = x + dropout(attention(attention_norm(x), mask, train=train))
            return x + feed_forward(feed_forward_norm(x), train=train)
        x = attention_norm(x + dropout(attention(x, mask, train=train)))
        return feed_forward_norm(x + feed_forward(x, train=train))
