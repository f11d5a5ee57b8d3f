"""Settings of cross-validation."""

import dataclasses
import enum

__all__ = ["Mates", "ProtocolConfig", "ProtocolKind"]


class ProtocolKind(enum.Enum):
    """How utterances are divided into folds."""

    STRATIFIED = "stratified"  # random utterances, class shares kept: the paper's protocol
    GROUPED = "grouped"  # whole groups (speakers, sessions, ...): nothing of a test group is trained on
    FIXED = "fixed"  # one fold; a column of the corpus names the part of each utterance
    LISTS = "lists"  # what files say: a table of ids with folds or parts, or EmoBox's folders


class Mates(enum.Enum):
    """What becomes of those who talk with the tested speakers: they share dialogues with them."""

    VALIDATION = "validation"  # they are the validation part
    DROP = "drop"  # they are in no part of this fold
    TRAIN = "train"  # they are trained on, and with them the other half of each tested dialogue


@dataclasses.dataclass(kw_only=True)
class ProtocolConfig:
    """Cross-validation.

    Attributes:
        kind: how folds are drawn.
        folds: number of folds; 0 with GROUPED: one per group. FIXED has one and LISTS as many as the files name.
        repeats: the whole cross-validation is repeated with as many different seeds.
        seed: of the first repeat; repeat r uses seed + r.
        group_column: manifest column whose values stay together (GROUPED): speaker, session, dialogue, scenario,
            id, ...; ``text`` stands for the normalised transcript. With FIXED and LISTS, validation parts are cut
            from training by these groups; empty: stratified.
        group_pattern: regular expression that is searched in the column's values; what its first bracket (or all of
            it) matches is the group. ``^Ses\\d\\d[FM]`` on ``id`` groups IEMOCAP by file prefix.
        mate_column: column that holds the tested groups' mates together with them (GROUPED): ``session`` where
            speakers are tested. Empty: groups have no mates.
        mates: what becomes of the mates.
        split_column: column that names each utterance's part: train, dev, test or similar (FIXED).
        fold_lists: file or folder with the folds (LISTS), see ``evaluation/protocols/lists.py``.
        filter_column: only utterances with one of ``filter_values`` in this column are in any part: ``improvised``
            with ``yes`` leaves IEMOCAP's scripted dialogues out. Empty: all.
        filter_values: see ``filter_column``.
        validation_fraction: share of each fold's training part held out for validation, drawn by the
            same rule (stratified, or whole groups); not used where mates, column or files give a validation part.
            0 only with ``Selection.LAST`` or ``BEST_TEST``, or with mates for validation.
        only_folds, only_repeats: train only these; empty: all.
    """

    kind: ProtocolKind = ProtocolKind.STRATIFIED
    folds: int = 10
    repeats: int = 1
    seed: int = 0
    group_column: str = ""
    group_pattern: str = ""
    mate_column: str = ""
    mates: Mates = Mates.VALIDATION
    split_column: str = ""
    fold_lists: str = ""
    filter_column: str = ""
    filter_values: tuple[str, ...] = ()
    validation_fraction: float = 0.1
    only_folds: tuple[int, ...] = ()
    only_repeats: tuple[int, ...] = ()
