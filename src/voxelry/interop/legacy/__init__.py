"""Configurations and command lines of the originals."""
