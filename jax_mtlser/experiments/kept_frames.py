"""Whether the frames of the encoder's frozen part are kept on the accelerator in place of the samples."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int64

from jax_mtlser.architecture import EncoderArchitecture, Wav2Vec2Architecture
from jax_mtlser.config import Config, HeadInput, Residency
from jax_mtlser.data.batches import fits_on_device
from jax_mtlser.models.frozen import FrozenPart, frozen_part
from jax_mtlser.models.pretrained import PretrainedEncoder

__all__ = ["KeptFrames", "kept_frames"]


@dataclasses.dataclass(frozen=True, eq=False)
class KeptFrames:
    """A corpus of frames.

    Attributes:
        part: of the encoder.
        offsets: frames of utterance ``i`` are those from ``offsets[i]`` to ``offsets[i + 1]``.
        total: its length, with room behind the last utterance for the longest bucket.
    """

    part: FrozenPart
    offsets: Int64[np.ndarray, " N+1"]
    total: int

    @classmethod
    def of(
        cls, part: FrozenPart, arch: EncoderArchitecture, lengths: Int64[np.ndarray, " N"], longest: int
    ) -> "KeptFrames":
        """Those of utterances of so many samples; ``longest``: samples of the longest bucket."""
        offsets = np.concatenate([[0], np.cumsum(arch.num_frames(lengths))])
        return cls(part, offsets, int(offsets[-1] + arch.num_frames(longest)))


def kept_frames(
    config: Config,
    encoder: PretrainedEncoder,
    lengths: Int64[np.ndarray, " N"],
    longest: int,
    dtype: DTypeLike,
) -> KeptFrames | None:
    """What is kept; None where nothing can be, is not to be, or it does not fit.

    Args:
        config: of one variant.
        encoder: its encoder.
        lengths: samples of all utterances.
        longest: samples of the longest bucket.
        dtype: compute type.
    """
    settings, batching, arch = config.model.encoder, config.batching, encoder.arch
    part = frozen_part(arch, settings.freeze, lora=settings.lora_rank > 0, hf_compat=settings.hf_compat)
    # Random weights differ from member to member, those of a checkpoint do not.
    wanted = batching.keep_frozen and batching.residency is not Residency.HOST and encoder.weights is not None
    if part is FrozenPart.NOTHING or not wanted:
        return None
    if part is FrozenPart.FEATURES:
        assert isinstance(arch, Wav2Vec2Architecture)
        values = arch.conv_dim[-1]
    else:
        every_layer = config.model.head_input is HeadInput.WEIGHTED_SUM
        values = arch.hidden_size * (arch.num_hidden_layers + 1 if every_layer else 1)
    kept = KeptFrames.of(part, arch, lengths, longest)
    return kept if fits_on_device(kept.total, values * jnp.dtype(dtype).itemsize) else None
