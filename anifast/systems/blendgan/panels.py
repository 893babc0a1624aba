"""The loss figure of all stages; a stage's own figure has those panels for which it has numbers."""

from __future__ import annotations

from anifast.engine.plots import Panel

PANELS = (
    Panel("contrast", ("contrast",)),
    Panel("other view recognised", ("recognised",)),
    Panel("length of style codes", ("norm",)),
    Panel("D_face", ("d_face",)),
    Panel("D_style", ("d_style",)),
    Panel("D_latent", ("d_latent",)),
    Panel("G against D_face", ("g_face",)),
    Panel("G against D_style", ("g_style",)),
    Panel("G with D_latent", ("g_latent",)),
    Panel("gradient penalties", ("r1_face", "r1_style", "r1_latent")),
    Panel("path length, natural", ("path_face",)),
    Panel("path length, stylized", ("path_style",)),
    Panel("style's share of the slots", ("alpha",)),
    Panel("squared error", ("l2",)),
    Panel("perceptual", ("lpips",)),
    Panel("identity", ("identity",)),
    Panel("distance from the mean code", ("w_norm",)),
)
