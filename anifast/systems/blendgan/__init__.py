"""BlendGAN (Liu et al. 2021): faces painted in the style of any picture, and how much of it is told by an indicator."""
