"""What exporting gained and lost, as a table."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jax_mtlser.inference.exports.export import Exported
from jax_mtlser.inference.exports.formats import ExportFormat, Weights

__all__ = ["print_export"]

_WHAT = {
    ExportFormat.HUGGINGFACE: "without its heads",
    ExportFormat.ORBAX: "with all its heads",
    ExportFormat.STABLEHLO: "with the emotion head, any batch and length",
    ExportFormat.ONNX: "with the emotion head, one fixed shape",
}


def print_export(exported: Exported, form: ExportFormat, weights: Weights, to: Path, console: Console) -> None:
    """Two rows, model and export, then what they mean."""
    v = exported.verified
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("on disk", "difference", "same", "accuracy", "time"):
        table.add_column(name, justify="right")
    accuracy = [f"{100 * share:.1f} %" for share in v.accuracy] if v.accuracy else ["–", "–"]
    milliseconds = [f"{value:.1f} ms" for value in v.milliseconds]
    table.add_row("run, float32", _megabytes(exported.sizes[0]), "", "", accuracy[0], milliseconds[0])
    table.add_row(
        Text(f"{form.value}, {weights.value}"),
        _megabytes(exported.sizes[1]),
        f"{v.difference:.2g}",
        f"{100 * v.agreement:.1f} %",
        accuracy[1],
        milliseconds[1],
    )
    console.print(table)
    lines = [
        f"Verified on {v.utterances} recordings ({v.source}): the largest difference of a probability is "
        f"{v.difference:.2g}, the limit {v.limit:g}; same: share with the same emotion. Times per utterance were measured "
        "just now on this machine, one after the other.",
    ]
    if v.stored is not None:
        lines.append(f"The model itself differs by {v.stored:.2g} from the probabilities that training wrote down.")
    arch = exported.trained.arch
    lines.append(f"{arch.family.value} encoder, {arch.num_hidden_layers} layers, {_WHAT[form]}: {to}")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"
