"""Pictures of the experiments, drawn with matplotlib (extra `analysis`): word spaces and learning curves.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart; markers and strokes differ as well, so that
the pictures can be read in black and white.
"""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .report import Figure

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
STROKES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, ":", "^"), (PURPLE, "-.", "D"))
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "svg.hashsalt": "runne_coner",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
DOTS_PER_INCH = 150


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@dataclass(frozen=True)
class Panel:
    """One projection: `plane` (N, 2) coordinates of the words, and the silhouette of the type in the whole space."""

    title: str
    plane: np.ndarray
    silhouette: float


def projection_figure(panels: Sequence[Panel], member: np.ndarray, entity_type: str, method: str, encoder: str) -> Figure:
    """Four (or fewer) projections of the same words side by side (Bondarenko 2022, figure 3).

    Args:
        panels: with planes of the same words in the same order.
        member: `(N,)` bool, the words of the type.
        entity_type, method, encoder: for the legend and the title.
    """
    from matplotlib.figure import Figure as Canvas

    with _style():
        height = (len(panels) + 1) // 2
        canvas = Canvas(figsize=(7.2, 3.1 * height + 0.6), layout="constrained")
        axes = canvas.subplots(height, 2, squeeze=False).ravel()
        for letter, place, panel in zip("abcd", axes, panels, strict=False):
            rest, words = panel.plane[~member], panel.plane[member]
            # The many dots would make the SVG file huge.
            place.scatter(*rest.T, s=5, c=BLUE, alpha=0.35, linewidths=0, rasterized=True, label="all other words")
            place.scatter(*words.T, s=26, c=ORANGE, marker="x", linewidths=1.3, label=f"words of {literal(entity_type)}")
            place.set_title(f"({letter}) {literal(panel.title)}\nsilhouette {panel.silhouette:.4f}")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(True)
        for place in axes[len(panels) :]:
            place.set_visible(False)
        canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, markerscale=1.5)
        title = (
            f"Figure 3: {method.upper()} projections of {len(member)} words, {int(member.sum())} of {entity_type}, {encoder}"
        )
        described = ", ".join(f"{panel.title} (silhouette {panel.silhouette:.4f})" for panel in panels)
        alt = f"{len(panels)} panels: {described}. Crosses are words of {entity_type}, dots all other words."
        return Figure(title, *_saved(canvas), alt)


@dataclass(frozen=True)
class Curve:
    """The Trainer's log of one stage of one run (`log_history` of trainer_state.json)."""

    scheme: str
    seed: int
    stage: str
    history: Sequence[Mapping]

    def values(self, key: str) -> np.ndarray:
        """`(points, 2)`: epoch and value, wherever the log has the key."""
        found = [(row["epoch"], row[key]) for row in self.history if key in row and "epoch" in row]
        return np.array(found, dtype=np.float64).reshape(-1, 2)


CURVES = (
    ("stage1", "loss", "Stage 1: training loss"),
    ("stage1", "eval_pair_auc", "Stage 1: pair AUC, evaluated texts"),
    ("stage2", "loss", "Stage 2: training loss"),
    ("stage2", "eval_macro_f1", "Stage 2: macro F1, evaluated texts"),
    ("stage2", "eval_micro_f1", "Stage 2: micro F1, evaluated texts"),
    ("stage2", "eval_few_shot_f1", "Stage 2: few-shot macro F1, evaluated texts"),
)
"""Stage, key of the log, and title of each panel of the learning curves."""


def curve_panels(curves: Sequence[Curve]) -> list[tuple[str, str, str]]:
    """Those of `CURVES` of which the logs hold anything."""
    return [panel for panel in CURVES if any(len(curve.values(panel[1])) for curve in curves if curve.stage == panel[0])]


def learning_curves(curves: Sequence[Curve], encoder: str) -> Figure:
    """Losses and scores of both stages over epochs; one stroke per scheme, one line per seed.

    Args:
        curves: with at least one of `curve_panels`.
    """
    from matplotlib.figure import Figure as Canvas

    shown = curve_panels(curves)
    schemes = list(dict.fromkeys(curve.scheme for curve in curves))
    with _style():
        height = (len(shown) + 1) // 2
        canvas = Canvas(figsize=(7.2, 2.5 * height + 0.4), layout="constrained")
        axes = canvas.subplots(height, 2, squeeze=False).ravel()
        legend = {}
        for place, (stage, key, title) in zip(axes, shown, strict=False):
            for curve in curves:
                points = curve.values(key)
                if curve.stage == stage and len(points):
                    colour, stroke, marker = STROKES[schemes.index(curve.scheme) % len(STROKES)]
                    drawn = {"marker": marker, "markersize": 4} if len(points) < 12 else {}
                    (legend[curve.scheme],) = place.plot(*points.T, color=colour, linestyle=stroke, linewidth=1.2, **drawn)
            place.set(title=title, xlabel="epoch")
            place.grid(alpha=0.3)
        for place in axes[len(shown) :]:
            place.set_visible(False)
        legend = {scheme: legend[scheme] for scheme in schemes if scheme in legend}
        canvas.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend) or 1, frameon=False)
        seeds = sorted({curve.seed for curve in curves})
        alt = f"{len(shown)} panels over epochs: {'; '.join(title for *_, title in shown)}. Lines: {', '.join(schemes)}."
        return Figure(f"Learning curves of {encoder} (seeds {', '.join(map(str, seeds))})", *_saved(canvas), alt)


def literal(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def _style():
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _saved(canvas) -> tuple[bytes, str]:
    """PNG and SVG, the same bytes from the same data."""
    png, svg = io.BytesIO(), io.StringIO()
    canvas.savefig(png, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    canvas.savefig(svg, format="svg", dpi=DOTS_PER_INCH, metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()
