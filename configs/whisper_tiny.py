"""Whisper tiny.en's encoder, fine-tuned on nEMO (Polish emotional speech, Christop 2024), tested on unheard speakers.

    python train.py --config configs/whisper_tiny.py --workdir runs/whisper_tiny --config.corpus.path=FOLDER

FOLDER holds metadata.csv (file, emotion, speaker, gender, sentence_id, text, ...). One speaker of seven is held out
in each fold; the last epoch is tested, so that all six others are trained on. The speaker head is not scored. Every
speaker reads the same sentences: the word error rate is that of sentences heard in training.

Emotion alone:

    ... --config.weights.alpha=0 --config.weights.beta=0 --config.weights.gamma=0

A probe: emotion alone on the frozen encoder (a weighted average of all layers, one affine map, 15 epochs):

    python train.py --config configs/whisper_tiny.py:probe --workdir runs/probe --config.corpus.path=FOLDER

The probe that fine-tuning has to beat: logistic regression on the means of the encoder's second layer, in place of
training. It is fitted on each utterance and four copies with warped frequencies, as of other speakers:

    python train.py --config configs/whisper_tiny.py:regression --workdir runs/regression --config.corpus.path=FOLDER

Fine-tuning from there, all four tasks on two layers:

    python train.py --config configs/whisper_tiny.py:fitted --workdir runs/fitted --config.corpus.path=FOLDER

Does a task help where speakers are not known? Emotion with every subset of the other tasks (the paper's Table 4), from
three seeds, 168 trainings:

    python train.py --config configs/whisper_tiny.py:subsets --workdir runs/subsets --config.corpus.path=FOLDER

On a GPU with 32 GB or more, where 42 of them run in one program and an epoch of all takes seconds, add

    --config.training.population=42 --config.training.checkpoint_every_epochs=5 --config.batching.num_buckets=2

Results and times are in the README.
"""

from jax_mtlser.config import (
    AudioConfig,
    BatchingConfig,
    Config,
    CorpusConfig,
    CorpusKind,
    EncoderConfig,
    Freeze,
    HeadInput,
    HeadStart,
    LearningRateSchedule,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
    ProtocolKind,
    Selection,
    TaskWeights,
    TrainingConfig,
    VocabularyConfig,
    VocabularySource,
)
from jax_mtlser.paper import task_subsets

_RECIPES = ("", "probe", "regression", "fitted", "subsets")


def get_config(recipe: str = "") -> Config:
    """The configuration.

    Args:
        recipe: ``probe``, ``regression``, ``fitted``, ``subsets``, or nothing.
    """
    if recipe not in _RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}; there are {', '.join(filter(None, _RECIPES))}")
    config = Config(
        name="whisper_tiny",
        corpus=CorpusConfig(kind=CorpusKind.TABLE, path="nemo"),
        audio=AudioConfig(max_seconds=30.0),
        model=ModelConfig(
            encoder=EncoderConfig(checkpoint="openai/whisper-tiny.en", final_dropout=0.1),
            vocabulary=VocabularyConfig(source=VocabularySource.TRANSCRIPTS, language="pl"),
        ),
        weights=TaskWeights(alpha=0.4, beta=0.6, gamma=0.1),
        batching=BatchingConfig(batch_size=16, num_buckets=4),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, head_learning_rate=1e-3, schedule=LearningRateSchedule.LINEAR, warmup_fraction=0.1
        ),
        protocol=ProtocolConfig(kind=ProtocolKind.GROUPED, folds=0, group_column="speaker", validation_fraction=0.0),
        training=TrainingConfig(epochs=5, selection=Selection.LAST),
    )
    if recipe == "probe":
        config.weights = TaskWeights(alpha=0.0, beta=0.0, gamma=0.0)
        config.model.encoder.freeze, config.model.head_input = Freeze.ENCODER, HeadInput.WEIGHTED_SUM
        config.optimizer.head_learning_rate = 3e-3
        config.training.epochs = 15
    if recipe in ("regression", "fitted"):
        config.model.encoder.num_layers, config.model.head_start = 2, HeadStart.REGRESSION
        config.model.encoder.frequency_warp, config.model.regression_c = 0.15, 0.5
    if recipe == "regression":
        config.weights = TaskWeights(alpha=0.0, beta=0.0, gamma=0.0)
        config.model.encoder.freeze, config.training.epochs = Freeze.ENCODER, 0
    if recipe == "fitted":
        config.optimizer.learning_rate, config.optimizer.head_learning_rate = 3e-6, 1e-4
        config.training.epochs = 1
    if recipe == "subsets":
        config.variants, config.protocol.repeats = task_subsets(config.weights), 3
        config.training.tensorboard = False
    return config
