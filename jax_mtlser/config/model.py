"""Settings of the model: encoder, what of it learns, what the heads read."""

import dataclasses
import enum
from typing import Any

from jax_mtlser.architecture import Wav2Vec2Architecture

__all__ = ["EncoderConfig", "Freeze", "HeadInput", "HeadStart", "ModelConfig", "VocabularyConfig", "VocabularySource"]


class VocabularySource(enum.Enum):
    """Which symbols the CTC head writes."""

    PAPER = "paper"  # the 32 symbols of wav2vec2-base-960h
    CHECKPOINT = "checkpoint"  # vocab.json beside the encoder's weights; a ForCTC checkpoint's head starts ours
    TRANSCRIPTS = "transcripts"  # the letters of the fold's training transcripts


class Freeze(enum.Enum):
    """Which part of the encoder keeps the weights it was loaded with; heads and LoRA adapters always learn."""

    NOTHING = "nothing"  # the paper
    FEATURE_ENCODER = "feature_encoder"  # all in front of the transformer's input projection
    LAYERS = "layers"  # everything up to and including the first ``freeze_layers`` transformer layers
    ENCODER = "encoder"  # all of it; without adapters it then runs without dropout: a probe


class HeadInput(enum.Enum):
    """What the heads read."""

    LAST = "last"  # the encoder's output
    WEIGHTED_SUM = "weighted_sum"  # each head's own learned average of all layers, each normalised (SUPERB)


class HeadStart(enum.Enum):
    """Where the heads of utterances (emotion, gender, speaker) start; the speech recognition head is not meant."""

    RANDOM = "random"  # the paper
    # Logistic regression on what the heads read before anything is trained (linear probing, then fine-tuning; Kumar et
    # al. 2022). Without epochs this is the whole training: the probe that results should be compared with.
    REGRESSION = "regression"


@dataclasses.dataclass(kw_only=True)
class VocabularyConfig:
    """How transcripts become CTC targets.

    Attributes:
        source: where the symbols come from.
        language: two-letter code, for writing digits as words and for the letters that are kept.
    """

    source: VocabularySource = VocabularySource.PAPER
    language: str = "en"


@dataclasses.dataclass(kw_only=True)
class EncoderConfig:
    """The shared encoder.

    Attributes:
        checkpoint: Hugging Face Hub id, short name such as ``hubert-base`` (models/pretrained/presets.py), or local
            folder or weight file with ``config.json`` beside it; empty starts from random weights of
            ``architecture``.
        architecture: used only when ``checkpoint`` is empty.
        num_layers: first transformer layers that are kept; the others are neither read nor computed. None: all.
        freeze: the part that is not trained.
        freeze_layers: first transformer layers that are not trained; with ``Freeze.LAYERS``.
        lora_rank: rank of the low-rank adapters on attention and feed-forward (Hu et al. 2022); 0 for none. With
            adapters, ``freeze`` must be ``encoder``.
        lora_alpha: adapters are scaled by ``lora_alpha / lora_rank``.
        remat: recompute each layer's inside in the backward pass: less memory, more time, the same numbers. On a
            CPU with jax 0.10 it acts only together with ``scan_layers``.
        scan_layers: compile one layer and loop over it: shorter compilation, slower steps, the same numbers.
        normalize_waveform: zero mean, unit variance per utterance; None follows the checkpoint's
            ``preprocessor_config.json`` (where there is none: True, for Whisper False).
        hf_compat: treat padding as the reference implementation does: GroupNorm statistics include it, and Whisper
            hears 30 s whatever the utterance's length.
        hidden_dropout, attention_dropout, activation_dropout, feat_proj_dropout, final_dropout,
            layerdrop, apply_spec_augment, frequency_warp: None follows the checkpoint or ``architecture``. The last is
            Whisper's only, and also adds warped copies to what ``HeadStart.REGRESSION`` is fitted on.
    """

    checkpoint: str = "facebook/wav2vec2-base"
    architecture: Wav2Vec2Architecture = dataclasses.field(default_factory=Wav2Vec2Architecture)
    num_layers: int | None = None
    freeze: Freeze = Freeze.NOTHING
    freeze_layers: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    remat: bool = False
    scan_layers: bool = False
    normalize_waveform: bool | None = None
    hf_compat: bool = False
    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    feat_proj_dropout: float | None = None
    final_dropout: float | None = None
    layerdrop: float | None = None
    apply_spec_augment: bool | None = None
    frequency_warp: float | None = None

    def regularisation(self) -> dict[str, Any]:
        """The fields of an architecture that this configuration overrides."""
        names = (
            "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout",
            "layerdrop", "apply_spec_augment", "frequency_warp",
        )  # fmt: skip
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """Encoder and CTC symbols; the heads' sizes follow from the corpus.

    Attributes:
        encoder: shared by all tasks.
        head_input: what the heads read.
        head_start: the heads before the first step.
        regression_c: with ``HeadStart.REGRESSION``: inverse strength of its penalty, scikit-learn's ``C``, on means that
            were given zero mean and unit variance.
        vocabulary: of the speech recognition head.
    """

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    head_input: HeadInput = HeadInput.LAST
    head_start: HeadStart = HeadStart.RANDOM
    regression_c: float = 0.1
    vocabulary: VocabularyConfig = dataclasses.field(default_factory=VocabularyConfig)
