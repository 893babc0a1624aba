"""Style/content disentanglement of faces by many artists (Xiang and Li 2019, arXiv 1905.10742)."""
