"""CycleGAN between two unpaired image folders, selfie <-> anime (spec: Zhu et al. 2017, arXiv 1703.10593)."""
