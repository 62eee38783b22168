"""What the settings of a training should be, by its data and the machine: see `plan.plan_folder`.

Rules are functions of a `Situation` that yield decisions, each of one setting, with the reason in one line. A later
rule sees what the earlier ones decided. What somebody set is never decided about.
"""
