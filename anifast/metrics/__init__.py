"""How good generated pictures are (FID and KID over pluggable features, SWD of patches), how diverse (LPIPS diversity,
DFID), and what codes tell about factors (average distance, naive Bayes, linear probes).
"""

from __future__ import annotations

from anifast.metrics.disentanglement import (
    Bayes,
    Decoded,
    Scores,
    average_distance,
    bayes_tables,
    decode,
    generated_table,
    naive_bayes,
    orderings,
    score_codes,
)
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
from anifast.metrics.swd import sliced_wasserstein, swd

__all__ = [
    "DFID",
    "EXTRACTORS",
    "KID",
    "Bayes",
    "Decoded",
    "Diversity",
    "Extractor",
    "FeatureSet",
    "NetworkExtractor",
    "Scores",
    "Stability",
    "Statistics",
    "average_distance",
    "bayes_tables",
    "decode",
    "dfid",
    "extractor",
    "fid",
    "folder_features",
    "frechet_distance",
    "generated_table",
    "kid",
    "load_lpips",
    "lpips_diversity",
    "mmd",
    "naive_bayes",
    "orderings",
    "pairwise_lpips",
    "score_codes",
    "sliced_wasserstein",
    "style_stability",
    "swd",
]
