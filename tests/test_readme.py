"""Every command of the README is executed, in small, in a folder where what it names is at hand.

Commands are the lines of ``bash`` blocks, what follows ``$`` in other blocks, and inline code that begins as
``INLINE`` says. They run in this process, ``&&`` by ``&&``.

- A new command whose words and files are known needs nothing here.
- A file, folder or run that the README did not name before: one line in ``STAND_INS``, its name and how it is made.
- Another checkpoint of the Hub: one line in ``CHECKPOINTS``.
- A command that would take long: one line in ``SMALLER``, some words of it and what is added to it.
- Another program than python, jax-mtlser, pip, pytest and docker: a case in ``execute``; without it the test fails.

Lines that no command needs any more fail as well. Installations are not carried out: the virtual environment is made
without pip, and the extras that ``pip install`` names have to exist. Of ``pytest`` the choice of tests is executed, not
the tests; of ``docker run`` what the container would do, here. Trainings that are no smoke runs compile programs of their
own, so whole they are behind the slow marker; in every run their flags, corpus, encoder and folds are.
"""

import contextlib
import dataclasses
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "corpora"))

from iemocap_tree import write_dialogue

from jax_mtlser import cli
from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily, Wav2Vec2Architecture, WhisperArchitecture
from jax_mtlser.commands.train import parse_train_flags, train_command
from jax_mtlser.config import DemoConfig, validate
from jax_mtlser.corpora.demo import make_demo_corpus
from jax_mtlser.corpora.manifest import Manifest, Utterance, write_manifest
from jax_mtlser.experiments.leakage_check import check_protocol
from jax_mtlser.models.pretrained import export_encoder, open_encoder
from jax_mtlser.models.speech_encoder import speech_encoder
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.training.progress import Display

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
INLINE = ("jax-mtlser ", "python ", "pytest", "pip ")

# --- What is read -----------------------------------------------------------------------------------------


def fenced(language: str) -> list[str]:
    """What stands between the fences of a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in blocks if name == language]


def commands() -> list[str]:
    """In their order, each once; comments are cut off, ``[--option]`` is given, lines that go on are joined."""
    lines = [line for block in fenced("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [line.removeprefix("$ ") for block in fenced("") for line in block.splitlines() if line.startswith("$ ")]
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    lines += [code for code in re.findall(r"`([^`]+)`", prose) if code.startswith(INLINE)]
    lines = [re.sub(r"\[(-[^\]]+)\]", r"\1", re.sub(r"\s#\s.*", "", line)) for line in lines]
    return list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))


def steps(command: str) -> list[list[str]]:
    """The words of each part between ``&&``."""
    found: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word == "&&":
            found.append([])
        else:
            found[-1].append(word)
    return found


def named(text: str) -> set[str]:
    """The stand-ins that a command or a program mentions."""
    return {name for name in STAND_INS if re.search(rf"(?<![\w./]){re.escape(name)}(?![\w.])", text)}


# --- What stands in ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class World:
    """What is made once: 80 utterances of synthesised speech, and a run that was trained on them for one epoch."""

    speech: Manifest
    run: Path

    def write_table(self, path: Path, **renamed: str) -> None:
        """The utterances as a table, with emotions renamed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [dataclasses.replace(row, emotion=renamed.get(row.emotion, row.emotion)) for row in self.rows]
        write_manifest(Manifest(path.stem, tuple(rows)), path)

    @property
    def rows(self) -> tuple[Utterance, ...]:
        """All utterances."""
        return self.speech.utterances


def iemocap(path: Path, world: World) -> None:
    """Five sessions of one dialogue each in the official layout, two speakers and 16 turns in each."""
    kinds = {"angry": "ang", "happy": "exc", "neutral": "neu", "sad": "sad"}
    for session in range(1, 6):
        dialogue, labels, lines, sounds = f"Ses0{session}F_impro01", {}, [], {}
        for number, row in enumerate(row for row in world.rows if row.groups["session"] == f"S{session}"):
            turn = f"{row.gender[0].upper()}{number:03d}"
            labels[turn], sounds[turn] = kinds[row.emotion], row.path
            lines.append(f"{dialogue}_{turn} [001.0000-002.0000]: {row.text}")
        write_dialogue(path, session, dialogue, labels, "\n".join(lines).encode())
        for turn, sound in sounds.items():
            shutil.copy(sound, path / f"Session{session}/sentences/wav/{dialogue}/{dialogue}_{turn}.wav")


def recording(path: Path, world: World) -> None:
    """One file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(world.rows[0].path, path)


def trained(path: Path, world: World) -> None:
    """A finished run of the demo's first fold."""
    shutil.copytree(world.run, path)


