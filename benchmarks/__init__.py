"""Measurements of anifast: shapes, one description per op, the interleaved timing, and the tables made of it."""
