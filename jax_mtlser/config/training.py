"""Settings of training: batches, task weights, optimizer, loop."""

import dataclasses
import enum

__all__ = [
    "BatchingConfig",
    "CtcNormalization",
    "HeadMode",
    "LearningRateSchedule",
    "Moments",
    "OptimizerConfig",
    "Precision",
    "Residency",
    "Selection",
    "TaskWeights",
    "TrainingConfig",
    "WeightingMethod",
]


class Residency(enum.Enum):
    """Where the decoded corpus lies during training."""

    AUTO = "auto"  # on the accelerator when it fits into a quarter of its memory
    DEVICE = "device"
    HOST = "host"  # memory-mapped file, batches prefetched by a thread


class LearningRateSchedule(enum.Enum):
    """Shape of the learning rate after warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"  # down to zero at the last step
    COSINE = "cosine"  # down to zero at the last step


class Moments(enum.Enum):
    """Type in which AdamW's two moments are kept between steps."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"  # 8 instead of 12 bytes for a parameter and its moments; stochastic rounding


class CtcNormalization(enum.Enum):
    """What an utterance's CTC loss is divided by before the mean over utterances."""

    NONE = "none"  # negative log-likelihood of the whole transcript (the paper)
    LABELS = "labels"  # per symbol
    FRAMES = "frames"  # per encoder frame


class Precision(enum.Enum):
    """Type of activations and matrix operands; parameters, statistics and losses are always float32."""

    AUTO = "auto"  # bfloat16 on GPU, TPU, and on processors that multiply it faster (AMX, AVX-512 BF16), else float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Selection(enum.Enum):
    """Which epoch's parameters are tested."""

    LAST = "last"
    BEST_VALIDATION = "best_validation"  # highest validation UA, the earliest on ties
    # Highest UA on the test part itself, as some papers report: every output of such a run says that it is optimistic.
    BEST_TEST = "best_test"


@dataclasses.dataclass(kw_only=True)
class BatchingConfig:
    """How utterances are put together.

    Attributes:
        batch_size: utterances per optimizer step; ignored when ``batch_seconds`` is set.
        batch_seconds: padded seconds of audio per optimizer step instead of a number of utterances.
        num_buckets: number of padded lengths, hence of compiled programs; None: as many as each save the padding of four
            batches an epoch, at most 24.
        accumulation_steps: an optimizer step's batch is worked through in this many equal parts.
        residency: where the corpus lies.
        keep_frozen: compute what a frozen part of the encoder gives once and keep it on the accelerator, where it
            fits and the corpus may lie there. Not where ``model.encoder.frequency_warp`` changes what it hears.
    """

    batch_size: int = 8
    batch_seconds: float | None = None
    num_buckets: int | None = None
    accumulation_steps: int = 1
    residency: Residency = Residency.AUTO
    keep_frozen: bool = True


class WeightingMethod(enum.Enum):
    """How much each task's loss counts; all but FIXED start from equal weights."""

    FIXED = "fixed"  # 1, alpha, beta, gamma
    EQUAL = "equal"
    UNCERTAINTY = "uncertainty"  # Kendall, Gal and Cipolla 2018
    GRADNORM = "gradnorm"  # Chen et al. 2018
    DWA = "dwa"  # Liu, Johns and Davison 2019
    RLW = "rlw"  # Lin et al. 2022
    FAMO = "famo"  # Liu et al. 2023; one more forward pass in each step; a loss below 0.05 counts as solved
    IMTL_L = "imtl_l"  # Liu et al. 2021
    PCGRAD = "pcgrad"  # Yu et al. 2020
    CAGRAD = "cagrad"  # Liu et al. 2021
    NASH_MTL = "nash_mtl"  # Navon et al. 2022


class HeadMode(enum.Enum):
    """What a head's gradient does to the encoder. A head is off when its weight is 0."""

    AUXILIARY = "aux"  # the encoder learns to help the head
    ADVERSARIAL = "adversarial"  # the encoder learns to give the head nothing to go by


