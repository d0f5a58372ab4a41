"""Records of any known form → preference rows: `table` lists the forms, the other files read them by family."""
