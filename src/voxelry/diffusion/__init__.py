"""Schedules, objectives and samplers: mathematics, no networks."""
