"""Packed weights: how each format lays numbers out in bytes, and how they are expanded again."""
