"""GANs N' Roses (Chong and Forsyth 2021): one face photo, many drawings of it, each in a style of its own."""
