"""Labelled pictures that are kept on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_cyclegan import own_cache
from tiny_disentangle import write_artists

from anifast.data.labelled import load_artists

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)


def test_batches_are_gathered_where_the_pictures_are(tmp_path: Path) -> None:
    with own_cache(tmp_path / "cache"):
        data = load_artists(write_artists(tmp_path / "artists"), 16, min_images=2, weight_maps=tmp_path / "artists")
    expected = data.batch([3, 11, 3])
    before = [data.batch([3, 11, 3], "cuda")]
    assert data.to("cuda")
    rows = torch.tensor([3, 11, 3])
    for batch in (*before, data.batch([3, 11, 3], "cuda"), data.batch(rows.cuda(), "cuda:0"), data.batch(rows, "cpu")):
        for one, other in zip(batch, expected, strict=True):
            assert one is not None and other is not None and torch.equal(one.cpu(), other)
    assert all(one is not None and one.is_cuda for one in data.batch(rows, "cuda"))
    with pytest.raises(IndexError, match="index 12 is out of range"):
        data.batch([12], "cuda")
