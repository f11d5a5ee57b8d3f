"""The numbers of Wang, Yao, Yi (Appl. Sci. 2026, 16(10), 5166), to stand beside ours where the corpus is theirs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["Published", "published_sentence", "published_values"]


@dataclasses.dataclass(frozen=True)
class Published:
    """WA and UA as fractions, with standard deviations over repeats where the paper gives them."""

    wa: float
    ua: float | None = None
    wa_std: float | None = None
    ua_std: float | None = None


_BEST = Published(0.8324, 0.8336)
# By the name of the experiment's configuration and of the variant; "" where there are no variants. The paper's
# figures have no numbers, and of Table 3 only the best setting is known here.
_VALUES: Mapping[str, Mapping[str, Published]] = {
    "five_fold": {"": Published(0.8324, 0.8336, 0.0075, 0.0073)},
    "ten_fold": {"": Published(0.8386, 0.8423, 0.0066, 0.0063)},
    "table3": {"alpha0.4_beta0.6_gamma0.1": _BEST},
    "table4": {
        "SER": Published(0.7733, 0.7871),
        "SER+GR+SR+ASR": _BEST,
    },
    "table5": {
        "fixed": _BEST,
        "uncertainty": Published(0.8140),
        "gradnorm": Published(0.8201),
        "dwa": Published(0.8172),
    },
}


def published_values(config: Mapping[str, Any]) -> Mapping[str, Published]:
    """The paper's numbers by variant; none for an experiment or a corpus that is not the paper's.

    Args:
        config: as in ``config.json``.
    """
    return _VALUES.get(config["name"], {}) if config["corpus"]["kind"] == "iemocap" else {}


def published_sentence(config: Mapping[str, Any]) -> str | None:
    """What the paper says about a run without variants."""
    value = published_values(config).get("")
    if value is None or value.ua is None:
        return None
    wa, ua, wa_std, ua_std = (
        f"{100 * (number or 0):.2f}" for number in (value.wa, value.ua, value.wa_std, value.ua_std)
    )
    return f"Published for this experiment (Wang, Yao, Yi 2026): WA {wa} ± {wa_std}, UA {ua} ± {ua_std}."
