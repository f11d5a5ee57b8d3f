"""The table and the page say what the run folder says, and nothing in it can break them."""

import html.parser
import io
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text
from rich.console import Console

from jax_mtlser.config import Config, CorpusConfig, CorpusKind, ProtocolConfig, ProtocolKind, to_dict
from jax_mtlser.corpora.manifest import Manifest, Utterance, write_manifest
from jax_mtlser.evaluation import figures
from jax_mtlser.evaluation.certainty_text import calibration_rows
from jax_mtlser.evaluation.leakage import RECORDING, Leakage
from jax_mtlser.evaluation.metrics import ConfusionSums
from jax_mtlser.evaluation.predictions import Prediction, write_predictions
from jax_mtlser.evaluation.report import print_results, write_report
from jax_mtlser.evaluation.results import gather_results
from jax_mtlser.run_folder import RunFolder, append_json_line, write_json, write_text

HOSTILE = '<script>alert("x")</script> & $\\frac{1}$ [red]'
WORDS = ("I", "CAN", "NOT", "BELIEVE", "YOU", "DID", "THAT", "TO", "ME", "AGAIN")


def fake_run(
    path: Path,
    *,
    emotions=("angry", "happy", "neutral", "sad"),
    repeats=2,
    folds=3,
    size=60,
    epochs=4,
    hit=0.8,
    kind=ProtocolKind.STRATIFIED,
    name="demo",
    unfinished=(),
    seed=0,
) -> RunFolder:
    """A run folder as the runner leaves it, with made-up numbers."""
    draw, run = random.Random(seed), RunFolder(path)
    config = Config(name=name, corpus=CorpusConfig(kind=CorpusKind.TABLE, path="corpus", emotions=tuple(emotions)))
    config.protocol.kind, config.protocol.folds, config.protocol.repeats = kind, folds, repeats
    config.protocol.group_column = "speaker" if kind is ProtocolKind.GROUPED else ""
    config.training.epochs = epochs
    write_json(run.config, to_dict(config))
    corpus = [_utterance(i, draw.choice(emotions), path) for i in range(size)]
    write_manifest(Manifest("made-up", tuple(corpus)), run.corpus)
    skipped = "id,path,reason\nx1,x1.wav,0.05 s is shorter than 0.1 s\nx2,x2.wav,0.07 s is shorter than 0.1 s\n"
    write_text(run.skipped, skipped + "x3,x3.wav,<b>cannot be decoded</b>\n")
    drawn = []
    for repeat in range(repeats):
        order = draw.sample(range(size), size)
        parts = [order[fold::folds] for fold in range(folds)]
        ids = [[corpus[i].id for i in part] for part in parts]
        drawn.append(
            {
                "repeat": repeat,
                "seed": repeat,
                "folds": [{"train": [], "validation": [], "test": test} for test in ids],
            }
        )
        for fold, rows in enumerate(parts):
            member = f"r{repeat}_f{fold}"
            _log(run, member, draw, epochs)
            if member not in unfinished:
                _finish(run, (member, repeat, fold), [corpus[i] for i in rows], size, emotions, draw, epochs, hit)
    write_json(run.folds, {"hash": "0f" * 32, "repeats": drawn})
    return run


def _utterance(i, emotion, path):
    return Utterance(
        id=f"u{i:04d}",
        path=path / f"u{i:04d}.wav",
        emotion=emotion,
        gender="female" if i % 2 else "male",
        speaker=f"speaker {i % 5}",
        text=" ".join(WORDS[: 1 + i % 10]),
    )


