"""Small additions to a trained network, saved apart from it."""
