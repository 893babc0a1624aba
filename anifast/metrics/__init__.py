"""How good generated pictures are: Frechet distance (FID) and kernel distance (KID) over pluggable features."""

from __future__ import annotations

from anifast.metrics.features import EXTRACTORS, Extractor, NetworkExtractor, extractor
from anifast.metrics.frechet import Statistics, fid, frechet_distance
from anifast.metrics.kid import KID, kid, mmd
from anifast.metrics.sets import FeatureSet, folder_features

__all__ = [
    "EXTRACTORS",
    "KID",
    "Extractor",
    "FeatureSet",
    "NetworkExtractor",
    "Statistics",
    "extractor",
    "fid",
    "folder_features",
    "frechet_distance",
    "kid",
    "mmd",
]