def _log(run, member, draw, epochs):
    folder = run.member(member)
    folder.path.mkdir(parents=True)
    lines, steps = [], 5
    for epoch in range(1, epochs + 1):
        left = 2.7 ** (-3.0 * epoch / epochs)
        for step in range(steps):
            losses = {
                f"loss_{t}": s * left * draw.uniform(0.8, 1.2)
                for t, s in (("emotion", 1.4), ("gender", 0.7), ("speaker", 2.3), ("asr", 90.0))
            }
            at = (epoch - 1) * steps + step + 1
            lines.append({"kind": "train", "step": at, "epoch": at / steps, "loss": 3.0, **losses, "grad_norm": None})
        losses = {
            f"loss_{t}": s * (0.3 + 0.8 * left) * draw.uniform(0.9, 1.1)
            for t, s in (("emotion", 1.4), ("gender", 0.7), ("speaker", 2.3), ("asr", 90.0))
        }
        rise = (1 - left) * draw.uniform(0.92, 1.0)
        lines.append(
            {
                "kind": "validation",
                "epoch": epoch,
                "step": epoch * steps,
                **losses,
                "wa": 0.25 + 0.58 * rise,
                "ua": 0.25 + 0.6 * rise,
                "gender_accuracy": 0.6 + 0.39 * rise,
                "speaker_accuracy": 0.95 * rise,
                "wer": 1.05 - 0.8 * rise,
                "macro_f1": None,
            }
        )
    for line in lines:
        append_json_line(folder.metrics, line)


def _finish(run, member, rows, size, emotions, draw, epochs, hit):
    name, repeat, fold = member
    labels = {
        "emotion": list(emotions),
        "gender": ["female", "male"],
        "speaker": [f"speaker {i}" for i in range(5)],
    }

    def chosen(label, names, chance):
        return label if draw.random() < chance else draw.choice(names)

    predictions = [
        Prediction(
            id=u.id,
            member=name,
            repeat=repeat,
            fold=fold,
            part="test",
            emotion=u.emotion,
            emotion_predicted=chosen(u.emotion, labels["emotion"], hit),
            emotion_probabilities=(1 / len(emotions),) * len(emotions),
            gender=u.gender,
            gender_predicted=chosen(u.gender, labels["gender"], 0.97),
            gender_probabilities=(0.5, 0.5),
            speaker=u.speaker,
            speaker_predicted=chosen(u.speaker, labels["speaker"], 0.9),
            text=u.text,
            text_predicted=" ".join(w for w in u.text.split() if draw.random() < 0.8),
        )
        for u in rows
    ]
    write_predictions(run.member(name).predictions, predictions, labels)
    result = {
        "name": name,
        "repeat": repeat,
        "fold": fold,
        "seed": 1,
        "epochs": epochs,
        "selected_epoch": epochs - 1,
        "selection": "best_validation",
        "labels": labels,
        "parameters": 94_403_318,
        "counts": {
            "train": int(0.9 * (size - len(rows))),
            "validation": size // 10,
            "test": len(rows),
            "skipped_ctc": 0,
        },
        "seconds": {"compile": 21.5, "train": 1800.0},
        "audio_seconds_per_second": 912.0,
        "metrics": {},
        "versions": {"python": "3.11.9", "jax": "0.10.2", "device": "cpu"},
    }
    write_json(run.member(name).result, result)


