"""Nights: a recipe brought up to date by its schedule, unattended, and what came of it.

The schedule's tick only records that night, as a tick cannot wait. A sensor takes the latest recorded night,
launches what is behind phase by phase, and closes it with an outcome and a reason that a person can read.
"""
