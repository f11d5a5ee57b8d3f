# %% [markdown]
# # From a folder of recordings to a model, and how far to trust it
#
# This tutorial trains a small model for emotion, gender and speaker, tests it on speakers that it has not heard, asks
# how far the test could be passed without listening, compares the model with one for emotion alone, and uses it on new
# recordings. It takes a minute or two on two CPU cores. Everything it needs is installed by
#
#     pip install -e ".[demo]"
#
# It is a Python file whose cells (`# %%`) are read by VS Code, PyCharm, Spyder and, with jupytext, by Jupyter:
# `jupytext --to ipynb docs/tutorial.py`. As a whole it is run by `python docs/tutorial.py` in the source folder.

# %%
import csv
import json
import os
import shlex
import shutil
from pathlib import Path

from transformers import AutoConfig

from jax_mtlser import Recognizer, cli
from jax_mtlser.config import DemoConfig
from jax_mtlser.corpora.demo import make_demo_corpus

if Path.cwd().name == "docs":  # where notebooks start
    os.chdir("..")
here = Path("runs/tutorial")


def run(command: str) -> None:
    """Do what the command does in a terminal; in a notebook, ``!jax-mtlser ...`` is the same."""
    print(f"$ {command}\n")
    if status := cli.main(shlex.split(command)):
        raise SystemExit(status)


# %% [markdown]
# ## 1. The recordings
#
# Ten voices of the speech synthesiser espeak-ng say ten sentences each in four styles that stand for emotions. With
# recordings of your own, begin here with a folder of audio files: WAV, FLAC, MP3 or Ogg, of any rate; other formats are
# read where ffmpeg is installed.

# %%
speech = make_demo_corpus(here / "speech", DemoConfig(sentences_per_style=10))
recordings = sorted((here / "speech/wav").glob("*.wav"))
print(f"{len(recordings)} files, such as {', '.join(path.name for path in recordings[:3])}")

# %% [markdown]
# ## 2. A table of what is in them
#
# One row for each utterance. Only `path` is needed; `emotion`, `gender`, `speaker`, `text` are the four tasks, and an
# empty cell leaves an utterance out of that task only. `start` and `end` (seconds) cut utterances out of longer files.
# Any other column can group utterances: `session` below says who was recorded together.
#
# Here the labels are in the file names. Write down the speaker wherever it is known, even if you do not want to
# recognise speakers: without it nobody can tell whether a test was about emotions or about voices.

# %%
texts = {utterance.id: utterance.text for utterance in speech.utterances}
table = here / "table.csv"
with table.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["path", "emotion", "gender", "speaker", "session", "text"])
    for path in recordings:
        speaker, _, emotion = path.stem.split("_")
        gender = {"F": "female", "M": "male"}[speaker[0]]
        writer.writerow([path.absolute(), emotion, gender, speaker, f"S{speaker[1]}", texts[path.stem]])

# %% [markdown]
# `jax-mtlser corpus` reads a table, or the folder of a published corpus, as a training would, and says what it found.
# Look at the number of speakers and at the shares of the emotions before anything else.

# %%
run(f"jax-mtlser corpus {table}")

# %% [markdown]
# ## 3. The settings
#
# A configuration is a Python file; the ones in `configs/` are to start from. Every setting in it can be changed by a
# flag. We take the demo's small encoder, which learns from random weights, make it smaller, and give it our table. Nine
# minutes of speech are too few to learn to spell from nothing, so speech recognition gets the weight 0.
#
# For work that counts, begin with a pre-trained encoder instead:
#
#     jax-mtlser train --config configs/own_recordings.py --workdir runs/mine --config.corpus.path=table.csv \
#         --config.model.encoder.checkpoint=wavlm-base-plus

# %%
settings = f"""--config configs/demo.py
    --config.corpus.kind=table --config.corpus.path={table}
    --config.model.encoder.architecture.hidden_size=64 --config.model.encoder.architecture.num_hidden_layers=1
    --config.model.encoder.architecture.conv_dim=32,64,64 --config.model.encoder.architecture.conv_kernel=100,8,4
    --config.model.encoder.architecture.conv_stride=20,8,2 --config.model.encoder.architecture.intermediate_size=128
    --config.weights.gamma=0 --config.optimizer.learning_rate=3e-3 --config.training.epochs=5
    --config.batching.num_buckets=1 --config.training.data_devices=1"""

# %% [markdown]
# ## 4. The protocol, before any training
#
# How utterances are divided into training and test decides what a score means. `jax-mtlser leakage` shows, without
# training anything, what training knows of the test utterances, and what a guess from that knowledge alone would score.
# First the division of many papers, random utterances:

# %%
run(f"jax-mtlser leakage {settings}")

# %% [markdown]
# Every test speaker is in training. A model can score on such a test by recognising voices, wherever a voice goes
# together with an emotion, and what it scores says little about a new speaker.
#
# So we hold out whole sessions, with both of their speakers. (`speaker` as group column holds out one at a time.) The
# epochs are fixed beforehand (the demo tests the last one), so no validation part is needed. Where the best epoch is to be
# chosen, it has to be chosen on one (`--config.training.selection=best_validation`), never on the test part.

# %%
settings += (
    " --config.protocol.kind=grouped --config.protocol.group_column=session --config.protocol.validation_fraction=0"
)
run(f"jax-mtlser leakage {settings}")

# %% [markdown]
# Now no test speaker is in training. The row `text` is the share of test sentences that training has, too, and what
# guessing each one's most frequent emotion in training would score: nothing above chance, because every sentence is spoken
# in all four emotions. In acted corpora with fixed scripts this row is worth a look.
#
# ## 5. Training
#
# The demo trains the first of five folds only (`--config.protocol.only_folds=` is a flag too). If it is stopped, the same
# command goes on where it was. The last table is the one from above, with the model's own score below the guesses.

# %%
run(f"jax-mtlser train {settings} --workdir {here}/three_tasks")

# %% [markdown]
# - **WA** is accuracy over utterances, **UA** the mean over the emotions' recalls; chance is 25 % for both.
# - The interval behind it (Wilson, 95 %) is what so few test utterances allow, not what another training would give.
# - The speaker column is empty: a speaker that was held out cannot be among the known ones.
#
# A run folder holds all that there is to know: `results.json`, a page with figures in `report/index.html`, and under
# `members/` each fold's model and its prediction for every utterance.

# %%
results = json.loads((here / "three_tasks/results.json").read_text())
print({name: None if value is None else round(value, 3) for name, value in results["pooled"].items()})

# %% [markdown]
# ## 6. Do the other tasks help?
#
# The claim of multi-task learning is that gender and speaker help emotion. The same settings with their weights at 0 are
# the other side: the same folds, the same seed, emotion alone.

# %%
alone = "--config.weights.alpha=0 --config.weights.beta=0"
run(f"jax-mtlser train {settings} {alone} --workdir {here}/emotion_only")
run(f"jax-mtlser compare {here}/three_tasks {here}/emotion_only -o {here}/comparison.csv")

# %% [markdown]
# `compare` pairs the runs utterance by utterance. Read the interval of the difference and not the difference: where it
# holds 0, these utterances cannot tell the two apart. Utterances of one speaker are alike, so whole speakers are resampled
# (or sessions, where there are several), and the text below the table says that two are too few for an interval that can be
# relied on. Train all folds, and several seeds (`--config.protocol.repeats`), before you believe in a few points.

# %%
with (here / "comparison.csv").open() as file:
    comparison = list(csv.DictReader(file))

# %% [markdown]
# ## 7. New recordings
#
# `jax-mtlser predict` searches folders and writes a row for each recording, with the probability of every emotion. A file
# that cannot be read gets its reason in the column `error`. Here the ten voices speak again.

# %%
make_demo_corpus(here / "new", DemoConfig(sentences_per_style=1, seed=5))
run(f"jax-mtlser predict --workdir {here}/three_tasks {here}/new -o {here}/new.csv --overwrite")

with (here / "new.csv").open() as file:
    predictions = list(csv.DictReader(file))
right = [row for row in predictions if row["emotion"] in Path(row["file"]).stem]
print(f"{len(right)} of {len(predictions)} as they were meant")

# %% [markdown]
# In Python the same model is a function. Long recordings get a timeline by `--window 3 --hop 1`.

# %%
recognizer = Recognizer.load(here / "three_tasks")
answer = recognizer(predictions[0]["file"])
print(answer.emotion, answer.gender, {name: round(share, 3) for name, share in answer.probabilities.items()})

# %% [markdown]
# ## 8. Export
#
# The fine-tuned encoder can be written for `transformers`. As a folder in its layout it is also a checkpoint to start
# another training from (`--config.model.encoder.checkpoint=FOLDER`).

# %%
shutil.rmtree(here / "encoder", ignore_errors=True)  # of the last time that this cell was run
run(f"jax-mtlser export --workdir {here}/three_tasks --to {here}/encoder")
exported = AutoConfig.from_pretrained(here / "encoder")
print(exported.model_type, exported.hidden_size)