class _Page(html.parser.HTMLParser):
    """Tags, ids, links and text of a page; unbalanced tags are an error."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.text = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._attributes(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self._attributes(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _attributes(self, attrs):
        self.ids += [value for key, value in attrs if key == "id"]
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text.append(data)


def _text(page: Path) -> str:
    return re.sub(r"\s+", " ", " ".join(_Page(page.read_text(encoding="utf-8")).text))


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    run = fake_run(tmp_path_factory.mktemp("repeated") / "run")
    return run, write_report(run)


def test_the_page_says_what_the_results_say(repeated):
    run, path = repeated
    results, text = gather_results(run), _text(path)
    assert path == run.report / "index.html"
    repeats = results["repeats"]
    for key in ("wa", "ua", "wer", "speaker_accuracy"):
        assert f"{100 * repeats['mean'][key]:.2f}" in text
        assert f"± {100 * repeats['std'][key]:.2f}" in text
        assert f"{100 * results['pooled'][key]:.2f}" in text
        for fold in results["folds"]:
            assert f"{100 * fold['metrics'][key]:.2f}" in text
    assert "3-fold cross-validation, 2 repeats with seeds 0 to 1" in text
    assert "mean ± sample standard deviation of 2 repeats" in text
    assert "0f" * 32 in text


def test_page_and_terminal_say_how_sure_the_numbers_are(repeated):
    results, page = gather_results(repeated[0]), _text(repeated[1])
    shown = re.sub(r"\s+", " ", _printed(results))
    intervals, before = results["intervals"], results["calibration"]["before"]
    for text in (page, shown):
        for low, high in [intervals["wa"], intervals["ua"], *(fold["wa_interval"] for fold in results["folds"])]:
            assert f"{100 * low:.1f}–{100 * high:.1f}" in text
        assert "resampling 5 speakers 10,000 times (as session is not known, dialogue is not known)" in text
        assert "5 speakers are few" in text
        assert f"as trained {100 * before['ece']:.2f} {before['brier']:.3f} {before['nll']:.3f}" in text
        assert "no labelled utterances in the validation part" in text


def test_the_temperature_stands_beside_what_it_changes():
    scores = {"count": 9, "ece": 0.12, "brier": 0.5, "nll": 1.25}
    calibration = {"before": scores, "after": {**scores, "ece": 0.034, "nll": 1.0}, "without": {}}
    rows = calibration_rows({**calibration, "temperatures": {"r0_f0": 1.5, "r0_f1": 0.9}})
    assert rows == [
        ("as trained", ["12.00", "0.500", "1.250"]),
        ("with temperature 0.90–1.50", ["3.40", "0.500", "1.000"]),
    ]


def test_the_page_describes_corpus_settings_and_versions(repeated):
    text = _text(repeated[1])
    assert "60 utterances" in text
    assert "speaker 4 12" in text
    assert "… s is shorter than … s 2" in text  # two reasons that differ in a number
    assert "<b>cannot be decoded</b> 1" in text
    assert "learning_rate 1e-05" in text
    assert "jax 0.10.2" in text
    assert "94,403,318 parameters; 3 h 00 min of training and 2 min of compilation" in text


def test_the_page_stands_alone(repeated):
    page = _Page(repeated[1].read_text(encoding="utf-8"))
    assert all(link.startswith(("#", "data:image/png")) for link in page.links)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 3
    source = repeated[1].read_text(encoding="utf-8")
    assert "@import" not in source
    assert "prefers-color-scheme: dark" in source


def test_every_reference_within_a_figure_has_its_target(repeated):
    source = repeated[1].read_text(encoding="utf-8")
    wanted = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', source))
    ids = set(_Page(source).ids)
    assert wanted
    assert {a or b for a, b in wanted} <= ids


def test_figures_are_valid_files(repeated):
    run, _ = repeated
    for name in ("folds", "confusion", "curves"):
        root = ElementTree.fromstring((run.report / f"{name}.svg").read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")
        assert (run.report / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    svg = (run.report / "confusion.svg").read_text(encoding="utf-8")
    matrix = gather_results(run)["confusion"]["matrix"]
    assert f">{matrix[0][0]}</" in svg.replace("\n", "").replace("tspan", "text")


def test_the_same_numbers_give_the_same_files(tmp_path):
    for folder in ("one", "other"):
        figures.save(figures.fold_scores(["r0_f0", "r0_f1"], [0.9, 0.8], [0.7, None]), tmp_path / folder / "folds")
    for suffix in ("svg", "png"):
        one, other = (tmp_path / folder / f"folds.{suffix}" for folder in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


def test_hostile_names_are_only_text(tmp_path):
    run = fake_run(
        tmp_path / "run",
        emotions=(HOSTILE, "愤怒\x07", "b" * 80),
        repeats=1,
        folds=2,
        size=20,
        epochs=2,
        name=HOSTILE,
    )
    copies = Leakage(20, {HOSTILE: (3, 20), RECORDING: (1, 20)}, {}, ((HOSTILE, "[/red]"),))
    write_json(run.leakage, {"folds": [{"repeat": 0, "fold": fold, **copies.to_dict()} for fold in range(2)]})
    path = write_report(run)
    assert "15.00" in _text(path)
    assert "2 test utterances are recordings that training has too" in _text(path)
    assert f"({HOSTILE} is [/red])" in " ".join(_printed(gather_results(run)).split())
    source = path.read_text(encoding="utf-8")
    assert "<script" not in source
    assert HOSTILE in _text(path)
    for name in ("folds", "confusion", "curves"):
        ElementTree.fromstring((run.report / f"{name}.svg").read_text(encoding="utf-8"))
    assert "愤怒" in (run.report / "confusion.svg").read_text(encoding="utf-8")


def test_random_folds_carry_a_warning(repeated):
    assert "Random folds." in _text(repeated[1])


def test_an_unfinished_run_of_grouped_folds_says_what_it_is(tmp_path):
    run = fake_run(
        tmp_path / "run",
        kind=ProtocolKind.GROUPED,
        repeats=2,
        folds=2,
        size=20,
        epochs=1,
        unfinished=("r1_f0",),
    )
    text = _text(write_report(run))
    assert "Random folds." not in text
    assert "all utterances with the same speaker in the same part" in text
    assert "3 of 4 trainings are in this report" in text
    assert "Repeats without all of their folds, not among the repeats: 1." in text


def test_a_run_with_nothing_but_its_plan(tmp_path):
    run = fake_run(tmp_path / "run", repeats=1, folds=2, size=20, epochs=1, unfinished=("r0_f0", "r0_f1"))
    run.skipped.unlink()
    run.corpus.unlink()
    for folder in run.members():
        folder.metrics.unlink()
    assert "No training has finished yet" in _text(write_report(run))


def test_the_terminal_table_has_every_member_and_the_means(repeated):
    results = gather_results(repeated[0])
    shown = _printed(results)
    for fold in results["folds"]:
        assert re.search(
            rf"{fold['name']} +{100 * fold['metrics']['wa']:.2f} +{100 * fold['metrics']['ua']:.2f}", shown
        )
    assert "mean of 2 repeats" in shown
    assert f"±{100 * results['repeats']['std']['wa']:.2f}" in shown
    assert re.search(rf"pooled +{100 * results['pooled']['wa']:.2f}", shown)
    assert f"{100 * results['pooled']['wer']:.2f}" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_terminal_table_of_one_repeat_marks_absent_tasks():
    summary = {
        "wa": 0.5,
        "ua": 0.25,
        "macro_f1": 0.2,
        "gender_accuracy": None,
        "speaker_accuracy": None,
        "wer": None,
    }
    protocol = to_dict(ProtocolConfig(kind=ProtocolKind.GROUPED, folds=1, group_column=HOSTILE))
    protocol |= {"selection": "last", "notes": []}
    results = {
        "folds": [{"name": "[bold]x", "metrics": summary, "wa_interval": None}],
        "intervals": None,
        "calibration": None,
        "pooled": summary,
        "protocol": protocol,
        "repeats": {"values": [summary], "mean": summary, "std": dict.fromkeys(summary)},
        "missing": ["r0_f1"],
        "leakage": None,
    }
    shown = _printed(results)
    assert re.search(r"\[bold\]x +50.00 +25.00 +20.00 +– +– +–", shown)
    assert "mean of" not in shown
    assert "Not finished: r0_f1" in shown


def _printed(results):
    stream = io.StringIO()
    print_results(results, Console(file=stream, width=80, color_system=None))
    return stream.getvalue()


def test_curves_take_the_last_of_repeated_steps_and_skip_gaps():
    lines = [
        {"kind": "train", "step": 1, "epoch": 0.5, "loss_emotion": 9.0},
        {"kind": "train", "step": 1, "epoch": 0.5, "loss_emotion": 1.0},
        {"kind": "train", "step": 2, "epoch": 1.0, "loss_emotion": 3.0},
        {"kind": "train", "step": 3, "epoch": 1.5, "loss_emotion": None},
        {"kind": "validation", "epoch": 1, "step": 2, "wa": 0.5},
        {"kind": "validation", "epoch": 2, "step": 4, "wa": None},
    ]
    figure = figures.training_curves({"r0_f0": lines})
    loss, scores = figure.axes
    assert [tuple(line.get_xydata()[0]) for line in loss.lines] == [(1.0, 2.0)]
    assert [tuple(line.get_xydata()[0]) for line in scores.lines] == [(1.0, 50.0)]
    assert loss.get_title(loc="left") == "Emotion: loss"


@pytest.mark.parametrize(
    "figure",
    [
        figures.confusion_matrix(ConfusionSums(("angry", "sad"), np.array([[9_000, 100], [0, 0]]))),
        figures.confusion_matrix(ConfusionSums.from_labels(["a" * 40, "$", "b" * 17], ["$", "$", "a" * 40])),
        figures.fold_scores(["r0_f0"], [0.9], [None]),
        figures.fold_scores(["a long name of a fold"] * 30, [0.9] * 30, [0.8] * 30),
    ],
    ids=["two classes", "long names", "one fold", "thirty folds"],
)
def test_no_label_is_cut_off(tmp_path, figure):
    figures.save(figure, tmp_path / "figure")
    frame = figure.bbox
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert texts
    for text in texts:
        box = text.get_window_extent()
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert inside, text.get_text()


def _weights(*steps: dict[str, float]) -> dict[str, list[dict]]:
    return {"r0_f0": [{"kind": "train", "step": n, "epoch": n / 2, **step} for n, step in enumerate(steps, 1)]}


def test_weights_are_drawn_for_the_tasks_that_have_one():
    steps = [{"weight_emotion": w, "weight_gender": 0.0, "weight_asr": w / 50} for w in (1.0, 2.0, 3.0, 5.0)]
    (axes,) = figures.weight_curves(_weights(*steps)).axes
    drawn = {line.get_label(): [tuple(point) for point in line.get_xydata()] for line in axes.lines}
    assert drawn == {"Emotion": [(1.0, 1.5), (2.0, 4.0)], "Transcript": [(1.0, 0.03), (2.0, 0.08)]}
    assert axes.get_yscale() == "log"
    (axes,) = figures.weight_curves(_weights({"weight_emotion": 1.0, "weight_speaker": -0.5})).axes
    assert axes.get_yscale() == "linear", "a reversed gradient has no logarithm"


def test_the_page_shows_weights_where_a_method_chose_them(tmp_path):
    run = fake_run(tmp_path / "run")
    assert "on its way into the encoder" not in _text(write_report(run))
    line = {"kind": "train", "step": 1, "epoch": 0.5, "weight_emotion": 1.2, "weight_asr": 0.8}
    append_json_line(run.member("r0_f0").metrics, line)
    assert "on its way into the encoder" in _text(write_report(run))
    assert (run.report / "weights.svg").exists()


def test_nothing_to_draw_is_no_figure():
    assert figures.weight_curves(_weights({"loss_emotion": 1.0})) is None
    assert figures.training_curves({}) is None
    assert figures.training_curves({"r0_f0": [{"kind": "train", "step": 1, "epoch": 0.1, "loss": 1.0}]}) is None
    assert figures.fold_scores([], [], []) is None
    assert figures.confusion_matrix(ConfusionSums.from_labels([], [], ["a"])) is None
