"""A protocol in words, from the dict that ``results.json`` keeps of it."""

from collections.abc import Mapping
from typing import Any

__all__ = ["OPTIMISTIC", "RANDOM_FOLDS", "protocol_sentence", "protocol_title", "protocol_warnings"]

RANDOM_FOLDS = (
    "The test utterances were drawn at random, so training has as a rule heard their speakers, and other turns "
    "of the same conversations. Expect lower scores on people and conversations it has not heard; grouped folds "
    "measure that."
)
OPTIMISTIC = (
    "The tested epoch was chosen by its score on the test part itself, so expect the same model to score lower on "
    "utterances that had no say in it. Compare it only with results that were chosen the same way."
)


def protocol_title(protocol: Mapping[str, Any]) -> str:
    """The protocol in half a line."""
    times = f", {protocol['repeats']} repeats" if protocol["repeats"] > 1 else ""
    folds = f"{protocol['folds']}-fold cross-validation" if protocol["folds"] > 1 else "one division"
    match protocol["kind"]:
        case "stratified":
            drawn = "stratified random"
        case "grouped":
            drawn = f"grouped by {_grouping(protocol)}"
        case "fixed":
            drawn = f"parts from column {protocol['split_column']}"
        case _:
            drawn = f"lists {protocol['fold_lists']}"
    kept = f", {_kept(protocol)} only" if protocol["filter_column"] else ""
    stamp = "OPTIMISTIC: " if protocol["selection"] == "best_test" else ""
    return f"{stamp}{folds}, {drawn}{kept}{times}, seed {protocol['seed']}"


def protocol_sentence(protocol: Mapping[str, Any]) -> str:
    """What is in which part, and which epoch is tested."""
    first, last = protocol["seed"], protocol["seed"] + protocol["repeats"] - 1
    times = f"{protocol['repeats']} repeats with seeds {first} to {last}" if last > first else f"seed {first}"
    folds = f"{protocol['folds']}-fold cross-validation" if protocol["folds"] > 1 else "One division"
    fraction = protocol["validation_fraction"]
    share = f"{f'{100 * fraction:g} %' if fraction else 'nothing'} of each training part is held out for validation"
    match protocol["kind"]:
        case "stratified":
            drawn = "utterances drawn at random, with the share of each emotion kept"
        case "grouped":
            drawn = f"all utterances with the same {_grouping(protocol)} in the same part"
        case "fixed":
            drawn = f"the parts that column {protocol['split_column']} names"
            share = f"validation as named there, else {share}"
        case _:
            drawn = f"the parts that {protocol['fold_lists']} lists"
            share = f"validation as listed, else {share}"
    if protocol["mate_column"]:
        mates = f"who shares a {protocol['mate_column']} with the tested"
        match protocol["mates"]:
            case "validation":
                share = f"{mates} is validated on"
            case "drop":
                share = f"{mates} is in no part; {share}"
            case _:
                share = f"{mates} is trained on; {share}"
    kept = f" Only utterances with {_kept(protocol)} are used." if protocol["filter_column"] else ""
    tested = {
        "last": "the parameters of the last epoch are tested",
        "best_validation": "the epoch with the highest validation UA is tested",
        "best_test": "the epoch with the highest UA on the test part itself is reported",
    }.get(protocol["selection"], f"selection: {protocol['selection']}")
    notes = "".join(f" {note}" for note in protocol["notes"])
    return f"{folds}, {times}: {drawn}. {share[0].upper()}{share[1:]}; {tested}.{kept}{notes}"


def protocol_warnings(protocol: Mapping[str, Any]) -> dict[str, str]:
    """What has to be said beside every score, by a word that heads it."""
    warnings = {}
    if protocol["selection"] == "best_test":
        warnings["Optimistic"] = OPTIMISTIC
    if protocol["kind"] == "stratified":
        warnings["Random folds"] = RANDOM_FOLDS
    return warnings


def _grouping(protocol: Mapping[str, Any]) -> str:
    pattern = f" ({protocol['group_pattern']})" if protocol["group_pattern"] else ""
    return f"{protocol['group_column']}{pattern}"


def _kept(protocol: Mapping[str, Any]) -> str:
    return f"{protocol['filter_column']} {' or '.join(protocol['filter_values'])}"