STAND_INS: dict[str, Callable[[Path, World], None]] = {
    "IEMOCAP_full_release": iemocap,
    "table.csv": lambda path, world: world.write_table(path),
    "nemo16k": lambda path, world: world.write_table(path / "metadata.csv"),
    "PATH": lambda path, world: world.write_table(path / "metadata.csv", happy="joy"),
    "recordings": lambda path, world: [recording(path / name, world) for name in ("a.wav", "deeper/b.wav")],
    "call.wav": recording,
    "a.wav": recording,
    "runs/demo": trained,
    "runs/mine": trained,
    "runs/four_tasks": trained,
    "runs/emotion_only": trained,
    "runs/speakers": trained,
    "runs/random": trained,
    "RUN": trained,
}
CHECKPOINTS = {
    "facebook/wav2vec2-base": EncoderFamily.WAV2VEC2,
    "facebook/hubert-base-ls960": EncoderFamily.HUBERT,
    "microsoft/wavlm-large": EncoderFamily.WAVLM,
    "openai/whisper-tiny.en": EncoderFamily.WHISPER,
}
# What is added to each training, and to commands with these words.
TRAINING = (
    "--config.training.epochs=1 --config.training.data_devices=1 --config.training.tensorboard=false "
    "--config.batching.num_buckets=1"
)
SMALLER = {
    "configs/demo.py": "--config.smoke=true --config.protocol.only_folds=0",
    "IEMOCAP_full_release": "--config.corpus.partial=true --config.protocol.only_folds=0",
    "table.csv": "--config.protocol.only_folds=0",
    "whisper_tiny.py:probe": "--config.protocol.only_folds=0",
    "whisper_tiny.py:subsets": "--members=SER_r0_f0,SER+ASR_r0_f0",
    "figs3_8.py": "--members=alpha0_r0_f0,alpha1_r0_f0",
    "jax-mtlser robustness": "--condition white:10",
    "benchmarks/padding.py": "--buckets 2 --batch-sizes 8 --draws 1",
    "benchmarks/compiled_step.py": "--target cpu --encoder small --batch 1 --seconds 1",
    "benchmarks/encoders.py": "--batch 1 --seconds 0.5 --repeats 1",
    "benchmarks/step_profile.py": "--encoder small --seconds 1 --batch-size 2 --repeats 1",
}
SLOW = (
    "IEMOCAP_full_release",
    "table.csv",
    "whisper_tiny.py:probe",
    "whisper_tiny.py:subsets",
    "--format ",  # inference/test_exports.py
    "figs3_8.py",  # experiments/test_paper_configs.py runs the same two members, slow too
    "benchmarks/compiled_step.py",  # compiled/test_cpu_step.py compiles such a step in every run
    "benchmarks/encoders.py",  # five encoders of base size
)


