"""What a frozen part of the encoder gives: the same in every epoch, so it can be computed once and kept.

Only a part that runs without dropout, SpecAugment and warped frequencies can be kept: the convolutions in front of the
transformer, or the whole encoder where nothing of it learns. An utterance's frames do not depend on its batch, so those that
were computed in one batch serve in any other.
"""

import enum
from typing import Any

from jaxtyping import Array, Float, Int

from jax_mtlser.architecture import EncoderArchitecture, Wav2Vec2Architecture
from jax_mtlser.config import Freeze
from jax_mtlser.models.feature_encoder import FeatureEncoder
from jax_mtlser.models.multitask import MultitaskModel

__all__ = ["FrozenPart", "frozen_frames", "frozen_part"]


class FrozenPart(enum.Enum):
    """How far into the encoder the kept frames reach."""

    NOTHING = "nothing"
    FEATURES = "features"  # the convolutions of the wav2vec 2.0 family
    ENCODER = "encoder"  # what the heads read


def frozen_part(arch: EncoderArchitecture, freeze: Freeze, *, lora: bool, hf_compat: bool) -> FrozenPart:
    """The largest part that can be kept.

    Args:
        arch: of the encoder; where it warps frequencies, nothing can be kept.
        freeze: what is not trained.
        lora: adapters learn inside the frozen layers.
        hf_compat: frames depend on the padding of their batch, so nothing can be kept.
    """
    if hf_compat or arch.warps_frequencies or freeze is Freeze.NOTHING:
        return FrozenPart.NOTHING
    if freeze is Freeze.ENCODER and not lora:
        return FrozenPart.ENCODER
    return FrozenPart.FEATURES if isinstance(arch, Wav2Vec2Architecture) else FrozenPart.NOTHING


def frozen_frames(
    model: MultitaskModel, part: FrozenPart, encoder: Any, audio: Float[Array, "B S"], lengths: Int[Array, " B"]
) -> tuple[Float[Array, "B T C"], ...]:
    """The frames to keep, as :meth:`MultitaskModel.encode` takes them: one array, or one for each layer.

    Args:
        model: whose encoder is computed.
        part: not NOTHING.
        encoder: its parameters.
        audio, lengths: see :mod:`~jax_mtlser.models.speech_encoder`.
    """
    if part is FrozenPart.FEATURES:
        assert isinstance(model.arch, Wav2Vec2Architecture)
        convolutions = FeatureEncoder(model.arch, model.options.dtype, parent=None)
        features: Any = convolutions.apply({"params": encoder["feature_encoder"]}, audio, lengths)
        return (features,)
    encoded: Any = model.apply({"params": {"encoder": encoder}}, audio, lengths, train=False, method="encode")
    # The last layer as the heads read it: behind the final norm, where there is one.
    return (*(encoded.hidden_states or ())[:-1], encoded.frames)
