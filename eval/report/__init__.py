"""What a report shows: facts read from the store, prepared for one page and for small pictures."""
