"""The stack of transformer layers that all encoders share, and what every encoder takes and gives."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily
from jax_mtlser.models import products
from jax_mtlser.models.attention import DropoutKeys, EncoderLayer
from jax_mtlser.models.dropout import dropout
from jax_mtlser.models.layer_norm import LayerNorm
from jax_mtlser.models.layers import Lora, frame_mask

__all__ = ["EncoderOptions", "EncoderOutput", "Transformer"]

# Frames by which GPU libraries multiply attention's matrices; XLA copies each that has another number of them.
_FRAME_MULTIPLE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """How an encoder is computed; its architecture says what.

    Attributes:
        dtype: compute type.
        hf_compat: treat padding as the reference implementation does, see
            :class:`~jax_mtlser.config.EncoderConfig`.
        lora: adapters on attention and feed-forward.
        remat: keep only each layer's input for the backward pass.
        scan_layers: loop over the layers instead of writing them out.
    """

    dtype: DTypeLike = jnp.float32
    hf_compat: bool = False
    lora: Lora | None = None
    remat: bool = False
    scan_layers: bool = False


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

    @property
    def mask(self) -> Bool[Array, "B T"]:
        """True for the frames that belong to the utterance."""
        return frame_mask(self.lengths, self.frames.shape[1])


class Transformer(nn.Module):
    """Dropout, layers with LayerDrop, and the norm before (post-LN) or behind (pre-LN) them.

    Random numbers of all layers are drawn ahead, so that ``remat`` and ``scan_layers`` change no result.

    Attributes:
        arch: shape and regularisation.
        options: see :class:`EncoderOptions`.
    """

    arch: EncoderArchitecture
    options: EncoderOptions = EncoderOptions()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        relative_position: Float[Array, "H T T"] | None = None,
        *,
        train: bool,
        output_hidden_states: bool = False,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, ...] | None]:
        """The last hidden state, and all of them on request (see :class:`EncoderOutput`)."""
        arch, options = self.arch, self.options
        norm = LayerNorm(options.dtype, arch.layer_norm_eps, name="norm")
        if not arch.pre_norm:
            x = norm(x)
        key = self.make_rng("dropout") if train and arch.hidden_dropout > 0 else None
        x = dropout(x, arch.hidden_dropout, key)
        hidden_states = [x]
        if self.is_initializing():
            for index in range(arch.num_hidden_layers):
                layer = EncoderLayer(arch, options.dtype, options.lora, name=f"layer_{index}")
                x = layer(x, mask, relative_position)
                hidden_states.append(x)
        else:
            frames = x.shape[1]
            x, mask, relative_position = _aligned(x, mask, relative_position)
            x, outputs = self._run_layers(x, mask, relative_position, train, output_hidden_states)
            x = x[:, :frames]
            hidden_states += [output[:, :frames] for output in outputs]
        if arch.pre_norm:
            x = norm(x)
        return x, tuple(hidden_states) if output_hidden_states else None

    def _run_layers(
        self, x: Array, mask: Array, relative_position: Array | None, train: bool, keep_outputs: bool
    ) -> tuple[Array, list[Array]]:
        arch, options = self.arch, self.options
        # Detached from this module and applied as a function, so that it can be looped over and recomputed.
        layer = EncoderLayer(arch, options.dtype, options.lora, parent=None)
        count = arch.num_hidden_layers
        drops = max(arch.hidden_dropout, arch.attention_dropout, arch.activation_dropout) > 0
        keys = DropoutKeys.draw(self.make_rng("dropout"), count) if train and drops else None
        skipped = _skipped_layers(self.make_rng("layerdrop"), arch) if train and arch.layerdrop > 0 else None

        def run(x: Array, params: Any, keys: DropoutKeys | None, skipped: Array | None) -> Array:
            y: Any = layer.apply({"params": params}, x, mask, relative_position, dropout_keys=keys)
            # A select, not a branch: under vmap over members each member drops its own layers.
            return products.in_rows(y if skipped is None else jnp.where(skipped, x, y))

        step: Callable[..., Array] = jax.checkpoint(run) if options.remat else run
        every = [self.variables["params"][f"layer_{index}"] for index in range(count)]
        if not options.scan_layers:
            outputs = []
            for index, params in enumerate(every):
                x = step(x, params, *jax.tree.map(operator.itemgetter(index), (keys, skipped)))
                outputs.append(x)
            return x, outputs

        def scanned(x: Array, layer_of: tuple[Any, ...]) -> tuple[Array, Array | None]:
            x = step(x, *layer_of)
            return x, x if keep_outputs else None

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
        x, kept = jax.lax.scan(scanned, x, (stacked, keys, skipped))
        return x, [] if kept is None else list(kept)


def _aligned(
    x: Float[Array, "B T D"], mask: Bool[Array, "B T"], relative_position: Float[Array, "H T T"] | None
) -> tuple[Array, Array, Array | None]:
    """On accelerators, a few frames of padding more, so that their number divides well."""
    missing = 0 if products.on_cpu() or products.is_plain() else -x.shape[1] % _FRAME_MULTIPLE
    if not missing:
        return x, mask, relative_position
    behind = (0, missing)
    if relative_position is not None:
        relative_position = jnp.pad(relative_position, ((0, 0), behind, behind))
    return jnp.pad(x, ((0, 0), behind, (0, 0))), jnp.pad(mask, ((0, 0), behind)), relative_position


def _skipped_layers(key: Key[Array, ""], arch: EncoderArchitecture) -> Bool[Array, " layers"]:
    """Layers whose output is their input, drawn for the whole batch (LayerDrop)."""
    skipped = jax.random.bernoulli(key, arch.layerdrop, (arch.num_hidden_layers,))
    if arch.family is EncoderFamily.WAVLM:
        skipped = skipped.at[0].set(False)  # the reference never skips the layer that owns the position table
    return skipped
