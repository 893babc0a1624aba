"""How good generated pictures are (FID and KID over pluggable features), and how diverse (LPIPS diversity, DFID)."""

from __future__ import annotations

from anifast.metrics.diversity import (
    DFID,
    Diversity,
    Stability,
    dfid,
    load_lpips,
    lpips_diversity,
    pairwise_lpips,
    style_stability,
)
from anifast.metrics.features import EXTRACTORS, Extractor, NetworkExtractor, extractor
from anifast.metrics.frechet import Statistics, fid, frechet_distance
from anifast.metrics.kid import KID, kid, mmd
from anifast.metrics.sets import FeatureSet, folder_features

__all__ = [
    "DFID",
    "EXTRACTORS",
    "KID",
    "Diversity",
    "Extractor",
    "FeatureSet",
    "NetworkExtractor",
    "Stability",
    "Statistics",
    "dfid",
    "extractor",
    "fid",
    "folder_features",
    "frechet_distance",
    "kid",
    "load_lpips",
    "lpips_diversity",
    "mmd",
    "pairwise_lpips",
    "style_stability",
]
