"""Shapes of the encoders, as their Hugging Face configs describe them; a checkpoint's config.json fills them in."""

import abc
import dataclasses
import enum
import math
from typing import Any

__all__ = ["EncoderArchitecture", "EncoderFamily", "FeatureNorm", "Wav2Vec2Architecture", "WhisperArchitecture"]


class EncoderFamily(enum.Enum):
    """Who designed the encoder (``model_type`` in Hugging Face configs)."""

    WAV2VEC2 = "wav2vec2"  # also XLSR, XLS-R
    HUBERT = "hubert"  # also DistilHuBERT
    WAVLM = "wavlm"  # gated relative position bias in every attention
    DATA2VEC_AUDIO = "data2vec-audio"  # a stack of positional convolutions
    UNISPEECH_SAT = "unispeech-sat"
    WHISPER = "whisper"  # log-mel spectrogram instead of samples


class FeatureNorm(enum.Enum):
    """Normalisation of the convolutional feature encoder (``feat_extract_norm`` in Hugging Face configs)."""

    GROUP = "group"  # one GroupNorm over time after the first layer (base models)
    LAYER = "layer"  # LayerNorm over channels after every layer (large models)


@dataclasses.dataclass(kw_only=True)
class EncoderArchitecture(abc.ABC):
    """What all encoders have: transformer layers, and regularisation that acts in training only.

    Names and defaults are those of Hugging Face's wav2vec 2.0 family. The defaults must stay theirs: a checkpoint's
    ``config.json`` may leave out what equals them.
    """

    family: EncoderFamily
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    final_dropout: float = 0.1  # before every head
    layerdrop: float = 0.1
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    initializer_range: float = 0.02

    @property
    @abc.abstractmethod
    def pre_norm(self) -> bool:
        """Whether layers normalise their input (pre-LN) instead of their sum with the residual path (post-LN)."""

    @property
    def warps_frequencies(self) -> bool:
        """Whether what is heard in training was changed at random in front of the encoder."""
        return False

    @abc.abstractmethod
    def min_samples(self) -> int:
        """The shortest input that gives a frame."""

    @abc.abstractmethod
    def max_samples(self) -> int | None:
        """The longest input; None without a limit."""

    @abc.abstractmethod
    def hop(self) -> int:
        """Samples between two output frames."""

    @abc.abstractmethod
    def num_frames(self, num_samples: Any) -> Any:
        """Output frames of ``num_samples`` input samples; works on ints, NumPy and JAX arrays."""


@dataclasses.dataclass(kw_only=True)
class Wav2Vec2Architecture(EncoderArchitecture):
    """wav2vec 2.0 and its relatives: strided convolutions on samples, positional convolution, transformer.

    Attributes:
        family: any but WHISPER.
        feat_proj_layer_norm: normalise the features before their projection (False in DistilHuBERT).
        num_conv_pos_embeddings: width of the positional convolution; DATA2VEC_AUDIO: number of convolutions.
        conv_pos_kernel_size: their width, DATA2VEC_AUDIO only.
        do_stable_layer_norm: pre-LN transformer (large models).
        num_buckets, max_bucket_distance: relative positions, WAVLM only.
    """

    family: EncoderFamily = EncoderFamily.WAV2VEC2
    feat_extract_activation: str = "gelu"
    feat_extract_norm: FeatureNorm = FeatureNorm.GROUP
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    feat_proj_layer_norm: bool = True
    feat_proj_dropout: float = 0.0
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    conv_pos_kernel_size: int = 19
    do_stable_layer_norm: bool = False
    num_buckets: int = 320
    max_bucket_distance: int = 800

    @property
    def pre_norm(self) -> bool:
        """See :class:`EncoderArchitecture`."""
        return self.do_stable_layer_norm

    @property
    def has_masked_frame(self) -> bool:
        """Whether there is a vector for masked frames; one family has it even where nothing is masked."""
        masks = self.mask_time_prob > 0 or self.mask_feature_prob > 0
        return masks or self.family is EncoderFamily.UNISPEECH_SAT

    def min_samples(self) -> int:
        """Samples that the first output frame sees."""
        field, hop = 1, 1
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return field

    def max_samples(self) -> int | None:
        """No limit."""
        return None

    def hop(self) -> int:
        """See :class:`EncoderArchitecture`."""
        return math.prod(self.conv_stride)

    def num_frames(self, num_samples: Any) -> Any:
        """See :class:`EncoderArchitecture`."""
        frames = num_samples
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            frames = (frames - kernel) // stride + 1
        return frames


@dataclasses.dataclass(kw_only=True)
class WhisperArchitecture(EncoderArchitecture):
    """Whisper's encoder: log-mel spectrogram, two convolutions, sinusoidal positions, pre-LN transformer.

    Defaults are those of Hugging Face's ``WhisperConfig`` (``d_model`` is ``hidden_size`` here, and so on).

    Attributes:
        frequency_warp: in training, an utterance's frequencies are multiplied by a random factor between
            ``1 / (1 + frequency_warp)`` and ``1 + frequency_warp``, as if a shorter or taller person spoke.
        num_mel_bins: 80, or 128 for large-v3.
        max_source_positions: frames that the position table has; 1500 are 30 s.
    """

    family: EncoderFamily = EncoderFamily.WHISPER
    hidden_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    final_dropout: float = 0.0
    layerdrop: float = 0.0
    apply_spec_augment: bool = False
    frequency_warp: float = 0.0
    num_mel_bins: int = 80
    max_source_positions: int = 1500

    @property
    def pre_norm(self) -> bool:
        """See :class:`EncoderArchitecture`."""
        return True

    @property
    def warps_frequencies(self) -> bool:
        """See :class:`EncoderArchitecture`."""
        return self.frequency_warp > 0

    def min_samples(self) -> int:
        """Any sample gives a frame."""
        return 1

    def max_samples(self) -> int | None:
        """Samples that the position table covers."""
        return self.max_source_positions * self.hop()

    def hop(self) -> int:
        """Two spectrogram frames of 10 ms at 16 kHz."""
        return 320

    def num_frames(self, num_samples: Any) -> Any:
        """See :class:`EncoderArchitecture`."""
        return (num_samples + self.hop() - 1) // self.hop()
