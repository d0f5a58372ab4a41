"""Preferences: from a file of any known form to validated, named rows."""
