"""Hydra configuration: groups of YAML files, composed by `train.yaml`."""
