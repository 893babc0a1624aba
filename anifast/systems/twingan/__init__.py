"""Twin-GAN: one encoder and one generator for two domains, which differ in their norms alone (Li 2018)."""