def write_checkpoint(folder: Path, family: EncoderFamily) -> None:
    """One small layer of random weights, in Hugging Face layout."""
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    arch: EncoderArchitecture
    if family is EncoderFamily.WHISPER:
        arch = WhisperArchitecture(**size, num_mel_bins=8)
    else:
        arch = Wav2Vec2Architecture(
            family=family, **size, conv_dim=(8, 16), conv_kernel=(40, 8), conv_stride=(20, 16),
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_length=4,
        )  # fmt: skip
    module = speech_encoder(arch, EncoderOptions())
    # Shapes alone: their initial values would cost a compilation.
    audio, lengths = jnp.zeros((1, 3200)), jnp.array([3200])
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), audio, lengths, train=False)["params"])
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    export_encoder(folder, params, arch, normalize_waveform=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("world")
    speech = make_demo_corpus(folder / "speech", DemoConfig(sentences_per_style=2))
    flags = [f"--config={ROOT}/configs/demo.py", f"--workdir={folder}/run", *SMALLER["configs/demo.py"].split()]
    assert train_command(["train.py", *flags, *TRAINING.split()]) == 0
    return World(speech, folder / "run")


@pytest.fixture
def place(world, tmp_path, monkeypatch) -> Callable[[str], None]:
    """A working folder as a reader has it, whose stand-ins are made as they are named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jax_mtlser.runtime.tune_allocator", lambda: True)  # it would change the test process
    for name in ("configs", "benchmarks", "train.py", "eval.py", "pyproject.toml", "tests"):
        Path(name).symlink_to(ROOT / name)

    def download(name: str, **_: Any) -> str:
        write_checkpoint(Path("hub") / name, CHECKPOINTS[name])
        return f"hub/{name}"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    def fill(text: str) -> None:
        for name in named(text):
            STAND_INS[name](Path(name), world)

    return fill


# --- How it is executed -----------------------------------------------------------------------------------


def execute(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of one command without ``&&``."""
    more = [word for part, added in SMALLER.items() if part in " ".join(words) for word in added.split()]
    match words:
        case ["python", "-m", "venv", folder]:
            venv.create(folder)
            return 0
        case [".", activate]:
            return subprocess.run(["sh", "-c", f". {activate}"]).returncode
        case ["pip", "install", "-e", what]:
            extras = re.fullmatch(r"\.\[([\w,-]+)\]", what)
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert extras, what
            assert set(extras[1].split(",")) <= set(known)
            return 0
        case ["pytest", *flags]:
            files = [f"{ROOT}/tests/{name}.py" for name in ("test_cli", "compiled/test_h200_step")]
            pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", *flags, *files]
            return subprocess.run(pytest_, cwd=ROOT).returncode
        case ["python", "train.py", *flags]:
            return script("train.py", [*flags, *TRAINING.split(), *more], monkeypatch)
        case ["python", "eval.py", *flags]:
            return script("eval.py", flags, monkeypatch)
        case ["python", benchmark, *flags] if benchmark.startswith("benchmarks/"):
            monkeypatch.syspath_prepend(ROOT / "benchmarks")
            return script(benchmark, [*flags, *more, "--output=output"], monkeypatch)
        case ["docker", "build", "--target", target, "-t", _, "."]:  # test_dockerfile.py judges the rest
            assert f" AS {target}\n" in (ROOT / "Dockerfile").read_text()
            return 0
        case ["docker", "run", *options] if "jax-mtlser" in options:  # the image of that name, and what it is to do
            return execute(options[options.index("jax-mtlser") :], monkeypatch)
        case ["jax-mtlser", "demo", *flags]:
            with served(*flags) as address, urllib.request.urlopen(f"{address}/health") as reply:
                return 0 if reply.read() == b'{"status":"ok"}' else 1
        case ["curl", *options]:
            with served("--workdir", "runs/demo") as address:
                url = options[-1].replace("http://127.0.0.1:7860", address)
                reply = subprocess.run(["curl", "-s", *options[:-1], url], capture_output=True, check=True).stdout
            return 0 if json.loads(reply)["emotion"] in ("angry", "happy", "neutral", "sad") else 1
        case ["jax-mtlser", name]:  # said of the command as such
            with pytest.raises(SystemExit, match="0"):
                cli.main(["jax-mtlser", name, "--help"])
            return 0
        case ["jax-mtlser", "train", *flags]:
            return cli.main(["jax-mtlser", "train", *flags, *TRAINING.split(), *more])
        case ["jax-mtlser", *_]:
            return cli.main([*words, *more])
    pytest.fail(f"tests/test_readme.py does not know how to run {shlex.join(words)}; see its first lines")


@contextlib.contextmanager
def served(*flags: str) -> Iterator[str]:
    """A page on a free port, for as long as it is asked."""
    code = "import sys; from jax_mtlser.cli import main; sys.exit(main(['jax-mtlser', 'demo', *sys.argv[1:]]))"
    words = [sys.executable, "-c", code, *flags, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield re.search(r"http://\S+", process.stdout.readline())[0]
        finally:
            process.terminate()


def script(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a file as python does."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def training_flags(command: str) -> list[str] | None:
    """The flags of the training in a command; None where there is none."""
    for words in steps(command):
        for name in ("train.py", "train"):
            if name in words:
                return words[words.index(name) + 1 :]
    return None


def fill_for(command: str, place: Callable[[str], None]) -> None:
    """Make the stand-ins of a command, but not what it is to train itself."""
    place(command if training_flags(command) is None else re.sub(r"--workdir \S+", "", command))
    if "curl" in command:  # asks the page that the command above it serves
        place("runs/demo")


def marks(command: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if any(part in command for part in SLOW) else []


@pytest.mark.parametrize("command", [pytest.param(each, id=each, marks=marks(each)) for each in commands()])
def test_the_command_runs(command, place, monkeypatch):
    fill_for(command, place)
    for words in steps(command):
        assert execute(words, monkeypatch) == 0, shlex.join(words)


@pytest.mark.parametrize("command", [pytest.param(each, id=each) for each in commands() if training_flags(each)])
def test_the_training_can_begin(command, place, capsys):
    fill_for(command, place)
    flags = training_flags(command) + [
        word for part, more in SMALLER.items() if part in command for word in more.split()
    ]
    config, workdir = parse_train_flags(["train.py", *flags])
    assert workdir.parent == Path("runs")
    validate(config)
    open_encoder(config.model.encoder)
    check_protocol(config, Display(), audio=False)
    assert "What training knows" in capsys.readouterr().out


def test_the_program_runs(place):
    (program,) = fenced("python")
    place(program)
    samples = np.random.default_rng(0).normal(0, 0.1, 44_100).astype(np.float32)
    exec(compile(program, "README.md", "exec"), {"samples": samples})


def test_another_program_is_not_passed_over(monkeypatch):
    with pytest.raises(pytest.fail.Exception, match="does not know how to run make all"):
        execute(["make", "all"], monkeypatch)


def test_no_line_of_the_tables_is_left_over():
    everything = "\n".join([*commands(), *fenced("python")])
    assert [name for name in STAND_INS if name not in named(everything)] == []
    assert [part for part in (*SMALLER, *SLOW) if part not in everything] == []
