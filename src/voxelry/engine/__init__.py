"""Training, evaluation, prediction and bundles."""
