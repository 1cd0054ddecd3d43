"""Documents of any input: files, folders, archives, tables; and the text that they become."""
