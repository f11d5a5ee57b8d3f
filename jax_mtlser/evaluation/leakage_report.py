"""The leakage of a protocol as a table, and what it means for a score."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jax_mtlser.evaluation.leakage import CHANCE, RECORDING, TURNS, Leakage
from jax_mtlser.run_folder import RunFolder, read_json

__all__ = ["gather_leakage", "leakage_rows", "print_leakage", "verdict"]

# A guess this near to a model's WA could explain most of it; one no further above chance is as good as chance.
_NEAR = 0.05
_MOST = 0.5  # share of the test utterances from which on it is said that training knows them
_ABSENT = "–"


def gather_leakage(run: RunFolder, finished: Sequence[tuple[int, int]]) -> dict[str, Any] | None:
    """The leakage of the folds that a run's scores are from.

    Args:
        run: folder; without ``leakage.json`` it was trained before leakage was measured.
        finished: (repeat, fold) of the finished members.
    """
    if not run.leakage.is_file():
        return None
    entries = read_json(run.leakage)["folds"]
    own = [Leakage.from_dict(entry) for entry in entries if (entry["repeat"], entry["fold"]) in set(finished)]
    return sum(own, start=Leakage()).summary()


def verdict(leakage: Mapping[str, Any], wa: float | None = None) -> str:
    """What guesses from labels alone say about a score, then what else training knows of the test utterances.

    Args:
        leakage: from :func:`gather_leakage`.
        wa: the model's; None: there is none yet.
    """
    sentences = []
    probes = {name: score["wa"] for name, score in leakage["probes"].items()}
    if len(probes) > 1:
        chance = probes[CHANCE]
        best = max(probes, key=lambda name: probes[name])
        sentences.append(_meaning(best, probes[best], chance, wa))
    known = leakage["known"]
    if known.get("speaker", 0) > _MOST:
        share = f"{100 * known['speaker']:.0f} %"
        sentences.append(
            f"Training has heard the speakers of {share} of the test utterances: no score is one on new voices."
        )
    if known.get("text", 0) > _MOST:
        share = f"{100 * known['text']:.0f} %"
        sentences.append(
            f"It has the exact text of {share} of them: a word error rate is that of sentences it was trained on."
            if known.get("speaker", 0) > _MOST
            else f"Training has the exact text of {share} of the test utterances: a word error rate is that of sentences "
            "it was trained on."
        )
    if count := leakage["copies"]["count"]:
        examples = "; ".join(f"{test} is {train}" for test, train in leakage["copies"]["examples"])
        sentences.append(
            f"{count:,} test utterances are recordings that training has too ({examples}): remove the copies, or keep "
            "them in one part by a group column."
        )
    return " ".join(sentences)


def _meaning(name: str, best: float, chance: float, wa: float | None) -> str:
    guess = f"the {name}" if name in (CHANCE, TURNS) else f"the majority of the same {name}"
    guess = f"Without hearing anything, guessing from {guess} reaches WA {100 * best:.1f}"
    above = f"(chance: {100 * chance:.1f})"
    if best <= chance + _NEAR and (wa is None or best <= wa - _NEAR):
        score = "what a model scores beyond that" if wa is None else f"the model's {100 * wa:.1f}"
        return (
            f"No guess from labels alone is clearly above chance (WA {100 * chance:.1f}, the best {100 * best:.1f}): "
            f"{score} comes from the recordings."
        )
    if wa is None:
        return f"{guess} {above}; a score under this protocol shows that emotion is heard only as far as it lies above that."
    if best >= wa:
        return (
            f"{guess} {above}, no less than the model's {100 * wa:.1f}: under this protocol the score does not show that "
            "emotion was heard."
        )
    if best > wa - _NEAR:
        return (
            f"{guess} {above}, within {100 * (wa - best):.1f} points of the model's {100 * wa:.1f}: most of this score "
            "can be had from what training knows about the test utterances."
        )
    return f"{guess} {above}; compare the model's {100 * wa:.1f} with that, not with chance."


def leakage_rows(leakage: Mapping[str, Any], models: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Rows of the table: ``name``, ``known`` (share of test utterances), ``wa`` and ``ua`` of the guess; None: absent.

    Args:
        leakage: from :func:`gather_leakage`.
        models: summaries of what the guesses are compared with, by name; they come last.
    """
    names = [name for name in dict.fromkeys((*leakage["known"], *leakage["probes"])) if name not in (CHANCE, RECORDING)]
    names += [name for name in (RECORDING, CHANCE) if name in leakage["known"] or name in leakage["probes"]]
    rows = [
        {"name": name, "known": leakage["known"].get(name), "model": False, **_scores(leakage["probes"].get(name, {}))}
        for name in names
    ]
    return rows + [{"name": name, "known": None, "model": True, **_scores(scores)} for name, scores in models.items()]


def _scores(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    return {key: scores.get(key) for key in ("wa", "ua")}


def print_leakage(
    leakage: Mapping[str, Any], models: Mapping[str, Mapping[str, float | None]], console: Console
) -> None:
    """Print the table and what it means for the first of the models."""
    console.print(f"What training knows of the {leakage['tested']:,} test utterances without hearing them:")
    table = Table(box=box.SIMPLE)
    table.add_column("")
    table.add_column("in training", justify="right")
    table.add_column("guess: WA", justify="right")
    table.add_column("UA", justify="right")
    for row in leakage_rows(leakage, models):
        if row["model"]:
            table.add_section()
        cells = [_percent(row[key]) for key in ("known", "wa", "ua")]
        table.add_row(Text(row["name"]), *cells, style="bold" if row["model"] else None)
    console.print(table)
    wa = next((scores["wa"] for scores in models.values()), None)
    console.print(
        "Per cent. In training: test utterances whose speaker (...) training has too. Guess: the most frequent emotion "
        "of the same speaker (...) in training."
    )
    if sentence := verdict(leakage, wa):
        console.print(Text(sentence, style="yellow"))


def _percent(share: float | None) -> str:
    return _ABSENT if share is None else f"{100 * share:.1f}"
