"""The content of a report: facts read from the store, prepared for a page and for small pictures."""
