"""Layers with gradients written by hand, which keep less in memory."""