@dataclasses.dataclass(kw_only=True)
class TaskWeights:
    """L = L_SER + alpha L_GR + beta L_SR + gamma L_ASR; the defaults are the paper's best.

    Attributes:
        alpha, beta, gamma: 0 leaves the task out of the training, whatever the method. Other values are read with
            ``method`` fixed, and for an adversarial head, which no method balances.
        ctc_normalization: methods that balance losses do so more evenly with ``labels``; a whole transcript's loss
            is tens of times that of a classifier.
        method: what chooses the weights; GRADNORM, PCGRAD, CAGRAD and NASH_MTL look at gradients at the encoder's
            output frames.
        learning_rate: of weights that are learned; None: 1e-3 for uncertainty and imtl_l, 0.025 for gradnorm and famo.
        gradnorm_alpha: 0 makes the tasks' gradients equally large; above, tasks that lag behind get more.
        temperature: of dwa; high values make weights equal.
        cagrad_c: in [0, 1); 0 is equal weighting.
        famo_decay: pulls famo's weights together.
        gender_mode, speaker_mode: what the head's gradient does to the encoder.
        reversal_strength: of adversarial heads, at the end of training; it rises from 0.
    """

    alpha: float = 0.4
    beta: float = 0.6
    gamma: float = 0.1
    ctc_normalization: CtcNormalization = CtcNormalization.NONE
    method: WeightingMethod = WeightingMethod.FIXED
    learning_rate: float | None = None
    gradnorm_alpha: float = 1.5
    temperature: float = 2.0
    cagrad_c: float = 0.5
    famo_decay: float = 1e-3
    gender_mode: HeadMode = HeadMode.AUXILIARY
    speaker_mode: HeadMode = HeadMode.AUXILIARY
    reversal_strength: float = 1.0


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        learning_rate: peak rate of the encoder.
        head_learning_rate: peak rate of the heads; None: the encoder's.
        layer_decay: the encoder's rate falls by this factor from each transformer layer to the one below it; what
            lies below the first layer counts as one more. 1: the same rate everywhere.
        warmup_fraction: share of all steps in which the rate rises linearly from zero.
        heads_first_fraction: share of all steps in which the heads learn alone (linear probing, then fine-tuning; Kumar
            et al. 2022); what is trained of the encoder, adapters too, stands still until then, and its rate warms up
            and falls in the steps that are left.
        clip_norm: largest global gradient norm; None: no clipping.
        decay_biases_and_norms: apply weight decay to vectors too, as ``torch.optim.AdamW`` does.
        moments: type in which they are kept; BFLOAT16 for encoders, or populations, that would not fit otherwise.
    """

    learning_rate: float = 1e-5
    head_learning_rate: float | None = None
    layer_decay: float = 1.0
    schedule: LearningRateSchedule = LearningRateSchedule.LINEAR
    warmup_fraction: float = 0.1
    heads_first_fraction: float = 0.0
    weight_decay: float = 0.01
    decay_biases_and_norms: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    moments: Moments = Moments.FLOAT32


@dataclasses.dataclass(kw_only=True)
class TrainingConfig:
    """The loop.

    Attributes:
        epochs: passes over the training part.
        seed: of initial weights, dropout and batch order.
        precision: compute type.
        plain: compute everything by textbook formulas and automatic differentiation, CTC by ``optax.ctc_loss``,
            instead of the fast formulations: slower, for telling whether one of them is at fault.
        selection: which epoch is tested.
        data_devices: devices, of all processes, that share each batch; 0: all that there are for it.
        population: members that one program trains together, where an experiment has that many of equal shapes;
            0: as many as fit into the device's memory. It pays on accelerators that one member does not fill; on a
            CPU, members are as fast one after the other.
        member_devices: devices that share a population's members.
        log_every_steps: steps between two lines of ``metrics.jsonl``.
        checkpoint_every_steps: steps between two checkpoints within an epoch.
        checkpoint_every_epochs: epochs between the checkpoints that end one. With ``Selection.LAST`` only: other
            selections choose among what every epoch has saved.
        tensorboard: write event files too.
    """

    epochs: int = 100
    seed: int = 0
    precision: Precision = Precision.AUTO
    plain: bool = False
    selection: Selection = Selection.BEST_VALIDATION
    data_devices: int = 0
    population: int = 1
    member_devices: int = 1
    log_every_steps: int = 10
    checkpoint_every_steps: int = 500
    checkpoint_every_epochs: int = 1
    tensorboard: bool = True
