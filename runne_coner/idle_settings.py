"""Settings of the stages that change nothing unless another one has a certain value: one list for all who ask."""

from collections.abc import Mapping
from typing import Any

_PARTNERS = {
    "num_pairs": ("pair_mode", "in_batch"),
    "outside_per_window": ("outside", "none"),
    "outside_lengths": ("outside", "none"),
    "mining_margin": ("mining", "none"),
    "lookahead_alpha": ("lookahead", 0),
    "ce_form": ("ce_weight", 0),
    "label_smoothing_factor": ("ce_weight", 0),
    "focal_gamma": ("ce_form", "plain"),
    "dice_smoothing": ("dice_weight", 0),
    "dice_reduction": ("dice_weight", 0),
    "swap_probability": ("swap_share", 0),
    "swap_agreement": ("swap_share", 0),
    "level_order": ("levels", 1),
    "scorer_weight": ("candidate_paths", 0),
    "scorer_learning_rate": ("candidate_paths", 0),
}
"""Name: the setting that it needs, and the value of that with which it is idle."""


def idle_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Those of the settings that change nothing, each with the name of the one that makes them idle."""
    return {
        name: partner
        for name, (partner, off) in _PARTNERS.items()
        if name in settings and partner in settings and settings[partner] == off
    }
